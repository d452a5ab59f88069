"""The replicas of one self-hosted engine: which of them serves a call, which is out, how busy they are.

Owns: Engine — least outstanding tokens with a home per prefix group, health (startup, passive, active),
moving a call from a replica that died, feeding lanes' windows with the engines' own queues.
May not touch: processes (engine_process.py), lines, the database. Made on the event loop, used only there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import orjson

from batch.clock import Clock
from batch.domain.outcome import Failure, FailureKind, Outcome, Success
from batch.providers.adapter import Adapter, join_url
from batch.providers.engine_load import LOAD_HEADER, LoadReading, read_header, read_loads, read_metrics, read_slots
from batch.providers.presets import EngineFacts
from batch.providers.transport import UpstreamResponse
from batch.telemetry import emit

if TYPE_CHECKING:
    from workers.lane import Lane

TICK_S = 1.0
CHECK_UP_S = 5.0        # between two looks at a replica that serves
STUCK_S = 60.0          # it runs requests and generates nothing
IN_A_ROW = 5            # failures without a success: out for a while, although its health says yes
COOL_S = 15.0
UNBALANCED = 1.5        # a group leaves its home when that has so much more to do than the idlest
FACT_CHARS = 300        # of the report's key
MISSES = 2              # looks in a row without an answer; a refused connection counts at once

_SUSPECT = frozenset({FailureKind.DISCONNECT, FailureKind.SERVER_ERROR, FailureKind.UNAVAILABLE})


@dataclass(slots=True, eq=False)
class Replica:
    """One address. `tokens` is what this process has sent there and not seen end (estimates)."""

    base_url: str
    is_up: bool = True  # until it was looked at: a call is the first look
    reason: str = ""
    in_flight: int = 0
    tokens: int = 0
    load: LoadReading | None = None
    is_pressed: bool = False
    failures: int = 0
    out_until: float = 0.0  # monotonic: out by its failures, whatever its health says
    looked_at: float = float("-inf")
    moved_at: float = 0.0   # monotonic: when `load.tokens` last grew
    misses: int = 0
    version: str = ""
    models: tuple[str, ...] = ()
    looking: asyncio.Task[bool] | None = None
    deaf: set[str] = field(default_factory=set)  # load pages that it does not have

    @property
    def root(self) -> str:
        return self.base_url.rstrip("/").removesuffix("/v1")

    @property
    def weight(self) -> float:
        """Outstanding tokens, with what others have in flight there at the same size."""
        foreign = max(0.0, self.load.running + self.load.waiting - self.in_flight) if self.load else 0.0
        return self.tokens + foreign * (self.tokens / self.in_flight if self.in_flight else 1.0)


class Engine:
    """start() … call() … close(). `told` hears of versions and models that were read: (provider, models)."""

    def __init__(self, adapter: Adapter, clock: Clock, told: Callable[[str, Sequence[str]], None]) -> None:
        self.name = adapter.provider.name
        self.replicas = [Replica(url) for url in adapter.provider.base_urls]
        self.lanes: list[Lane] = []
        self.is_starting = False  # a managed engine that never served yet: lanes wait, nothing fails
        self.started_by = ""      # a managed engine's command line, without its secrets
        self._adapter = adapter
        self._facts = adapter.provider.preset.engine or EngineFacts()
        self._clock = clock
        self._told = told
        self._watching: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._watching = asyncio.get_running_loop().create_task(self._watch())

    def attach(self, lane: Lane) -> None:
        """This lane's calls come here from now on."""
        self.lanes.append(lane)
        lane.context.facts = self._built

    async def close(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)

    def serve_at(self, urls: Sequence[str]) -> None:
        """A managed engine's addresses of now; those that stay keep what is known of them."""
        if [replica.base_url for replica in self.replicas] == list(urls):
            return
        known = {replica.base_url: replica for replica in self.replicas}
        self.replicas = [known.get(url) or Replica(url, is_up=False, reason="starting") for url in urls]
        self._adapter.provider.launched_urls = tuple(urls)

    @property
    def _built(self) -> tuple[str, ...]:
        """ "engine:vLLM 0.33.0": what answers, for the batch's report; with its arguments if we started it."""
        versions = sorted({replica.version for replica in self.replicas if replica.version})
        words = [self._adapter.provider.preset.title, " and ".join(versions), self.started_by]
        text = " ".join(word for word in words if word)
        return (f"engine:{text}"[:FACT_CHARS],) if versions or self.started_by else ()

    def facts(self) -> list[dict[str, Any]]:
        """The load view: a row per replica."""
        return [
            {
                "base_url": replica.base_url, "up": replica.is_up, "reason": replica.reason,
                "in_flight": replica.in_flight, "tokens": replica.tokens, "version": replica.version,
                "models": list(replica.models), "running": replica.load and replica.load.running,
                "waiting": replica.load and replica.load.waiting,
                "cache_used": replica.load and replica.load.cache_used,
            }
            for replica in self.replicas
        ]  # fmt: skip

    # one call

    async def call(
        self, send: Callable[[str], Any], *, tokens: int, group: str | None, may_repeat: bool = True
    ) -> Outcome:
        """`send(base_url)` at the best replica; again at another when that one died, which costs the line nothing.

        A call that was under way when two replicas died may be what kills them: it ends with the failure. So
        does one that was alone with its replica, and that says so: it costs an attempt even in an outage.
        """
        tried: set[Replica] = set()
        has_repeated = False
        outcome: Outcome = Failure(FailureKind.CONNECT, f"no replica of {self.name} is up", sent=False)
        while (replica := self.pick(group, tried)) is not None:
            replica.in_flight += 1
            replica.tokens += tokens
            try:
                outcome = await send(replica.base_url)
            finally:
                was_alone = replica.in_flight == 1
                replica.in_flight -= 1
                replica.tokens -= tokens
            self._note_header(replica, outcome)
            if isinstance(outcome, Success) or not await self._has_failed(replica, outcome):
                return outcome
            tried.add(replica)
            outcome = replace(outcome, ended_server=was_alone and outcome.kind in _SUSPECT)
            if outcome.sent:
                if has_repeated or not may_repeat:
                    return outcome
                has_repeated = True
        return outcome

    def pick(self, group: str | None, besides: Collection[Replica] = ()) -> Replica | None:
        """The replica with the least outstanding tokens; a group's home while it is not far busier."""
        up = [replica for replica in self.replicas if replica.is_up and replica not in besides]
        if len(up) < 2:
            return up[0] if up else None
        idlest = min(up, key=lambda replica: (replica.weight, replica.in_flight))
        if group is None:
            return idlest
        home = max(up, key=lambda replica: _affinity(group, replica.base_url))
        spare = UNBALANCED * idlest.weight + (home.weight / max(1, home.in_flight))
        return home if home.weight <= spare else idlest

    async def _has_failed(self, replica: Replica, failure: Failure) -> bool:
        """True when the replica is out now and the call may go elsewhere."""
        if failure.kind is FailureKind.CONNECT:
            self._take_out(replica, "cannot be reached")
            return True
        if failure.kind not in _SUSPECT and failure.kind is not FailureKind.TIMEOUT:
            replica.failures = 0
            return False
        replica.failures += 1
        if failure.kind in _SUSPECT and not await self.look(replica):
            return True
        if replica.failures >= IN_A_ROW and any(r.is_up for r in self.replicas if r is not replica):
            replica.out_until = self._clock.monotonic() + COOL_S
            self._take_out(replica, f"{replica.failures} failures in a row")
            return True
        return False

    def _note_header(self, replica: Replica, outcome: Outcome) -> None:
        if isinstance(outcome, Success):
            replica.failures = 0
        value = outcome.rate_headers.get(LOAD_HEADER) if outcome.rate_headers else None
        if value and (replica.load is None or "metrics" in replica.deaf):
            reading = read_header(value, replica.in_flight + 1)
            if reading is not None:
                self._take_reading(replica, reading)

    # health

    async def look(self, replica: Replica) -> bool:
        """Ask its health now, once for all who want to know; whether it is up."""
        if replica.looking is None:
            replica.looking = asyncio.get_running_loop().create_task(self._look(replica))
        return await asyncio.shield(replica.looking)

    async def _look(self, replica: Replica) -> bool:
        try:
            path = self._facts.health_path
            url = replica.root + path if path else join_url(replica.base_url, "/models")
            answer = await self._adapter.get(url, self._facts.health_timeout_s)
            now = replica.looked_at = self._clock.monotonic()
            if answer is not None and answer.status < 500:
                replica.misses = 0
                if now >= replica.out_until and not self._is_stuck(replica, now):
                    await self._bring_back(replica)
            else:
                replica.misses += 1
                if answer is not None or replica.misses >= MISSES or replica.failures or not replica.in_flight:
                    self._take_out(replica, f"health {answer.status}" if answer is not None else "no answer")
            return replica.is_up
        finally:
            replica.looking = None

    def _is_stuck(self, replica: Replica, now: float) -> bool:
        """Healthy by its own word, with requests running and no token for a minute."""
        load = replica.load
        stuck = load is not None and load.tokens is not None and load.running > 0 and now - replica.moved_at > STUCK_S
        if stuck:
            self._take_out(replica, f"no token for {STUCK_S:g} s")
        return stuck

    def _take_out(self, replica: Replica, reason: str) -> None:
        replica.reason = reason
        if replica.is_up:
            replica.is_up = False
            emit("replica_out", provider=self.name, replica=replica.base_url, reason=reason)

    async def _bring_back(self, replica: Replica) -> None:
        if not replica.version and not replica.models:
            await self._introduce(replica)
        if replica.is_up and not self.is_starting:
            return
        replica.failures = 0
        replica.is_up, self.is_starting, replica.reason = True, False, ""
        emit("replica_back", provider=self.name, replica=replica.base_url)
        for lane in self.lanes:
            lane.wake()

    async def _introduce(self, replica: Replica) -> None:
        """What it is and which models it serves; a server without these pages stays without."""
        answer = await self._adapter.get(join_url(replica.base_url, "/models"), self._facts.health_timeout_s)
        entries = _json(answer).get("data")
        entries = entries if isinstance(entries, list) else []
        replica.models = tuple(str(entry["id"]) for entry in entries if isinstance(entry, dict) and entry.get("id"))
        if self._facts.version_path:
            answer = await self._adapter.get(replica.root + self._facts.version_path, self._facts.health_timeout_s)
            data = _json(answer)
            replica.version = str(data.get("version") or data.get("build_info") or "")[:100]
        self._told(self.name, list(dict.fromkeys(model for each in self.replicas for model in each.models)))
        for lane in self.lanes:
            lane.context.facts = self._built

    # load

    async def _watch(self) -> None:
        while True:
            try:
                await asyncio.gather(*(self._visit(replica) for replica in self.replicas))
                self._tell_lanes()
            except Exception as error:  # the wall of one round: the next comes in a second
                emit("storage_retry", work="engines", error=type(error).__name__)
            await self._clock.sleep_async(TICK_S)

    async def _visit(self, replica: Replica) -> None:
        now = self._clock.monotonic()
        if not replica.is_up or now - replica.looked_at >= CHECK_UP_S:
            await self.look(replica)
        if replica.is_up and replica.in_flight:
            reading = await self._read_load(replica)
            if reading is not None:
                self._take_reading(replica, reading)
        elif not replica.in_flight:
            replica.moved_at = now

    async def _read_load(self, replica: Replica) -> LoadReading | None:
        facts = self._facts
        pages = {"metrics": facts.metrics_path, "slots": facts.slots_path, "load": facts.load_path}
        for kind, path in pages.items():
            if not path or kind in replica.deaf:
                continue
            answer = await self._adapter.get(replica.root + path, TICK_S * 2)
            if answer is None:
                return None  # busy; the page may be there
            reading = None
            if answer.status == 200:
                body = answer.body
                reading = (
                    read_metrics(body.decode(errors="replace"), facts) if kind == "metrics"
                    else read_slots(body, replica.in_flight) if kind == "slots" else read_loads(body)
                )  # fmt: skip
            if reading is not None:
                return reading
            replica.deaf.add(kind)
        return None

    def _take_reading(self, replica: Replica, reading: LoadReading) -> None:
        last, now = replica.load, self._clock.monotonic()
        replica.is_pressed = bool(last and (reading.preempted or 0) > (last.preempted or 0))
        if last is None or reading.tokens != last.tokens or not reading.running:
            replica.moved_at = now
        replica.load = reading

    def _tell_lanes(self) -> None:
        seen = [replica for replica in self.replicas if replica.is_up and replica.load and replica.in_flight]
        if not seen:
            return
        loads = [replica.load for replica in seen if replica.load]
        cache = max((load.cache_used for load in loads if load.cache_used is not None), default=None)
        pressed = any(replica.is_pressed for replica in seen)
        for lane in self.lanes:
            lane.note_load(sum(load.running for load in loads), sum(load.waiting for load in loads), cache, pressed)


def _affinity(group: str, base_url: str) -> bytes:
    """Every process finds the same home for a group, and a lost replica moves only its own groups."""
    return blake2b(f"{group}\n{base_url}".encode(), digest_size=8).digest()


def _json(page: UpstreamResponse | None) -> dict[str, Any]:
    """The page's object; empty when there is none."""
    try:
        data = orjson.loads(page.body) if page is not None and page.status == 200 else {}
    except orjson.JSONDecodeError:
        return {}
    return data if isinstance(data, dict) else {}
