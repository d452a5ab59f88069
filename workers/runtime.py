"""One world per process: event loop, HTTP clients, pump, pacer, recorder; made late, drained on SIGTERM.

Owns: CallsRuntime — the thread with the loop, the order of start and end. Everything is made in the
process that uses it, never before a fork.
May not touch: what the parts do.
"""

from __future__ import annotations

import asyncio
import gc
import socket
import threading
from collections.abc import Sequence

import uvloop
from redis.asyncio import Redis

from batch.clock import SYSTEM_CLOCK
from batch.operations.world import open_world
from batch.settings import Settings
from batch.storage.results import GroupReport, record_group
from batch.telemetry import emit
from workers.heartbeat import Heartbeat
from workers.lane_maker import LaneMaker
from workers.life import Life
from workers.pacer import Pacer
from workers.pacer_steps import Steps
from workers.pump import Pump
from workers.recorder import Group, Recorder

START_S = 30.0
GC_THRESHOLDS = (20_000, 50, 100)


class CallsRuntime:
    """start() → ring() … → stop(). Safe to call from any thread."""

    def __init__(self, settings: Settings, queues: Sequence[str]) -> None:
        self.name = f"{socket.gethostname()}-{SYSTEM_CLOCK.randbytes(6).hex()}"
        self._settings = settings
        self._queues = list(queues)
        self._started = threading.Event()
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._finish: asyncio.Event | None = None
        self._pump: Pump | None = None
        self._thread = threading.Thread(target=self._main, name="calls", daemon=True)

    def start(self) -> None:
        """Returns when the pump runs; raises what kept it from starting."""
        self._thread.start()
        self._started.wait(START_S)
        if self._failure is not None:
            raise self._failure
        emit("worker_started", worker=self.name, queues=self._queues)

    def ring(self, lane_id: int) -> None:
        """A bell: look into this lane now."""
        if self._pump is not None and not self._stop.is_set():
            self._pump.ring(lane_id)

    def begin_stop(self) -> None:
        """Stop claiming and start to drain; returns at once. Twice is harmless."""
        if not self._stop.is_set() and self._loop is not None and self._finish is not None:
            self._stop.set()
            self._loop.call_soon_threadsafe(self._finish.set)

    def stop(self) -> None:
        """Drain, and return when everything that landed is recorded and the rest is given back."""
        self.begin_stop()
        self._thread.join(self._settings.drain_s + 5.0)
        emit("worker_stopped", worker=self.name, drained=not self._thread.is_alive())

    def _main(self) -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._live())
        except BaseException as error:  # the wall of the loop's thread: start() raises it, or it is reported
            self._failure = error
            if self._started.is_set():
                emit("attempt_failed", error=type(error).__name__, where="runtime")
        finally:
            self._started.set()

    async def _live(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._finish = asyncio.Event()
        world = open_world(self._settings)
        recorder = Recorder(lambda rows, closing: record_group(world.db, rows, self.name, closing), self._told)
        redis = Redis.from_url(self._settings.resolved_redis_url, socket_timeout=5.0, socket_connect_timeout=2.0)
        heartbeat = Heartbeat(world, self.name, self._queues)
        pacer = Pacer(Steps(redis), worker=self.name, live_workers=heartbeat.live_workers)
        maker = LaneMaker(world, pacer, recorder)
        pump = self._pump = Pump(world, self.name, self._queues, maker, recorder, pacer)
        life = Life(self._settings.resolved_database_url, self.name)
        recorder.start()
        pump.start()
        maker.run_engines(self._queues, pump.news.engine_failed)
        beating = self._loop.create_task(heartbeat.run(pump, maker.engine_facts))
        self._started.set()
        _spare_the_collector()
        try:
            await self._finish.wait()
            await pump.drain(self._settings.drain_s)
        finally:
            beating.cancel()
            await asyncio.gather(beating, return_exceptions=True)
            await asyncio.to_thread(recorder.stop, 2.0)
            await asyncio.to_thread(heartbeat.forget, pump)
            if not pump.leases:
                life.end()
            await pacer.close()
            await maker.close()
            await redis.aclose()
            world.close()

    def _told(self, group: Group, report: GroupReport) -> None:
        """In the recorder's thread: pass it on to the loop."""
        if self._loop is not None and self._pump is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._pump.after_record, group, report)


def _spare_the_collector() -> None:
    """Thousands of short-lived objects a second and half a million that stay: look at the latter rarely."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
