"""One line's way through this process, as a machine without a pulse: outcomes in, next step out.

Owns: LineRun — parsing and planning a line, handing calls out, asking domain.retry what a failure means,
ending in a LineResult or a Release. Knows neither loops nor sockets: workers/lane.py makes the calls.
May not touch: the database, Redis, waiting.
"""

from __future__ import annotations

from asyncio import Lock
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from batch.clock import Clock
from batch.completions.answering import Answering
from batch.completions.answers import Answer
from batch.completions.calls import Call
from batch.completions.cards import Card
from batch.completions.output_line import own_error_line, response_line
from batch.completions.plan import PlanOptions, plan_line
from batch.completions.schema import SchemaCache
from batch.domain.errors import InvalidRequest
from batch.domain.ids import line_id
from batch.domain.line import merge_defaults
from batch.domain.outcome import Failure, Success, Usage
from batch.domain.progress import Progress
from batch.domain.result import LineResult
from batch.domain.retry import Action, Decision, LaneFacts, decide
from batch.providers.prices import Price
from batch.providers.provider import Provider
from batch.settings import SCHEMA_RETRIES
from batch.storage.claims import OpenLine, SliceClaim
from batch.storage.leases import Release
from batch.telemetry import emit
from workers.leases import HeldSlice

_PAUSES = frozenset({Action.PAUSE_LANE, Action.PAUSE_KEY})


@dataclass(slots=True)
class LaneContext:
    """What a line must know of its lane. `card` is replaced when something is learned."""

    provider: Provider
    model: str
    card: Card
    price: Price | None
    clock: Clock
    schemas: SchemaCache
    output_ascii: bool = False
    facts: tuple[str, ...] = ()  # of what serves: counted into the batch's report with every answer


@dataclass(slots=True)
class Step:
    """What to do next with a line. At most one of `result` and `release` is set; then the line is over here."""

    calls: Sequence[Call] = ()
    delay_s: float = 0.0  # before `calls`
    result: LineResult | None = None
    release: Release | None = None
    pause: Decision | None = None
    scope: tuple[str, float] | None = None  # a budget's scope that is refused, and until when (Unix seconds)
    spends: bool = False  # the retry counts against the provider's retry budget
    learned: Mapping[str, str] = field(default_factory=dict)


_NOTHING = Step()
_FRESH = Progress()


class LineRun:
    """begin() → calls → settle() for each outcome → … → a result or a release."""

    __slots__ = ("_answering", "_lane", "_leaving", "_out", "_state", "held", "is_over", "item", "lock")

    def __init__(self, held: HeldSlice, item: OpenLine, lane: LaneContext) -> None:
        self.held = held
        self.item = item
        self.is_over = False
        self._lane = lane
        self._answering: Answering | None = None
        self._state = _FRESH.state
        self.lock: Lock | None = None  # once an outcome had to be settled in a thread
        self._out = 0  # calls being made or waiting for their time
        self._leaving: Release | None = None  # when the last call in flight has landed

    def begin(self, raw_body: bytes) -> Step:
        """Plan the line for this lane's provider; the first calls, or its end when it cannot be served at all."""
        claim, lane = self.held.claim, self._lane
        progress = Progress.from_json(self.item.progress) if self.item.progress else _FRESH
        self._state = progress.state
        body = orjson.loads(raw_body)
        for defaults in (claim.options.get("defaults"), lane.provider.defaults):
            if defaults:
                body, raw_body = merge_defaults(body, raw_body, dict(defaults))
        try:
            plan = plan_line(body, lane.card, _plan_options(claim), endpoint=claim.endpoint)
            stored = dict(progress.answering) if progress.answering else None
            self._answering = Answering(body, raw_body, plan, progress=stored, schemas=lane.schemas)
        except InvalidRequest as error:
            if self.can_hop:
                return self._leave(Release(self.item.line, to_next_lane=True))
            return self._fail_plainly("invalid_request", error.message)
        return self._go_on()

    def needs_thread(self, outcome: Success | Failure) -> bool:
        """True when settle() may take long: a big body, a heavy schema."""
        return isinstance(outcome, Success) and self._answering is not None and self._answering.needs_thread(outcome)

    def settle(self, call: Call, outcome: Success | Failure, facts: LaneFacts) -> Step:
        """Take a call's outcome. A line that is over swallows it."""
        self._out -= 1
        if self.is_over or self._answering is None:
            return _NOTHING
        if isinstance(outcome, Success):
            self._answering.accept(call, outcome)
            if self._state.calls_failed:
                self._state = self._state.after_success()
            return self._go_on()
        return self._after_failure(call, outcome, facts)

    def take_back(self, call: Call) -> None:
        """A call that was handed out is not being made after all; the line leaves soon."""
        self._out -= 1
        if self._answering is not None:
            self._answering.drop(call)

    def let_go(self, *, wait_s: float = 0.0) -> Step:
        """The line goes back to the database unspent: now, or when its calls in flight have landed."""
        return self._leave(Release(self.item.line, wait_s=max(wait_s, self.item.wait_s)))

    @property
    def can_hop(self) -> bool:
        """True when the route has another provider after this one."""
        claim = self.held.claim
        return claim.hop + 1 < len(claim.route)

    def hop(self) -> Step:
        """The line goes to the route's next provider unspent: this one is known to be down."""
        self._state = self._state.after_hop()
        return self._leave(Release(self.item.line, to_next_lane=True))

    def let_go_now(self) -> Step:
        """As let_go, without waiting for calls in flight: their answers will be lost."""
        self._out = 0
        return self.let_go()

    def fail_unexpectedly(self, error: Exception) -> Step:
        """A bug or an unreadable body met this line: it fails, in words without contents, and the others go on."""
        emit("attempt_failed", error=type(error).__name__, batch_id=self.held.claim.batch_id, line=self.item.line)
        if self.is_over:
            return _NOTHING
        return self._fail_plainly("invalid_request", f"the line could not be processed ({type(error).__name__})")

    def _snapshot(self) -> dict[str, Any] | None:
        """What the line has spent, for line_progress; None when there is nothing to keep."""
        if self._answering is None:
            return self.item.progress
        has_spent = self._answering.billed.total_tokens > 0
        progress = Progress(self._state, self._answering.snapshot() if has_spent else None)
        return None if progress.is_fresh else progress.to_json()

    def _go_on(self) -> Step:
        """The next calls, or the end."""
        assert self._answering is not None
        if self._leaving is not None:
            return self._leave(self._leaving)
        if self._answering.is_done:
            return self._finish()
        calls = self._answering.next_calls()
        self._out += len(calls)
        if not calls and not self._out:
            return self._finish() if self._answering.is_doomed else _NOTHING
        return Step(calls, learned=self._answering.take_learned())

    def _after_failure(self, call: Call, failure: Failure, facts: LaneFacts) -> Step:
        assert self._answering is not None
        if self._answering.is_doomed:
            self._answering.drop(call)
            return self._go_on()
        lane, ends_at = self._lane, self.held.ends_at
        now = lane.clock.now()
        decision = decide(
            failure,
            self._state,
            now=now,
            deadline=None if ends_at is None else now + ends_at - lane.clock.monotonic(),
            rng=lane.clock,
            lane=facts,
            can_hop=self.can_hop,
            max_attempts=self.held.claim.options.get("max_attempts", lane.provider.preset.max_attempts),
        )
        self._state = decision.state
        return self._follow(decision, call, failure)

    def _follow(self, decision: Decision, call: Call, failure: Failure) -> Step:
        assert self._answering is not None
        line, action = self.item.line, decision.action
        if action is Action.RETRY:
            self._out += 1
            return Step([call], delay_s=decision.delay_s, spends=decision.spends)
        if action is Action.DEMOTE and decision.param:
            if self._answering.demote(call, decision.param):
                return self._go_on()
            return self.hop() if self.can_hop else self._fail_by(failure, None)
        if action in {Action.FAIL, Action.DEMOTE}:
            return self._fail_by(failure, decision.code)
        self._answering.drop(call)
        if action is Action.NEXT_PROVIDER:
            return replace(self._leave(Release(line, to_next_lane=True)), spends=decision.spends)
        if action in _PAUSES:  # the lane waits, not the line: it goes on as soon as the pause is lifted
            return replace(self._leave(Release(line)), pause=decision)
        wait_s = max(0.0, (decision.not_before or 0.0) - self._lane.clock.now())
        scope = (decision.scope, decision.until or 0.0) if decision.scope is not None else None
        return replace(self._leave(Release(line, wait_s=wait_s)), spends=decision.spends, scope=scope)

    def _leave(self, release: Release) -> Step:
        """The line's part here is over once no call of it is in flight; what it has kept goes with it."""
        if self.is_over:
            return _NOTHING
        self._leaving = release
        if self._out > 0:
            return _NOTHING
        self.is_over = True
        release.progress = self._snapshot()
        return Step(release=release)

    def _finish(self) -> Step:
        assert self._answering is not None
        answering, item, lane, identifier = self._answering, self.item, self._lane, self._id
        end = answering.finish()
        note = self._describe(end.note, calls=self._state.calls_failed + 1)
        cost = end.cost_usd if end.cost_usd is not None else self._price_of(end.billed)
        if cost is not None:
            note["cost_usd"] = round(cost, 9)
        if isinstance(end, Answer):
            output = response_line(
                identifier, item.custom_id, end.body, note,
                request_id=note.get("request_id") or identifier, output_ascii=lane.output_ascii,
            )  # fmt: skip
            row = self._row(True, output, None, (*end.facts, *lane.facts) if lane.facts else end.facts)
            row.usage = end.usage
        else:
            output = self._own_error(end.code, end.message, note)
            row = self._row(False, output, end.code, (*end.facts, f"failed:{end.code}"))
        row.billed, row.cost_usd = end.billed, cost
        self.is_over = True
        return Step(result=row, learned=answering.take_learned())

    def _fail_by(self, failure: Failure, code: str | None) -> Step:
        """The line ends by a failed call: with the provider's own response, or with a code of ours."""
        if code is not None or failure.status is None:
            return self._fail_plainly(code or "attempts_exhausted", failure.message, failure)
        error = {"message": failure.message, "type": "invalid_request_error", "param": None, "code": failure.code}
        output = response_line(
            self._id, self.item.custom_id, orjson.dumps(failure.body or {"error": error}), self._failure_note(failure),
            request_id=failure.request_id or self._id, status=failure.status, output_ascii=self._lane.output_ascii,
        )  # fmt: skip
        return self._failed(output, failure.code or failure.kind.value)

    def _fail_plainly(self, code: str, message: str, failure: Failure | None = None) -> Step:
        return self._failed(self._own_error(code, message, self._failure_note(failure)), code)

    def _failed(self, output: bytes, code: str) -> Step:
        row = self._row(False, output, code, (f"failed:{code}",))
        row.cost_usd = 0.0
        if self._answering is not None and self._answering.billed.total_tokens:
            row.billed, row.cost_usd = self._answering.billed, self._answering.cost_usd
            if row.cost_usd is None:
                row.cost_usd = self._price_of(row.billed)
        self.is_over = True
        return Step(result=row)

    @property
    def _id(self) -> str:
        return line_id(self.held.claim.batch_public_id, self.item.line)

    def _own_error(self, code: str, message: str, note: dict[str, Any]) -> bytes:
        ascii_only = self._lane.output_ascii
        return own_error_line(self._id, self.item.custom_id, code, message, note, output_ascii=ascii_only)

    def _row(self, ok: bool, output: bytes, code: str | None, facts: tuple[str, ...]) -> LineResult:
        held, claim = self.held, self.held.claim
        return LineResult(
            claim.batch_id, self.item.line, self.item.custom_id, ok, output, code, facts=facts,
            slice_id=claim.slice_id, epoch=claim.epoch, reserved_usd=held.reserved_usd,
        )  # fmt: skip

    def _failure_note(self, failure: Failure | None) -> dict[str, Any]:
        note = self._answering.describe_failure() if self._answering is not None else {}
        note |= {"provider": self._lane.provider.name, "model": self._lane.model}
        self._describe(note, calls=self._state.calls_failed)
        if failure is not None:
            note["latency_s"] = round(failure.latency_s, 4)
            if failure.request_id:
                note["request_id"] = failure.request_id
            if failure.headers:
                note["headers"] = dict(failure.headers)
        return note

    def _describe(self, note: dict[str, Any], *, calls: int) -> dict[str, Any]:
        """The note with what only the executor knows."""
        note["attempts"] = calls
        if self._state.causes:
            note["causes"] = dict(self._state.causes)
        return note

    def _price_of(self, billed: Usage) -> float | None:
        """None too where the provider told no usage: unknown, not free."""
        price = self._lane.price
        return price.of(billed) if price is not None and billed.total_tokens else None


def _plan_options(claim: SliceClaim) -> PlanOptions:
    options = claim.options
    if not options:
        return _PLAIN_OPTIONS
    return PlanOptions(
        options.get("on_unsupported", "emulate"),
        options.get("schema_retries", SCHEMA_RETRIES),
        options.get("grow_max_tokens", False),
    )


_PLAIN_OPTIONS = PlanOptions()
