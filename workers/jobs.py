"""The jobs of a jobs process: ingest, finalize, sweeps. Synchronous work; no event loop here.

Owns: Jobs — its world, the timer by which this process sweeps without any beat, stopping between chunks.
May not touch: what the operations do.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

from batch.clock import SYSTEM_CLOCK
from batch.operations.finalize import finalize_batch
from batch.operations.ingest import ingest_batch
from batch.operations.world import World, open_world
from batch.settings import RENEW_EVERY_S, Settings
from batch.storage.sweeps import due_sweeps, ensure_sweeps, finish_sweep, take_if_due
from batch.storage.workers import beat_worker, forget_worker
from batch.telemetry import emit
from workers.life import Life
from workers.sweeps import SWEEPS, run_sweep

TICK_S = 1.0
AWAY_S = RENEW_EVERY_S  # without an answer of the database
BEAT_EVERY_TICKS = 10
STOP_S = 25.0


class Jobs:
    """One per process; its methods are called by Celery's threads and by its own timer."""

    def __init__(self, settings: Settings) -> None:
        self.owner = f"{socket.gethostname()}-jobs-{SYSTEM_CLOCK.randbytes(6).hex()}"
        self._world: World = open_world(settings)
        self._life = Life(settings.resolved_database_url, self.owner)
        self._clock = self._world.clock
        self._stopping = threading.Event()
        self._running = 0
        self._asking_since: float | None = None
        self._patient_until = 0.0
        self._idle = threading.Condition()

    def start_timer(self) -> None:
        """Sweep by our own timer from now on."""
        threading.Thread(target=self._tick_for_ever, name="sweeps", daemon=True).start()

    def ingest(self, batch_id: int) -> None:
        self._guarded("ingest", lambda: ingest_batch(self._world, batch_id, self.owner, self._stopping.is_set))

    def finalize(self, batch_id: int) -> None:
        self._guarded("finalize", lambda: finalize_batch(self._world, batch_id, self.owner))

    def sweep(self, name: str, *, now: bool = False) -> None:
        """Run a sweep when it is due, or at once; another process that runs it is left alone."""
        if name not in SWEEPS or self._stopping.is_set():
            return
        if now:
            self._guarded(name, lambda: emit("sweep_done", name=name, report=run_sweep(name, self._world, self.owner)))
        else:
            self._guarded(name, lambda: self._sweep_if_due(name))

    def begin_stop(self) -> None:
        self._stopping.set()

    def stop(self) -> None:
        """Wait for what runs: an ingest stops at its next chunk, a finalize is short or is taken over."""
        self.begin_stop()
        with self._idle:
            self._idle.wait_for(lambda: not self._running, STOP_S)
        self._guarded("forget_worker", self._forget)
        self._world.close()
        if not self._running:
            self._life.end()

    def _tick_for_ever(self) -> None:
        ticks = 0
        while not self._stopping.wait(self._clock.uniform(0.8, 1.2) * TICK_S):
            self._guarded("tick", self._tick if ticks % BEAT_EVERY_TICKS else self._tick_and_beat)
            ticks += 1

    def _tick_and_beat(self) -> None:
        ensure_sweeps(self._world.db, SWEEPS)
        with self._world.db.write() as conn:
            beat_worker(conn, self.owner, "jobs", ["jobs"], {})
        self._tick()

    def _tick(self) -> None:
        self._asking_since = self._asking_since or self._clock.monotonic()
        with self._world.db.read() as conn:
            due = due_sweeps(conn, SWEEPS)
        if not due:
            self._asking_since = None
        for name in due:
            if not self._stopping.is_set():
                self.sweep(name)

    def _sweep_if_due(self, name: str) -> None:
        """Once taken, the row is ours, and goes back whatever happens."""
        if not self._take(name):
            return
        report = "failed"
        try:
            if name == "expire_leases" and self._clock.monotonic() < self._patient_until:
                report = "waits for holders to renew"
            else:
                report = run_sweep(name, self._world, self.owner)
            emit("sweep_done", name=name, report=report)
        finally:
            finish_sweep(self._world.db, name, every_s=SWEEPS[name], report=report)

    def _take(self, name: str) -> bool:
        """While the database was away nobody could renew: holders that live come first when it is back."""
        self._asking_since = self._asking_since or self._clock.monotonic()
        is_taken = take_if_due(self._world.db, name, every_s=SWEEPS[name])
        if self._clock.monotonic() - self._asking_since > AWAY_S:
            self._patient_until = self._clock.monotonic() + RENEW_EVERY_S
        self._asking_since = None
        return is_taken

    def _forget(self) -> None:
        with self._world.db.write() as conn:
            forget_worker(conn, self.owner)

    def _guarded(self, name: str, work: Callable[[], object]) -> None:
        """The wall of one job: reported; a sweep finds what was left and it is done again."""
        with self._idle:
            self._running += 1
        try:
            work()
        except Exception as error:
            emit("sweep_failed", name=name, error=type(error).__name__, detail=str(error)[:200])
        finally:
            with self._idle:
                self._running -= 1
                self._idle.notify_all()
