"""From a lane's row to a lane that runs: provider, card, limits, window, adapter.

Owns: one adapter per provider, the process-wide parts that lanes share, and what is learned about a
lane's card and limits. Lanes whose provider is not configured here are left to other workers.
May not touch: the database; the pump saves what is learned.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

from batch.completions.schema import SchemaCache
from batch.domain.line import read_body
from batch.operations.world import World
from batch.providers.adapter import Adapter, make_adapter
from batch.providers.headers import parse_rate_headers
from batch.providers.learned import Evidence, learn_support
from batch.storage.claims import OpenLine
from batch.storage.lanes import LaneRow
from workers.breaker import Breakers
from workers.concurrency import Window
from workers.engine_process import ManagedEngine
from workers.engines import Engine
from workers.executor import LaneContext
from workers.lane import Lane
from workers.lane_parts import Hooks, LaneParts, Load, News
from workers.leases import HeldSlice
from workers.pacer import LaneView, Pacer
from workers.recorder import Recorder

RATED_START = 64  # calls in flight to begin with where a known rate does the limiting


class LaneMaker:
    """One per process; make() on the event loop."""

    def __init__(self, world: World, pacer: Pacer, recorder: Recorder) -> None:
        self._world = world
        self._pacer = pacer
        self._recorder = recorder
        self._adapters: dict[str, Adapter] = {}
        self._breakers = Breakers(world.clock)
        self._schemas = SchemaCache()
        self._evidence: dict[int, Evidence] = {}
        self.load = Load(world.settings.max_in_flight)
        self.engines: dict[str, Engine] = {}
        self._managed: list[ManagedEngine] = []

    def make(self, row: LaneRow, hooks: Hooks, news: News) -> Lane | None:
        """None when this process does not know the lane's provider."""
        provider = self._world.catalog.providers.get(row.provider)
        if provider is None or provider.key_id != row.key_id:
            return None
        limits = provider.limits(row.model, row.learned)
        start = max(RATED_START, limits.start_concurrency)
        if not limits.has_rate:  # all workers together begin with start_concurrency
            start = max(1, limits.start_concurrency // self._pacer.live_workers())
        maximum = min(limits.concurrency or self.load.limit, self.load.limit)
        context = LaneContext(
            provider, row.model, provider.card(row.model, row.learned), provider.price(row.model),
            self._world.clock, self._schemas, self._world.settings.output_ascii,
        )  # fmt: skip
        found = row.learned.get("found")
        view = LaneView(row.id, row.provider, row.key_id, row.model, limits, counters=row.counters, found=found)
        parts = LaneParts(
            context, view, Window(start=min(start, maximum), maximum=maximum), self._adapter(row.provider),
            self._pacer, self._breakers, self._recorder, self.load, hooks, news, self._read_body,
            self.engine(row.provider),
        )  # fmt: skip
        lane = Lane(row, parts)
        if parts.engine is not None:
            parts.engine.attach(lane)
        return lane

    def engine(self, name: str) -> Engine | None:
        """The provider's replicas, watched from now on; None for what is neither an engine nor at several places."""
        provider = self._world.catalog.providers[name]
        if name not in self.engines and (provider.engine or provider.launch or len(provider.base_urls) > 1):
            engine = Engine(self._adapter(name), self._world.clock, self._world.catalog.set_listed)
            engine.start()
            self.engines[name] = engine
        return self.engines.get(name)

    def run_engines(self, queues: Collection[str], failed: Callable[[str, str], None]) -> None:
        """Start the managed engines that these queues' workers serve; `failed` hears (provider, why not)."""
        world = self._world
        for name, provider in world.catalog.providers.items():
            engine = self.engine(name) if provider.launch and provider.queue in queues else None
            if provider.launch and engine:
                managed = ManagedEngine(
                    engine, provider.launch, world.settings.resolved_data_dir, world.clock, partial(failed, name)
                )
                managed.start()
                self._managed.append(managed)

    def engine_facts(self) -> dict[str, Any]:
        """For `workers.facts`: {provider: {command, replicas: [the load view's rows]}}."""
        return {
            name: {"command": engine.started_by, "replicas": engine.facts()} for name, engine in self.engines.items()
        }

    def learn_support(self, lane: Lane, support: dict[str, str]) -> dict[str, Any] | None:
        """Take over what answers showed; the patch for lanes.learned when it is new."""
        settled = self._evidence.setdefault(lane.id, Evidence()).weigh(support)
        patch = learn_support(lane.learned, lane.context.card, settled)
        if patch:
            lane.learned = {**lane.learned, **patch}
            lane.context.card = lane.context.provider.card(lane.context.model, lane.learned)
        return patch or None

    def learn_rates(self, lane: Lane, headers: dict[str, str]) -> dict[str, Any] | None:
        """Tell the pacer what headers say; the patch for lanes.learned when a limit changed."""
        rules = lane.context.provider.preset.rate_headers
        reading = parse_rate_headers(headers, rules, self._world.clock.now())
        learned = self._pacer.learn(lane.parts.view, reading)
        if not learned:
            return None
        lane.learned = {**lane.learned, "limits": {**(lane.learned.get("limits") or {}), **learned}}
        return {"limits": lane.learned["limits"]}

    async def close(self) -> None:
        for managed in self._managed:
            await managed.stop()
        for engine in self.engines.values():
            await engine.close()
        for adapter in self._adapters.values():
            await adapter.close()
        self._schemas.close()

    def _adapter(self, name: str) -> Adapter:
        adapter = self._adapters.get(name)
        if adapter is None:
            world = self._world
            adapter = self._adapters[name] = make_adapter(world.catalog, name, world.settings, clock=world.clock)
        return adapter

    def _read_body(self, held: HeldSlice, item: OpenLine) -> bytes:
        """A body over 64 kB: its whole input line is read from the blob. Runs in a thread."""
        assert item.blob_offset is not None and item.blob_length is not None
        end = item.blob_offset + item.blob_length
        return read_body(b"".join(self._world.blobs.read(held.claim.input_blob, item.blob_offset, end)))
