"""From a lane's row to a lane that runs: provider, card, limits, window, adapter.

Owns: LaneMaker — one adapter per provider, and the parts that lanes of this process share. Lanes whose
provider is not configured here are left to other workers.
May not touch: the database; what a lane learns is written by lane_news.py.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from batch.completions.schema import SchemaCache
from batch.domain.circuit import RetryBudget
from batch.domain.line import read_body
from batch.operations.world import World
from batch.providers.adapter import Adapter, make_adapter
from batch.storage.claims import OpenLine
from batch.storage.lanes import LaneRow
from workers.concurrency import Window, first_size
from workers.engine_process import ManagedEngine
from workers.engines import Engine
from workers.executor import LaneContext
from workers.lane import Lane
from workers.leases import HeldSlice
from workers.pacer import Pacer
from workers.pacer_lane import PacedLane
from workers.recorder import Recorder

if TYPE_CHECKING:
    from workers.pump import Pump


@dataclass(slots=True)
class Load:
    """Calls in flight in this process, against settings.max_in_flight."""

    limit: int
    in_flight: int = 0


@dataclass(slots=True)
class LaneParts:
    """What a lane is built from, and whom it talks to."""

    context: LaneContext
    pace: PacedLane
    window: Window
    adapter: Adapter
    retries: RetryBudget  # of the provider
    recorder: Recorder
    load: Load
    pump: Pump
    read_body: Callable[[HeldSlice, OpenLine], bytes]
    engine: Engine | None  # the replicas of a self-hosted one


class LaneMaker:
    """One per process; make() on the event loop."""

    def __init__(self, world: World, pacer: Pacer, recorder: Recorder) -> None:
        self._world = world
        self._pacer = pacer
        self._recorder = recorder
        self._adapters: dict[str, Adapter] = {}
        self._retries: dict[str, RetryBudget] = {}
        self._schemas = SchemaCache()
        self.load = Load(world.settings.max_in_flight)
        self.engines: dict[str, Engine] = {}
        self._managed: list[ManagedEngine] = []

    def make(self, row: LaneRow, pump: Pump) -> Lane | None:
        """None when this process does not know the lane's provider."""
        world, name = self._world, row.provider
        provider = world.catalog.providers.get(name)
        if provider is None or provider.key_id != row.key_id:
            return None
        limits = provider.limits(row.model, row.learned)
        start = first_size(limits, self._pacer.live_workers(), is_engine=bool(provider.engine))
        maximum = min(limits.concurrency or self.load.limit, self.load.limit)
        context = LaneContext(
            provider, row.model, provider.card(row.model, row.learned), provider.price(row.model), world.clock,
            self._schemas, world.settings.output_ascii,
        )  # fmt: skip
        adapter, engine = self._adapter(name), self.engine(name)
        pace = self._pacer.lane(
            name, row.key_id, row.model, limits, counters=row.counters, found=row.learned.get("found")
        )
        parts = LaneParts(
            context, pace, Window(start=min(start, maximum), maximum=maximum), adapter,
            self._retries.setdefault(name, RetryBudget()), self._recorder, self.load, pump, self._read_body, engine,
        )  # fmt: skip
        lane = Lane(row, parts)
        if engine is not None:
            engine.attach(lane)
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
