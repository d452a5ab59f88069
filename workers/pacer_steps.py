"""The atomic steps of pacing: each is one Lua script on Redis' own TIME, behind one typed function.

Keys, {scope} being {provider/key id}, so that a cluster keeps them together; every key has a TTL:
  batchmill:pace:{scope}:model:M   hash: t:D arrival time (µs) and w:D, o:D, w:D:i window of dimension D; u, uc
                                   share in use; n, e calls and 429s of the minute; hold; last; p, pc, pr pause
  batchmill:pace:{scope}:key       the same for the whole key
  …:share, …:found                 hashes: worker → "held want expiry"; s state of a limit looked for, what was seen
May not touch: waiting, lines, the database. Raises redis.RedisError or OSError when Redis is away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import orjson
from redis.asyncio import Redis

from batch.domain.found_limit import Found, Seen
from batch.domain.gcra import WINDOW_PARTS, Cost
from batch.domain.limits import Dimension
from batch.settings import SHARE_EXPIRES_S
from workers import pacer_scripts as scripts

TTL_MS = 2 * 86_400_000  # longer than the longest window


@dataclass(frozen=True, slots=True)
class Bucket:
    """One hash and what is metered in it. `use` is where its self-tuned share starts, `use_max` where it ends."""

    key: str
    dims: tuple[Dimension, ...]
    use: float
    use_max: float

    def to_wire(self) -> dict[str, Any]:
        return {
            "u": self.use,
            "m": self.use_max,
            "d": [[d.name, _UNIT[d.unit], d.rate, d.tolerance_s * 1e6, d.window_s * 1e6, d.cap] for d in self.dims],
        }


@dataclass(frozen=True, slots=True)
class Lease:
    """What a lease came to. Slots are seconds from now; `at_us` is Redis' now. `paused` is (until, code, reason).

    `fresh`: the hash was not there before, so counters of long windows want to be re-seeded.
    """

    slots: list[float]
    wait_s: float
    at_us: int
    use: float
    fresh: bool
    paused: tuple[float, str, str] | None


_UNIT = {"request": 0, "tokens": 1, "input": 2, "output": 3}


class Steps:
    """The scripts, loaded once. `calls` counts round trips, for the benchmark and the metrics."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self.calls = 0
        self._lease = redis.register_script(scripts.LEASE)
        self._return = redis.register_script(scripts.RETURN)
        self._refused = redis.register_script(scripts.REFUSED)
        self._lower = redis.register_script(scripts.LOWER)
        self._share = redis.register_script(scripts.SHARE)
        self._pause = redis.register_script(scripts.PAUSE)
        self._resume = redis.register_script(scripts.RESUME)
        self._seed = redis.register_script(scripts.SEED)
        self._count = redis.register_script(scripts.COUNT)
        self._tell = redis.register_script(scripts.TELL)
        self._adopt = redis.register_script(scripts.ADOPT)

    async def lease(
        self, buckets: Sequence[Bucket], costs: Sequence[Cost], *, ahead_s: float, settled: Cost | None = None
    ) -> Lease:
        """Reserve slots for `costs` in order in every bucket at once, and settle what calls really used."""
        argument: dict[str, Any] = {
            "b": [b.to_wire() for b in buckets],
            "c": [tuple(c) for c in costs],
            "a": ahead_s * 1e6,
        }
        if settled is not None:
            argument["s"] = tuple(settled)
        answer = await self._meter(self._lease, buckets, argument)
        if int(answer[0]) < 0:
            until, code, reason = (_text(part) for part in answer[1:4])
            return Lease([], 0.0, 0, 1.0, False, (float(until) / 1e6, code, reason))
        slots = [part / 1e6 for part in answer[4:]]
        return Lease(slots, answer[1] / 1e6, int(answer[0]), int(answer[3]) / 1e6, bool(answer[2]), None)

    async def give_back(
        self, buckets: Sequence[Bucket], costs: Sequence[Cost], *, last_us: int, before_us: int
    ) -> bool:
        """Return the tail of the last lease; False when others have leased since (the slots are burnt)."""
        argument = {
            "b": [b.to_wire() for b in buckets],
            "c": [tuple(c) for c in costs],
            "last": str(last_us),
            "before": str(before_us),
        }
        return bool(await self._meter(self._return, buckets, argument))

    async def refused(self, buckets: Sequence[Bucket], hold_s: float = 0.0) -> None:
        """Count a 429; with `hold_s`, give no slot to anyone for so long."""
        await self._run(self._refused, [b.key for b in buckets], int(hold_s * 1e6), TTL_MS)

    async def lower(self, bucket: Bucket, remaining: Mapping[str, float], use: float) -> None:
        """Believe headers that less remains (units by dimension name) than was thought; never more."""
        rows = [
            [d.name, d.tolerance_s * 1e6, d.window_s * 1e6, d.cap, 1e6 / (d.rate * use), remaining[d.name]]
            for d in bucket.dims
            if d.name in remaining
        ]
        if rows:
            await self._meter(self._lower, [bucket], {"d": rows})

    async def share(self, key: str, worker: str, *, cap: int, in_use: int, want: int) -> int:
        """Below how many calls in flight this worker may start another, of the `cap` that all share."""
        expiry_us = int(SHARE_EXPIRES_S * 1e6)
        return int(await self._run(self._share, [f"{key}:share"], worker, cap, in_use, want, expiry_us))

    async def pause(self, key: str, seconds: float, code: str, reason: str) -> None:
        """Refuse leases of this bucket; the reason travels to whoever asks."""
        await self._run(self._pause, [key], int(max(0.0, seconds) * 1e6), code, reason[:300], TTL_MS)

    async def resume(self, key: str) -> None:
        await self._run(self._resume, [key])

    async def claim_probe(self, key: str, worker: str, seconds: float) -> bool:
        """Whether this worker is the one that tries a bucket which was paused; nobody else is for so long."""
        self.calls += 1
        if await self._redis.set(f"{key}:probe", worker, nx=True, px=int(seconds * 1e3)):
            return True
        return _text(await self._redis.get(f"{key}:probe") or "") == worker

    async def seed(self, bucket: Bucket, counters: Mapping[str, Any]) -> None:
        """Put back hour and day counters as read_windows() gave them; a bucket is seeded once."""
        rows = [
            [d.name, d.window_s * 1e6, [[int(start), float(n)] for start, n in counters[d.name].items()]]
            for d in bucket.dims
            if d.window_s and isinstance(counters.get(d.name), dict) and counters[d.name]
        ]
        if rows:
            await self._meter(self._seed, [bucket], {"w": rows})

    async def count(self, bucket: Bucket, used: Mapping[str, float]) -> None:
        """Add to long windows what was sent without Redis; units by dimension name."""
        rows = [[d.name, d.window_s * 1e6, used[d.name]] for d in bucket.dims if d.window_s and used.get(d.name)]
        if rows:
            await self._meter(self._count, [bucket], {"w": rows})

    async def tell(self, key: str, seen: Seen) -> tuple[float, Seen, Found]:
        """Add to what all workers saw; (now in Unix seconds, the sum since the last step, the state)."""
        parts = (repr(float(part)) for part in astuple(seen))
        now_us, state, *sums = await self._run(self._tell, [f"{key}:found"], *parts, TTL_MS)
        found = Found(*orjson.loads(state)) if state else Found()
        return now_us / 1e6, Seen(*(float(part or 0) for part in sums)), found

    async def adopt(self, key: str, before: Found, after: Found, used: Seen) -> bool:
        """Replace the state and take `used` off the sum, unless another worker was first."""
        states = (orjson.dumps(astuple(before)) if before.at else b"", orjson.dumps(astuple(after)))
        parts = (repr(float(part)) for part in astuple(used)[:-1])
        return bool(await self._run(self._adopt, [f"{key}:found"], *states, *parts, TTL_MS))

    async def read_windows(self, bucket: Bucket) -> dict[str, dict[str, float]]:
        """Units by dimension and start of each part (Unix ms), for `lanes.counters`; {} without long windows."""
        widths = {d.name: d.window_s * 1000 / WINDOW_PARTS for d in bucket.dims if d.window_s}
        if not widths:
            return {}
        self.calls += 1
        found: dict[str, dict[str, float]] = {name: {} for name in widths}
        for field, value in (await self._redis.hgetall(bucket.key)).items():
            parts = _text(field).split(":")
            if len(parts) == 3 and parts[0] == "w" and parts[1] in widths:
                found[parts[1]][str(int(int(parts[2]) * widths[parts[1]] + 1))] = float(value)
        return found

    async def _meter(self, script: Any, buckets: Sequence[Bucket], argument: dict[str, Any]) -> Any:
        return await self._run(script, [bucket.key for bucket in buckets], orjson.dumps(argument | {"ttl": TTL_MS}))

    async def _run(self, script: Any, keys: list[str], *args: bytes | str | int) -> Any:
        self.calls += 1
        return await script(keys=keys, args=args)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
