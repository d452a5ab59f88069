"""The pump: the one loop of a worker process that claims, keeps lanes full, watches, renews, gives back.

Owns: Pump — which lanes are open here, when to claim, what a cancel, pause, seal or lost lease does, and
the order of a drain. Bells only shorten a wait: it looks into the database every few seconds by itself.
May not touch: calls (lane.py), SQL (storage). All blocking work runs in a few threads.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from sqlalchemy.exc import SQLAlchemyError

from batch.domain.errors import Unavailable
from batch.operations.world import World
from batch.storage.claims import OpenLine, SliceClaim, claim_slices, load_open_lines
from batch.storage.lanes import LaneRow, get_lanes
from batch.storage.leases import give_back_if_held
from batch.storage.rescues import wake_slices
from batch.storage.results import GroupReport
from batch.storage.watch import LanePause, claimable_lanes, watch_batches, watch_pauses
from batch.telemetry import emit
from workers.lane import Lane
from workers.lane_maker import LaneMaker
from workers.lane_news import LaneNews
from workers.leases import HeldSlice, Leases
from workers.pacer import Pacer
from workers.pacer_source import Pause
from workers.recorder import Group, Recorder

T = TypeVar("T")

POLL_S = (2.0, 5.0)          # between two looks for work, jittered
CONTROL_S = 1.0
KEEP_S = 0.25                # write-backs and renewals
LINES_AHEAD = 4_000          # unsent lines held per lane, at most
SECONDS_AHEAD = 20.0
DB_THREADS = 3
RECORD_MARGIN_S = 4.0        # of drain_s is kept for recording and giving back


class Pump:
    """Lives on the event loop of one process. `ring` may be called from any thread."""

    def __init__(
        self, world: World, owner: str, queues: list[str], maker: LaneMaker, recorder: Recorder, pacer: Pacer
    ) -> None:
        self.lanes: dict[int, Lane] = {}
        self.unserved: set[int] = set()  # lanes whose provider or key this process does not know
        self.leases = Leases(world.db, owner, world.clock)
        self.is_stopping = False
        self._world = world
        self._owner = owner
        self._queues = queues
        self._maker = maker
        self._recorder = recorder
        self._clock = world.clock
        self._loop = asyncio.get_running_loop()
        self._threads = ThreadPoolExecutor(DB_THREADS, thread_name_prefix="pump-db")
        self._wanted: set[int] = set()
        self._wake = asyncio.Event()
        self._returning: set[HeldSlice] = set()
        self.news = LaneNews(world, pacer, self)
        self._tasks: set[asyncio.Task[Any]] = set()

    # life

    def start(self) -> None:
        for loop in (self._claim_loop, self._control_loop, self._keep_loop):
            self.spawn(loop())

    def ring(self, lane_id: int) -> None:
        """There may be work in this lane. From any thread."""
        self._loop.call_soon_threadsafe(self._want, lane_id)

    async def drain(self, within_s: float) -> None:
        """Stop claiming, give back what is unsent, wait for calls in flight, record, give back the rest."""
        self.is_stopping = True
        self._wake.set()
        until = self._clock.monotonic() + within_s
        for held in self.leases:
            self._stop(held, "draining")
        await self._return_all()
        while self._in_flight() and self._clock.monotonic() < until - RECORD_MARGIN_S:
            await self._clock.sleep_async(0.02)
        for held in self.leases:
            self.lanes[held.claim.lane_id].abort(held)
        while (self._recorder.waiting_rows or self._in_flight()) and self._clock.monotonic() < until - 1.0:
            await self._clock.sleep_async(0.02)
        await self._return_all()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._threads.shutdown(wait=False, cancel_futures=True)

    def after_record(self, group: Group, report: GroupReport) -> None:
        """The recorder has committed a group (told through the loop)."""
        for row in group.rows:
            held = self.leases.get(row.slice_id)
            if held is not None:
                held.recording.discard(row.line)
        for claim in group.closing:
            held = self.leases.get(claim.slice_id)
            if held is not None and held.claim is claim:
                self.leases.remove(held)
        for batch_id in report.sealed_batches:
            self.spawn(self.in_thread(self._world.bells.finalize, batch_id))
        for batch_id in report.paused_batches:
            for held in self.leases:
                if held.claim.batch_id == batch_id:
                    self._stop(held, "paused")
        for lane in self.lanes.values():
            lane.fill()

    # claiming

    async def _claim_loop(self) -> None:
        while not self.is_stopping:
            wanted, self._wanted = self._wanted, set()
            self._wake.clear()
            if not wanted:
                wanted = await self._look_for_work()
            for lane_id in wanted:
                if not self.is_stopping:
                    await self.guarded("claim", self._claim(lane_id))
            if not self._wanted:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._clock.uniform(*POLL_S)):
                        await self._wake.wait()

    async def _look_for_work(self) -> set[int]:
        """What no bell told: ready lanes, slices whose waiting time is over."""

        def look() -> set[int]:
            wake_slices(self._world.db)
            with self._world.db.read() as conn:
                return set(claimable_lanes(conn, self._queues))

        found = await self.guarded("look", self.in_thread(look))
        for lane in self.lanes.values():
            lane.is_dry = False
        return found or set()

    async def _claim(self, lane_id: int) -> None:
        lane = self.lanes.get(lane_id) or await self._open_lane(lane_id)
        if lane is None or self.is_stopping:
            return
        if lane.blocked_until > self._clock.now() or not self._recorder.has_room or not lane.limit:
            return
        want = self._lines_wanted(lane)
        held_batches = self.leases.batch_ids(lane_id)
        started = self._clock.monotonic()
        may_take_solo, price = not self.leases.has_solo, lane.context.price

        def claim() -> list[tuple[SliceClaim, list[OpenLine]]]:
            claims = claim_slices(
                self._world.db, lane_id, self._owner, want_lines=want, held_batches=held_batches,
                cost_of=price.of if price else None, may_take_solo=may_take_solo,
            )  # fmt: skip
            if not claims:
                return []
            with self._world.db.read() as conn:
                return [(claim, load_open_lines(conn, claim)) for claim in claims]

        taken = await self.in_thread(claim)
        lane.is_dry = not taken and (want > 0 or lane.is_dry)
        for one, items in taken:
            self._take(lane, one, items, started)
        if taken and self._lines_wanted(lane) > 0 and not lane.circuit.is_down:
            self._want(lane_id)  # while it is down, lines that may go elsewhere are taken a round at a time

    def _take(self, lane: Lane, claim: SliceClaim, items: list[OpenLine], started: float) -> None:
        share = claim.reserved_usd / len(items) if items else 0.0
        held = HeldSlice(claim, started, {item.line for item in items}, reserved_usd=share)
        self.leases.add(held)
        if not items:  # everything in it has a result already
            held.is_closing = True
            self._recorder.put(None, claim)
            return
        lane.add(held, items)
        if self.is_stopping:
            self._stop(held, "draining")

    def _lines_wanted(self, lane: Lane) -> int:
        """At most 20 s of work ahead: by the known limit, else by what the lane has been doing."""
        bound = lane.parts.pace.limits.requests_per_second_bound
        if bound is not None:
            target = max(1, min(LINES_AHEAD, int(bound * SECONDS_AHEAD)))
        else:
            target = int(min(LINES_AHEAD, max(2 * lane.limit, lane.rate * SECONDS_AHEAD)))
        missing = target - lane.queue.unsent
        return missing if missing * 2 >= target or lane.queue.unsent < lane.limit else 0

    async def _open_lane(self, lane_id: int) -> Lane | None:
        def read() -> list[LaneRow]:
            with self._world.db.read() as conn:
                return get_lanes(conn, [lane_id])

        lane = next((self._maker.make(row, self) for row in await self.in_thread(read)), None)
        if lane is None:
            self.unserved.add(lane_id)
        else:
            self.lanes[lane_id] = lane
        return lane

    def _want(self, lane_id: int) -> None:
        self._wanted.add(lane_id)
        self._wake.set()

    # control: cancel, pause, seal, lane pauses

    async def _control_loop(self) -> None:
        while True:
            await self._clock.sleep_async(CONTROL_S)
            await self.guarded("control", self._control())

    async def _control(self) -> None:
        batch_ids, lane_ids = self.leases.batch_ids(), list(self.lanes)
        for lane in self.lanes.values():
            lane.measure_rate(CONTROL_S)
        if not lane_ids:
            return

        def read() -> tuple[Any, Any]:
            with self._world.db.read() as conn:
                return watch_batches(conn, batch_ids) if batch_ids else {}, watch_pauses(conn, lane_ids)

        reasons, pauses = await self.in_thread(read)
        for held in self.leases:
            reason = reasons.get(held.claim.batch_id)  # of one claimed meanwhile nothing is known
            if reason is not None:
                self._stop(held, reason)
            if reason == "sealed":
                self.lanes[held.claim.lane_id].abort(held)  # answers have no more use
        for pause in pauses:
            self._obey_pause(self.lanes[pause.lane_id], pause)

    def _obey_pause(self, lane: Lane, pause: LanePause) -> None:
        """What the database says of the lane now."""
        now, pace = self._clock.now(), lane.parts.pace
        if pause.left_s > 0:
            pace.pause(Pause(now + pause.left_s, pause.code or "", pause.reason or ""))
            if now + pause.left_s > lane.blocked_until + 1.0:
                lane.on_probation = lane.on_probation or pause.code != "person"
                lane.block(now + pause.left_s)
            return
        if pace.paused is not None:
            pace.resume()
        if pause.code is None and lane.on_probation and now >= lane.blocked_until:
            lane.on_probation = False  # another worker's line was answered
            lane.unblock()
        elif lane.blocked_until:
            self.spawn(pace.lift_copies())
            lane.unblock()
            self._want(lane.id)

    def _stop(self, held: HeldSlice, reason: str) -> None:
        """Nothing new of this slice is sent; what is unsent goes back, what is in flight lands."""
        if held.stopped == reason:
            return
        held.stopped = reason
        self.lanes[held.claim.lane_id].withdraw(held)

    # keeping: renewals and write-backs

    async def _keep_loop(self) -> None:
        while True:
            await self._clock.sleep_async(KEEP_S)
            await self.guarded("renew", self._renew())
            await self.guarded("give_back", self._return_all())

    async def _renew(self) -> None:
        due = self.leases.due()
        if not due:
            return
        started, kept = await self.in_thread(self.leases.renew, due)
        for held in self.leases.renewed(due, started, kept):
            emit("lease_lost", reason="renewal", slice_id=held.claim.slice_id, batch_id=held.claim.batch_id)
            self.lanes[held.claim.lane_id].withdraw(held)  # calls in flight land: a success is still worth keeping
            held.released.clear()
            self._returning.discard(held)
            self.leases.remove(held)

    async def _return_all(self) -> None:
        """Write back what lanes have let go, a slice at a time."""
        for held in list(self._returning):
            self._returning.discard(held)
            if held.released and self.leases.get(held.claim.slice_id) is held:
                await self._return(held)

    async def _return(self, held: HeldSlice) -> None:
        released, held.released = held.released, []
        keep = [line for line in held.claim.lines if line in held.open or line in held.recording]
        held.is_returning = True
        try:
            is_held = await self.in_thread(
                lambda: give_back_if_held(self._world.db, self._owner, held.claim, released, keep=keep)
            )
        except (SQLAlchemyError, Unavailable):
            held.released = released + held.released
            self._returning.add(held)
            raise
        finally:
            held.is_returning = False
        if not is_held:
            emit("lease_lost", reason="give_back", slice_id=held.claim.slice_id, batch_id=held.claim.batch_id)
        if not is_held or not keep:
            self.leases.remove(held)
        elif held.is_finished and not held.is_closing:
            held.is_closing = True
            self._recorder.put(None, held.claim)

    # what lanes ask of the pump; what they learn goes to `news`

    def give_back_soon(self, held: HeldSlice) -> None:
        self._returning.add(held)

    def ask_for_lines(self, lane: Lane) -> None:
        if not lane.is_dry and self._lines_wanted(lane) > 0:
            self._want(lane.id)

    def withdraw_all(self, lane: Lane) -> None:
        """The lane stands for a while: its lines go back, for other providers and for other workers."""
        for held in self.leases.of_lane(lane.id):
            lane.withdraw(held)

    # small things

    def _in_flight(self) -> int:
        return sum(lane.in_flight for lane in self.lanes.values())

    async def in_thread(self, work: Callable[..., T], *args: Any) -> T:
        return await self._loop.run_in_executor(self._threads, work, *args)

    async def guarded(self, name: str, work: Coroutine[Any, Any, T]) -> T | None:
        """The wall of one piece of the pump's work: reported, and tried again by the next round."""
        try:
            return await work
        except Exception as error:
            emit("storage_retry", work=name, error=type(error).__name__)
            return None

    def spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
