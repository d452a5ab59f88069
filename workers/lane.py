"""One lane's runners: they keep its window full across slices, with no barrier at a slice's end.

Owns: Lane — which line is next, how many calls are in flight, lines that wait for a retry, what happens
to each step of a line. A runner is one coroutine that makes call after call; a waiting line has none.
May not touch: the database. Results go to the recorder; everything else to the pump.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from batch.completions.calls import Call
from batch.domain.circuit import Circuit
from batch.domain.outcome import Outcome, Success
from batch.domain.retry import Action, LaneFacts
from batch.providers.adapter import budget_scope
from batch.providers.learned import Evidence
from batch.settings import GIVE_BACK_ABOVE_S
from batch.storage.claims import OpenLine
from batch.storage.lanes import LaneRow
from batch.storage.leases import Release
from workers.attempt import Attempt
from workers.estimates import Estimates
from workers.executor import LineRun, Step
from workers.leases import HeldSlice
from workers.line_queue import LineQueue
from workers.pacer_lane import USED_UP
from workers.pacer_source import LanePaused, Pause
from workers.tally import Tally

if TYPE_CHECKING:
    from workers.lane_maker import LaneParts

BIG_BODY_BYTES = 1_000_000  # parsed off the loop
ASK_EVERY_LINES = 64        # between two looks whether to claim more
WAITING_PER_WINDOW = 4      # lines that may wait for a retry here; the rest wait in the database
_NO_FACTS = LaneFacts()     # a success asks for none


class Lane:
    """Made on the event loop, used only there."""

    def __init__(self, row: LaneRow, parts: LaneParts) -> None:
        self.id = row.id
        self.learned = dict(row.learned)
        self.parts = parts
        self.context = parts.context
        self.evidence = Evidence()
        self.estimates = Estimates(row.learned)
        self.circuit = Circuit()
        self.queue = LineQueue()
        self.finished = 0          # lines that ended here, for the rate
        self.tally = Tally()
        self.rate = 0.0            # lines a second, smoothed by the pump
        self.is_dry = False        # the last claim found nothing
        self.on_probation = row.pause_code is not None and row.pause_code != "person"
        self.succeeded_at: float | None = row.succeeded_at / 1000 if row.succeeded_at else None
        self.refused_scopes: dict[str, float] = {}
        self.blocked_until = 0.0   # Unix seconds
        self._urgent: deque[tuple[LineRun, Call]] = deque()
        self._waiting: dict[tuple[LineRun, int], tuple[Call, asyncio.TimerHandle]] = {}
        self._runners: set[asyncio.Task[None]] = set()
        self._pacing: set[asyncio.Task[None]] = set()
        self._attempt = Attempt(self)
        self._admit_at = 0.0       # monotonic: the breaker's next look
        self._loop = asyncio.get_running_loop()
        self._clock = parts.context.clock

    # lines in

    def add(self, held: HeldSlice, items: list[OpenLine]) -> None:
        """Take a claimed slice's open lines."""
        self.queue.add(held, items)
        if self.blocked_until - self._clock.now() > GIVE_BACK_ABOVE_S / 3:
            self.withdraw(held)  # claimed while the pause began
        self.fill()

    def fill(self) -> None:
        """Start as many runners as there is work and room for."""
        while self._may_run() and (self._urgent or self.queue.unsent) and len(self._runners) < self.limit:
            task = self._loop.create_task(self._run())
            self._runners.add(task)
            task.add_done_callback(self._runners.discard)
            if len(self._runners) >= self.queue.unsent + len(self._urgent):
                return

    @property
    def limit(self) -> int:
        """How many runners may run: the window, one alone until a lane that was refused answers again, and
        none until a managed engine has started."""
        if self.parts.engine is not None and self.parts.engine.is_starting:
            return 0
        return 1 if self.on_probation else self.parts.window.size

    def wake(self) -> None:
        """A replica is back: whoever waits for the circuit need not."""
        self._admit_at = 0.0
        self.circuit.try_at = self._clock.monotonic()
        self.parts.pump.ask_for_lines(self)
        self.fill()

    def note_load(self, running: float, waiting: float, cache_used: float | None, is_pressed: bool) -> None:
        """What the engine says of itself."""
        self.parts.window.on_gauge(
            self._clock.monotonic(), running=running, waiting=waiting, cache_used=cache_used, is_pressed=is_pressed
        )
        self.fill()

    @property
    def in_flight(self) -> int:
        return len(self._attempt.calls)

    # lines out

    def withdraw(self, held: HeldSlice) -> None:
        """Stop sending this slice's lines: unsent and waiting ones are released, calls in flight land."""
        self.release_tail(held, len(held.claim.lines))
        for key, (call, timer) in list(self._waiting.items()):
            if key[0].held is held:
                timer.cancel()
                del self._waiting[key]
                self._give_up(key[0], call)
        urgent, self._urgent = self._urgent, deque()
        for line, call in urgent:
            if line.held is held:
                self._give_up(line, call)
            else:
                self._urgent.append((line, call))
        for task in list(self._pacing):
            task.cancel()

    def abort(self, held: HeldSlice) -> None:
        """Cut this slice's calls in flight; their answers are lost, the lines released."""
        for task, line in list(self._attempt.calls.items()):
            if line.held is held:
                task.cancel()

    def measure_rate(self, seconds: float) -> None:
        """Once a second: smooth the lines that ended into a rate."""
        now = self.finished / seconds
        self.rate = now if now > 2 * self.rate else self.rate + 0.3 * (now - self.rate)
        self.finished = 0

    def release_tail(self, held: HeldSlice, count: int) -> int:
        """Let the last unsent lines of a slice go, as they came. Returns how many."""
        tail = self.queue.take_tail(held, count)
        for item in tail:
            self._release(held, Release(item.line, item.progress, item.wait_s))
        return len(tail)

    def block(self, until: float) -> None:
        """No new call before `until` (Unix seconds); a long pause sends the lines back."""
        self.blocked_until = until
        wait_s = until - self._clock.now()
        if wait_s > GIVE_BACK_ABOVE_S / 3:
            self.parts.pump.withdraw_all(self)
        self._loop.call_later(min(max(0.0, wait_s), 3600.0), self.fill)

    def unblock(self) -> None:
        self.blocked_until = 0.0
        self.fill()

    # runners

    def _may_run(self) -> bool:
        parts = self.parts
        return (
            parts.recorder.has_room
            and parts.load.in_flight < parts.load.limit
            and (self.blocked_until == 0.0 or self._clock.now() >= self.blocked_until)
            and (self._admit_at == 0.0 or self._clock.monotonic() >= self._admit_at)
        )

    async def _run(self) -> None:
        try:
            while (work := self._next()) is not None:
                line, call = work
                if call is None:
                    call = await self._begin(line)
                if call is not None:
                    await self._make(line, call)
        except asyncio.CancelledError:
            pass  # withdrawn while pacing, or aborted: _make has put the line in order
        finally:
            task = asyncio.current_task()
            if task is not None:
                self._runners.discard(task)

    def _next(self) -> tuple[LineRun, Call | None] | None:
        """The next call to make, or a line to begin; None ends this runner."""
        if not self._may_run() or len(self._runners) > self.limit or self._is_paced_out():
            return None
        now = self._clock.monotonic()
        while self._urgent:
            line, call = self._urgent.popleft()
            if line.held.may_send(now):
                return line, call
            self._give_up(line, call)
        while (waiting := self.queue.next()) is not None:
            held, item = waiting
            if self.queue.unsent % ASK_EVERY_LINES == 0:
                self.parts.pump.ask_for_lines(self)
            line = LineRun(held, item, self.context)
            if not held.may_send(now) or (held.ends_at is not None and now >= held.ends_at):
                self.apply(line, line.let_go())
            elif item.wait_s > 0:
                self._loop.call_later(item.wait_s, self._wake, held, item)
                item.wait_s = 0.0
                self.queue.note_end(held.claim.batch_id)
            else:
                if len(self._runners) < self.limit and self.queue.unsent:
                    self.fill()
                return line, None
        return None

    def _is_paced_out(self) -> bool:
        worth = self.parts.pace.waiting_worth
        return worth > 0 and len(self._pacing) >= worth

    def _wake(self, held: HeldSlice, item: OpenLine) -> None:
        if held.stopped is None:
            self.add(held, [item])
        else:
            self._release(held, Release(item.line, item.progress))

    async def _begin(self, line: LineRun) -> Call | None:
        """Plan a line; its first call, or None when it ended or left at once."""
        item = line.item
        try:
            if item.body is None:
                raw = await asyncio.to_thread(self.parts.read_body, line.held, item)
            else:
                raw, item.body = item.body, None  # the answering keeps what it needs
            if self.refused_scopes and (hold_s := self._scope_hold_s(raw)) > 0:
                return self.apply(line, line.let_go(wait_s=hold_s))
            if len(raw) > BIG_BODY_BYTES:
                step = await asyncio.to_thread(line.begin, raw)
            else:
                step = line.begin(raw)
        except Exception as error:  # the wall of one line: it is reported, the others go on
            step = line.fail_unexpectedly(error)
        return self.apply(line, step)

    async def _make(self, line: LineRun, call: Call) -> None:
        task = asyncio.current_task()
        assert task is not None
        wait_s = self.circuit.admit(self._clock.monotonic())
        if wait_s > 0 and line.can_hop:
            line.take_back(call)
            self.apply(line, line.hop())
            return
        if wait_s > 0:
            self._urgent.appendleft((line, call))
            self._admit_at = self._clock.monotonic() + wait_s
            self._loop.call_later(wait_s, self.fill)
            return
        self._pacing.add(task)
        try:
            permit = await self._attempt.permit(line, call)
        except LanePaused as pause:
            self.circuit.abandon_probe()
            self._urgent.appendleft((line, call))
            if pause.code == USED_UP:  # nobody wrote it down yet
                self.parts.pump.news.pause(self, Pause(pause.until, pause.code, pause.reason))
            self.block(pause.until)
            return
        except asyncio.CancelledError:
            self.circuit.abandon_probe()
            self._hand_back(line, call)
            raise
        finally:
            self._pacing.discard(task)
        if not line.held.may_send(self._clock.monotonic()):
            self.parts.pace.done(permit, actual_tokens=0)
            self.circuit.abandon_probe()
            self._hand_back(line, call)
            return
        try:
            outcome = await self._attempt.call(line, call, permit, task)
        except asyncio.CancelledError:
            self.apply(line, line.let_go_now())
            raise
        await self._settle(line, call, outcome)

    async def _settle(self, line: LineRun, call: Call, outcome: Outcome) -> None:
        try:
            if line.lock is not None or line.needs_thread(outcome):
                line.lock = line.lock or asyncio.Lock()
                async with line.lock:  # a sibling's answer waits: a line is not safe for threads
                    step = await asyncio.to_thread(line.settle, call, outcome, self.facts())
            else:
                facts = _NO_FACTS if isinstance(outcome, Success) else self.facts()
                step = line.settle(call, outcome, facts)
        except Exception as error:  # the wall of one line
            step = line.fail_unexpectedly(error)
        first = self.apply(line, step)
        if first is not None:
            self._urgent.appendleft((line, first))

    def _hand_back(self, line: LineRun, call: Call) -> None:
        """A call that was not made: later, if the slice and the lane still stand; else the line goes back."""
        if line.held.may_send(self._clock.monotonic()) and self.blocked_until <= self._clock.now():
            self._urgent.appendleft((line, call))
            self._loop.call_soon(self.fill)
        else:
            self._give_up(line, call)

    def _give_up(self, line: LineRun, call: Call) -> None:
        line.take_back(call)
        self.apply(line, line.let_go())

    def _scope_hold_s(self, raw_body: bytes) -> float:
        """How long the budget that this line draws on is known to be used up; 0.0: it may go."""
        until = self.refused_scopes.get(budget_scope(raw_body) or "", 0.0)
        return max(0.0, until - self._clock.now())

    def facts(self) -> LaneFacts:
        scopes: frozenset[str] = frozenset()
        if self.refused_scopes:
            now = self._clock.now()
            scopes = frozenset(scope for scope, until in self.refused_scopes.items() if until > now)
        return LaneFacts(self.succeeded_at, self.circuit.is_down, scopes)

    # steps

    def apply(self, line: LineRun, step: Step) -> Call | None:
        """Do what a step says; the first of its calls comes back to be made at once."""
        if step.learned:
            self.parts.pump.news.note_support(self, step.learned)
        if (decision := step.pause) is not None:
            pause = Pause(decision.until or 0.0, decision.code or "paused", decision.reason)
            self.parts.pump.news.pause(self, pause, whole_key=decision.action is Action.PAUSE_KEY)
        if step.scope is not None:
            self.refused_scopes[step.scope[0]] = step.scope[1]
        if step.result is not None:
            self.finished += 1
            self.tally.add(step.result)
            self._finish(line, step)
        elif step.release is not None:
            self.queue.note_end(line.held.claim.batch_id)
            self._release(line.held, step.release)
        elif step.calls:
            if step.delay_s > 0 or step.spends:
                self._wait(line, step)
                return None
            self._urgent.extend((line, call) for call in step.calls[1:])
            if len(step.calls) > 1:
                self._loop.call_soon(self.fill)
            return step.calls[0]
        return None

    def _finish(self, line: LineRun, step: Step) -> None:
        assert step.result is not None
        held = line.held
        held.open.discard(line.item.line)
        held.recording.add(line.item.line)
        closing = held.claim if held.is_finished else None
        if closing is not None:
            held.is_closing = True
        self.parts.recorder.put(step.result, closing)
        self.queue.note_end(held.claim.batch_id)

    def _release(self, held: HeldSlice, release: Release) -> None:
        held.open.discard(release.line)
        held.released.append(release)
        self.parts.pump.give_back_soon(held)

    def _wait(self, line: LineRun, step: Step) -> None:
        """A retry's time: here without a runner and without a permit, or in the database when too many wait."""
        delay_s = step.delay_s
        too_many = len(self._waiting) >= WAITING_PER_WINDOW * max(8, self.parts.window.size)
        if delay_s > GIVE_BACK_ABOVE_S or (too_many and delay_s > 1.0):
            for call in step.calls:
                line.take_back(call)
            self.apply(line, line.let_go(wait_s=delay_s))
            return
        for call in step.calls:
            timer = self._loop.call_later(delay_s, self._retry, line, call, step.spends)
            self._waiting[line, id(call)] = (call, timer)

    def _retry(self, line: LineRun, call: Call, spends: bool) -> None:
        wait_s = self.parts.retries.take(self._clock.monotonic()) if spends else 0.0
        if wait_s > 0:  # the provider's retry budget is used up: ask again, not all at once
            timer = self._loop.call_later(wait_s + self._clock.uniform(0.0, 1.0), self._retry, line, call, True)
            self._waiting[line, id(call)] = (call, timer)
            return
        self._waiting.pop((line, id(call)), None)
        self._urgent.append((line, call))
        self.fill()
