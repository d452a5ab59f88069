"""What happens to a line after a failed call: one pure function over one table.

Owns: RULES (a row per FailureKind) and decide(). 429, overload and a provider that is down never spend
a line's attempts; answers that are no answers have a budget of their own; a wrong key, quota, budget
or daily limit pauses the lane or key with a reason in words. Every wait obeys Retry-After, has full
jitter and ends by the deadline; above 60 s the line is given back instead of holding a worker.
May not touch: clocks, storage, lanes: facts come in, a Decision goes out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Literal

from batch.clock import Clock
from batch.domain.outcome import Failure, FailureKind
from batch.domain.progress import LineState
from batch.settings import GIVE_BACK_ABOVE_S, MAX_ATTEMPTS, PROBE_EVERY_S

QUOTA_PAUSE_S = 15 * 60.0  # where the provider does not say when the quota returns
CONTENT_TRIES = 2          # answers that are no answers: one more call here, one at the next provider
OVERLOAD_PATIENCE = 100    # refusals of one line in a row while other lines of its lane succeed
RECHECK_S = 5.0            # before a 403 or 404 is believed to concern the whole lane
DAY_S = 86_400.0


class Action(StrEnum):
    RETRY = "retry"                  # the same provider, after delay_s
    GIVE_BACK = "give_back"          # leave it to the database until not_before
    NEXT_PROVIDER = "next_provider"  # the next lane of the route, at once
    DEMOTE = "demote"                # plan again without `param`, call at once
    FAIL = "fail"                    # the line ends: own `code`, or None for the provider's response
    PAUSE_LANE = "pause_lane"        # (provider, key, model) until `until`; the line goes back unspent
    PAUSE_KEY = "pause_key"          # every lane of the provider's key
    HOLD_SCOPE = "hold_scope"        # only lines that share `scope` (a budget's end user or tag)


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do, why in words, and the line's new state.

    Times are Unix seconds; `not_before` and `until` are set where the action has one. `spends` says that
    the retry counts against the provider's retry budget (domain.circuit.RetryBudget).
    """

    action: Action
    state: LineState
    reason: str
    delay_s: float = 0.0
    not_before: float | None = None
    until: float | None = None
    code: str | None = None
    param: str | None = None
    scope: str | None = None
    spends: bool = False


@dataclass(frozen=True, slots=True)
class LaneFacts:
    """What the caller knows of the lane: its last success (Unix seconds, None: never), whether its
    circuit is not closed, and the budget scopes of its key that are refused at present."""

    succeeded_at: float | None = None
    is_down: bool = False
    refused_scopes: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Rule:
    """One row. `tries`: failures of this kind at one provider before another is preferred.

    `budget` is what a retry spends. Back-off is full jitter over base_s · 2^k, up to cap_s; `first_s`
    replaces it for the first. `code` ends the line where the provider sent no HTTP error to show.
    """

    then: Literal["retry", "fail", "demote", "refused", "pause_key", "pause_lane", "hold_scope"]
    budget: Literal["attempts", "content", "patience", "none"] = "none"
    tries: int = 1_000
    base_s: float = 1.0
    cap_s: float = 60.0
    first_s: float | None = None
    code: str = "attempts_exhausted"
    shows_response: bool = True  # False: our own code even though the provider answered
    hops: bool = True


K = FailureKind
RULES: dict[FailureKind, Rule] = {
    K.CONNECT: Rule("retry", "patience", tries=2, code="provider_unavailable"),
    K.DISCONNECT: Rule("retry", "attempts", tries=3, first_s=0.0),
    K.TIMEOUT: Rule("retry", "attempts", tries=1, code="request_timeout"),
    K.INVALID_REQUEST: Rule("fail", code="invalid_request", hops=False),
    K.UNSUPPORTED_PARAM: Rule("demote", code="invalid_request"),
    K.BAD_KEY: Rule("pause_key"),
    K.FORBIDDEN: Rule("refused"),
    K.MODEL_NOT_FOUND: Rule("refused"),
    K.CONTEXT_LENGTH: Rule("fail", code="invalid_request"),
    K.CONTENT_POLICY: Rule("fail", code="refused", shows_response=False, hops=False),
    K.SCHEMA_FAILED: Rule("retry", "content", tries=1, first_s=0.0, code="json_schema_invalid", shows_response=False),
    K.QUOTA: Rule("pause_key"),
    K.BUDGET: Rule("hold_scope"),
    K.RATE_LIMIT: Rule("retry"),
    K.RATE_DAILY: Rule("pause_lane"),
    K.RATE_CONCURRENCY: Rule("retry", base_s=0.5, cap_s=30.0),
    K.RATE_DYNAMIC: Rule("retry", base_s=2.0),
    K.TOO_MANY_TOKENS: Rule("fail", code="invalid_request"),
    K.SERVER_ERROR: Rule("retry", "attempts", tries=3),
    K.UNAVAILABLE: Rule("retry", "patience", tries=3, base_s=5.0, code="provider_unavailable"),
    K.OVERLOADED: Rule("retry", "patience", tries=2, base_s=10.0, cap_s=120.0, code="provider_unavailable"),
    K.CONFLICT: Rule("retry", "attempts", tries=3),
    K.NOT_IMPLEMENTED: Rule("fail", code="invalid_request"),
    K.BAD_ANSWER: Rule("retry", "content", tries=1, first_s=0.0, shows_response=False),
}
_DEFAULT_LANE = LaneFacts()


@dataclass(frozen=True, slots=True)
class _Case:
    """The arguments of decide(), so that each row's function reads as a sentence."""

    failure: Failure
    state: LineState  # with this failure already counted
    before: LineState
    now: float
    deadline: float | None
    rng: Clock
    lane: LaneFacts
    can_hop: bool
    max_attempts: int
    reason: str


def decide(
    failure: Failure,
    state: LineState,
    *,
    now: float,
    deadline: float | None,
    rng: Clock,
    lane: LaneFacts = _DEFAULT_LANE,
    can_hop: bool = False,
    max_attempts: int = MAX_ATTEMPTS,
) -> Decision:
    """Decide about a line whose call came to `failure`. Pure; times are Unix seconds.

    `can_hop`: the route has another provider and the batch may use it. Of `rng` only
    uniform() is asked. A deadline that has passed gives the line back to expiry.
    """
    counted = replace(
        state,
        causes={**state.causes, failure.kind.value: state.causes.get(failure.kind.value, 0) + 1},
        here={**state.here, failure.kind.value: state.here.get(failure.kind.value, 0) + 1},
        last_error=f"{failure.kind.value}: {failure.message}"[:300],
    )
    case = _Case(failure, counted, state, now, deadline, rng, lane, can_hop, max_attempts, describe(failure))
    rule = _obey_should_retry(RULES[failure.kind], failure)
    if rule.then == "retry":
        return _retry(case, rule)
    if rule.then == "refused":
        return _refused(case, rule)
    if rule.then == "demote" and failure.param:
        return Decision(Action.DEMOTE, counted, case.reason, param=failure.param)
    if rule.then in {"pause_key", "pause_lane", "hold_scope"}:
        return _pause(case, rule)
    return _end(case, rule)


def describe(failure: Failure) -> str:
    """The failure in words for people: `answered 401 "Invalid API key"`."""
    text = " ".join(failure.message.split())[:200]
    if failure.status is not None:
        return f'answered {failure.status} "{text}"' if text else f"answered {failure.status}"
    return {
        FailureKind.CONNECT: f"cannot be reached: {text}",
        FailureKind.TIMEOUT: f"did not answer in time: {text}",
        FailureKind.DISCONNECT: f"closed the connection: {text}",
    }.get(failure.kind, text or failure.kind.value)


_PASSING = Rule("retry", "attempts", tries=3)
_ASKED_NOT_TO = Rule("pause_lane")


def _obey_should_retry(rule: Rule, failure: Failure) -> Rule:
    """x-should-retry wins over the status; a rate limit that may not be retried pauses, it never fails a line."""
    if failure.should_retry is True and rule.then == "fail":
        return replace(_PASSING, code=rule.code, shows_response=rule.shows_response)
    if failure.should_retry is False and rule.then == "retry":
        return replace(rule, then="fail") if rule.budget in {"attempts", "content"} else _ASKED_NOT_TO
    return rule


def _retry(case: _Case, rule: Rule) -> Decision:
    state, spends = _spend(case, rule)
    case = replace(case, state=state)
    here = state.here.get(case.failure.kind.value, 0)
    over = (
        state.attempts >= case.max_attempts
        or (rule.budget == "content" and state.content > CONTENT_TRIES)
        or state.patience >= OVERLOAD_PATIENCE
    )
    if over and rule.budget != "none":
        return _fail(case, rule)
    may_move = rule.budget != "none" and case.can_hop
    if may_move and (here > rule.tries or case.lane.is_down):
        return Decision(Action.NEXT_PROVIDER, state.after_hop(), case.reason, spends=spends)
    if rule.budget == "content" and here > rule.tries:
        return _fail(case, rule)
    exponent = max(0, min(20, (here if spends else state.waits) - 1))
    return _wait(case, rule, exponent=exponent, spends=spends)


def _spend(case: _Case, rule: Rule) -> tuple[LineState, bool]:
    """Take what this failure costs. A provider that is down for everyone costs a line nothing, unless the line
    is what takes it down."""
    state = case.state
    if rule.budget == "content":
        return replace(state, content=state.content + 1, failed_at=case.now), True
    if rule.budget == "attempts" and (case.failure.ended_server or not case.lane.is_down):
        return replace(state, attempts=state.attempts + 1, waits=0, failed_at=case.now), True
    others_pass = (
        rule.budget != "none"
        and case.lane.succeeded_at is not None
        and state.failed_at is not None
        and case.lane.succeeded_at > state.failed_at
    )
    patience = state.patience + 1 if others_pass else state.patience
    return replace(state, waits=state.waits + 1, patience=patience, failed_at=case.now), rule.budget != "none"


def _wait(case: _Case, rule: Rule, *, exponent: int, spends: bool) -> Decision:
    asked = _asked_wait(case)
    if asked is not None and asked > GIVE_BACK_ABOVE_S and rule.budget == "none" and rule.then == "retry":
        return _paused(case, Action.PAUSE_LANE, case.now + asked)  # not this line's wait
    if asked is not None:
        delay = asked + case.rng.uniform(0.0, min(1.0, 0.1 * asked))
    elif rule.first_s is not None and exponent == 0:
        delay = rule.first_s
    else:
        delay = case.rng.uniform(0.0, min(rule.cap_s, rule.base_s * 2.0**exponent))
        if case.deadline is not None:  # our own guess leaves room for one more call
            delay = min(delay, max(0.0, case.deadline - case.now) / 2)
    if case.deadline is not None and case.now + delay >= case.deadline:
        return Decision(
            Action.GIVE_BACK, case.state, case.reason, spends=spends, not_before=max(case.now, case.deadline)
        )
    if delay > GIVE_BACK_ABOVE_S:
        return Decision(Action.GIVE_BACK, case.state, case.reason, spends=spends, not_before=case.now + delay)
    return Decision(Action.RETRY, case.state, case.reason, spends=spends, delay_s=delay)


def _asked_wait(case: _Case) -> float | None:
    """The provider's own wait in seconds, within a day."""
    if case.failure.retry_after_s is not None:
        return min(DAY_S, max(0.0, case.failure.retry_after_s))
    if case.failure.resume_at is not None:
        return min(DAY_S, max(0.0, case.failure.resume_at - case.now))
    return None


def _refused(case: _Case, rule: Rule) -> Decision:
    """403 or 404: about this line, the model, or the key? The lane's other lines tell.

    Never a success here: the route's next provider, else the provider's answer ends the line. After a
    success: look once more; then other lines' successes mean that it is this line, silence that it is the lane.
    """
    since = case.before.refused_at
    if case.lane.succeeded_at is None:
        return _end(case, rule)
    if since is None:
        state = replace(case.state, refused_at=case.now)
        return _wait(replace(case, state=state), replace(rule, first_s=RECHECK_S), exponent=0, spends=False)
    if case.lane.succeeded_at > since:
        return _end(case, rule)
    return _paused(case, Action.PAUSE_LANE, case.now + PROBE_EVERY_S)


def _pause(case: _Case, rule: Rule) -> Decision:
    kind, asked = case.failure.kind, _asked_wait(case)
    if kind is FailureKind.BAD_KEY:
        return _paused(case, Action.PAUSE_KEY, case.now + PROBE_EVERY_S)
    if kind is FailureKind.QUOTA:
        return _paused(case, Action.PAUSE_KEY, case.now + max(QUOTA_PAUSE_S, asked or 0.0))
    if kind is FailureKind.BUDGET:
        until = case.failure.resume_at or case.now + (asked or QUOTA_PAUSE_S)
        scope = case.failure.scope
        if scope is not None and not (case.lane.refused_scopes - {scope}):
            return _paused(case, Action.HOLD_SCOPE, until, scope)
        return _paused(case, Action.PAUSE_KEY, until)
    if kind is FailureKind.RATE_DAILY:
        midnight = (case.now // DAY_S + 1) * DAY_S
        until = case.failure.resume_at or (midnight if asked is None else case.now + asked)
        return _paused(case, Action.PAUSE_LANE, until)
    return _paused(case, Action.PAUSE_LANE, case.now + max(PROBE_EVERY_S, asked or 0.0))


def _paused(case: _Case, action: Action, until: float, scope: str | None = None) -> Decision:
    until = max(case.now, until)
    code = case.failure.kind.value
    return Decision(action, case.state, case.reason, until=until, not_before=until, code=code, scope=scope)


def _end(case: _Case, rule: Rule) -> Decision:
    """Another provider where the row and the route allow one, else the line's end."""
    if rule.hops and case.can_hop:
        return Decision(Action.NEXT_PROVIDER, case.state.after_hop(), case.reason)
    return _fail(case, rule)


def _fail(case: _Case, rule: Rule) -> Decision:
    """The provider's HTTP error is shown as it came; where there is none, our own code."""
    has_response = case.failure.status is not None and case.failure.status >= 400 and case.failure.body is not None
    code = None if has_response and rule.shows_response else rule.code
    return Decision(Action.FAIL, case.state, case.reason, code=code)
