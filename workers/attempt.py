"""One call: its permit, the exchange, and what everyone around learns from its outcome.

Owns: the order of it — permit just before the send, window, breaker, settling, metrics. Makes one call;
whether another follows is the line's matter (executor.py). Steps: pace, call.
May not touch: lines' states, the database.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from batch.completions.calls import Call
from batch.domain.outcome import Failure, FailureKind, Outcome, Success, Usage, read_usage
from batch.telemetry import bind, emit
from workers.executor import LineRun
from workers.pacer_found import REFUSALS
from workers.pacer_lane import Permit
from workers.pacer_source import LanePaused

if TYPE_CHECKING:
    from workers.lane import Lane

LOOK_AGAIN_S = 2.0  # while another worker tries the lane after a pause
_A_WAIT_S = 0.001  # shorter ones are not worth a metric's cost
_YOUNG, _TAUGHT_BY = 100, 8  # where no limit counts tokens, one answer in eight teaches once so many were seen


class Attempt:
    """A lane's way of calling. `calls` are the tasks in flight, with their lines."""

    def __init__(self, lane: Lane) -> None:
        self.calls: dict[asyncio.Task[None], LineRun] = {}
        self._lane = lane
        self._parts = parts = lane.parts
        self._clock = parts.context.clock
        self._ended: dict[str, Callable[..., None]] = {}
        self._labels = {"provider": parts.context.provider.name, "model": parts.context.model}
        self._waited = bind("pace_waited", **self._labels)
        self._answers = 0

    async def permit(self, line: LineRun, call: Call) -> Permit:
        """Raises LanePaused."""
        pace, lane = self._parts.pace, self._lane
        if lane.on_probation and not await pace.may_probe():
            raise LanePaused(self._clock.now() + LOOK_AGAIN_S, "probing", "another worker tries it")
        tokens = output = 0
        if pace.limits.counts_tokens:
            tokens, output = lane.estimates.charge(
                pace.limits, line.held.claim.batch_id, line.item.est_input, int(line.item.est_output * call.share),
                call.body, len(call.indices),
            )  # fmt: skip
        began = self._clock.monotonic()
        permit = await pace.permit(tokens, output)
        waited_s = self._clock.monotonic() - began
        if waited_s > _A_WAIT_S:
            self._waited(seconds=waited_s)
        return permit

    async def call(self, line: LineRun, call: Call, permit: Permit, task: asyncio.Task[None]) -> Outcome:
        parts, window = self._parts, self._parts.window
        window.on_start()
        parts.load.in_flight += 1
        self.calls[task] = line
        outcome: Outcome | None = None
        try:
            outcome = await self._exchange(line, call)
        except Exception as error:  # the wall of one attempt: a bug of ours must not look like silence
            outcome = Failure(FailureKind.BAD_ANSWER, f"unexpected {type(error).__name__}", sent=True)
            emit("attempt_failed", error=type(error).__name__, batch_id=line.held.claim.batch_id, line=line.item.line)
        finally:
            del self.calls[task]
            parts.load.in_flight -= 1
            now = self._clock.monotonic()
            if outcome is None:
                window.on_end()
                parts.pace.done(permit)
                self._lane.circuit.abandon_probe()
        self._learn(line, call, outcome, permit, now)
        return outcome

    async def _exchange(self, line: LineRun, call: Call) -> Outcome:
        """One exchange; where an engine has replicas, at the one that suits."""
        parts, claim = self._parts, line.held.claim

        def send(base_url: str | None = None) -> Awaitable[Outcome]:
            return parts.adapter.call(claim.endpoint, call.body, base_url=base_url, stream=call.stream)

        if parts.engine is None:
            return await send()
        tokens = line.item.est_input + int(line.item.est_output * call.share)
        may_repeat = not parts.pace.limits.has_rate
        return await parts.engine.call(send, tokens=tokens, group=claim.prefix, may_repeat=may_repeat)

    def _learn(self, line: LineRun, call: Call, outcome: Outcome, permit: Permit, now: float) -> None:
        parts, lane = self._parts, self._lane
        if isinstance(outcome, Success):
            usage = read_usage(outcome.data.get("usage"))
            parts.window.on_success(now, outcome.latency_s, usage.output_tokens)
            parts.pace.done(
                permit,
                actual_tokens=usage.total_tokens or None,  # a stream without usage keeps what was reserved
                actual_output=usage.output_tokens,
                outcome=outcome,
            )
            if lane.succeeded_at is None or lane.on_probation:
                parts.pump.news.note_first_success(lane)
            lane.succeeded_at = self._clock.now()
            parts.retries.note_success()
            self._answers += 1
            teaches = parts.pace.limits.counts_tokens or self._answers < _YOUNG or self._answers % _TAUGHT_BY == 0
            if teaches and usage.total_tokens:
                self._learn_tokens(line, call, usage, now)
        else:
            if outcome.kind in REFUSALS:
                parts.window.on_refusal(now)
            else:
                parts.window.on_end()
            parts.pace.done(permit, outcome=outcome)
            if outcome.status == 429:
                emit("rate_limited", **self._labels, kind=outcome.kind.value)
        changed = lane.circuit.report(outcome, now, self._clock)
        if changed is not None:
            emit("circuit_changed", **self._labels, state=changed)
            if changed == "closed":
                parts.window.restart(max(1, parts.pace.limits.start_concurrency))
        if outcome.rate_headers:
            parts.pump.news.note_rates(lane, outcome.rate_headers)
        self._tell_end(outcome)

    def _tell_end(self, outcome: Outcome) -> None:
        kind = "success" if isinstance(outcome, Success) else outcome.kind.value
        tell = self._ended.get(kind)
        if tell is None:
            tell = self._ended[kind] = bind("call_ended", **self._labels, kind=kind)
        tell(seconds=outcome.latency_s)

    def _learn_tokens(self, line: LineRun, call: Call, usage: Usage, now: float) -> None:
        """Returned usage corrects the next estimates of the lane and of this batch."""
        item, lane = line.item, self._lane
        lane.estimates.observe(line.held.claim.batch_id, item.est_input, int(item.est_output * call.share), usage)
        patch = lane.estimates.due(now)
        if patch is not None:
            found = self._parts.pace.finder.found.keep()
            self._parts.pump.news.save_learned(lane, patch | ({"found": found} if found else {}))
