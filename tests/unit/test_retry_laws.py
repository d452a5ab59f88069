"""Laws of the retry decision that hold for every failure, history and circumstance."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from batch.domain.outcome import Failure, FailureKind
from batch.domain.progress import LineState, Progress
from batch.domain.retry import DAY_S, RULES, Action, LaneFacts, decide
from batch.settings import GIVE_BACK_ABOVE_S

NOW = 1_790_000_000.0
LINE_ENDS = {"fail", "demote", "refused"}
FREE = {kind for kind, rule in RULES.items() if rule.budget == "none" and rule.then not in LINE_ENDS}
OWN = sorted(kind for kind, rule in RULES.items() if rule.budget in {"attempts", "content"})


def failures_of(kinds):
    return st.builds(
        lambda kind, status, retry_after, resume, should, param, scope: Failure(
            kind, "text", status=status, body={"error": {}} if status else None, retry_after_s=retry_after,
            resume_at=NOW + resume if resume is not None else None, should_retry=should, param=param, scope=scope,
        ),
        st.sampled_from(kinds),
        st.sampled_from([None, 200, 400, 401, 403, 404, 429, 500, 503, 529]),
        st.none() | st.floats(0, 2 * DAY_S),
        st.none() | st.floats(-10, 2 * DAY_S),
        st.none() | st.booleans(),
        st.none() | st.just("seed"),
        st.none() | st.sampled_from(["a", "b"]),
    )  # fmt: skip


failures = failures_of(list(FailureKind))
counts = st.dictionaries(st.sampled_from([k.value for k in FailureKind]), st.integers(1, 9), max_size=4)
states = st.builds(
    LineState, st.integers(0, 4), st.integers(0, 2), st.integers(0, 40), st.integers(0, 98),
    st.none() | st.floats(NOW - 100, NOW), st.none() | st.floats(NOW - 100, NOW), counts, counts,
    st.none() | st.text(max_size=20),
)  # fmt: skip
lanes = st.builds(
    LaneFacts, st.none() | st.floats(NOW - 100, NOW), st.booleans(), st.frozensets(st.sampled_from(["a", "b"]))
)
deadlines = st.none() | st.floats(NOW - 10, NOW + 5_000)
decisions = given(st.tuples(failures, states, lanes, deadlines, st.booleans(), st.integers(0, 2**32)))


def settle(failure, state, lane, deadline, can_hop, seed):
    return decide(
        failure, state, now=NOW, deadline=deadline, rng=random.Random(seed), lane=lane, can_hop=can_hop
    )


@decisions
def test_a_wait_held_by_a_worker_is_bounded_and_ends_before_the_deadline(case):
    decision = settle(*case)
    deadline = case[3]
    if decision.action is Action.RETRY:
        assert 0 <= decision.delay_s <= GIVE_BACK_ABOVE_S
        assert deadline is None or NOW + decision.delay_s < deadline


@decisions
def test_retry_after_is_never_undercut(case):
    decision = settle(*case)
    failure, deadline = case[0], case[3]
    asked = failure.retry_after_s
    if asked is None or RULES[failure.kind].then != "retry":
        return
    if decision.action is Action.RETRY:
        assert decision.delay_s >= min(asked, DAY_S)
    if decision.action is Action.GIVE_BACK:
        assert decision.not_before >= min(NOW + min(asked, DAY_S), max(NOW, deadline or float("inf")))


@decisions
def test_rate_limits_and_pauses_neither_spend_nor_fail(case):
    """What is the provider's or the key's state is never charged to a line."""
    decision = settle(*case)
    if case[0].kind in FREE:
        assert decision.action is not Action.FAIL
        assert decision.state.attempts == case[1].attempts
        assert decision.state.content == case[1].content


@decisions
def test_a_provider_that_is_down_spends_no_attempt(case):
    if case[2].is_down and case[0].should_retry is None:
        assert settle(*case).state.attempts == case[1].attempts


@decisions
def test_every_pause_says_until_when_and_why(case):
    decision = settle(*case)
    if decision.action in {Action.PAUSE_LANE, Action.PAUSE_KEY, Action.HOLD_SCOPE}:
        assert decision.until is not None
        assert decision.until >= NOW
        assert decision.code
        assert decision.reason
        assert (decision.action is Action.HOLD_SCOPE) == (decision.scope is not None)


@decisions
def test_without_another_provider_nothing_hops(case):
    if not case[4]:
        assert settle(*case).action is not Action.NEXT_PROVIDER


@decisions
def test_every_failure_is_counted_once(case):
    decision = settle(*case)
    assert decision.state.calls_failed == case[1].calls_failed + 1


@decisions
def test_the_same_case_is_decided_the_same_way(case):
    assert settle(*case) == settle(*case)


@decisions
def test_the_new_state_survives_storage(case):
    state = settle(*case).state
    assert Progress.from_json(Progress(state).to_json()).state == state


@settings(max_examples=50)
@given(st.lists(failures_of(OWN), min_size=12, max_size=12), st.integers(0, 2**32))
def test_a_line_with_failures_of_its_own_ends(sequence, seed):
    """Attempts and the content budget together allow fewer than a dozen calls that failed by themselves."""
    state, rng = LineState(), random.Random(seed)
    for failure in sequence:
        decision = decide(failure, state, now=NOW, deadline=None, rng=rng, lane=LaneFacts(NOW - 1))
        if decision.action is Action.FAIL:
            return
        state = decision.state
    raise AssertionError("still going on")


@given(st.integers(0, 60), st.integers(0, 2**32))
def test_back_off_is_full_jitter_under_an_exponential_roof(waits, seed):
    rng = random.Random(seed)
    state = LineState(waits=waits)
    decision = decide(Failure(FailureKind.RATE_LIMIT, "", status=429), state, now=NOW, deadline=None, rng=rng)
    assert 0 <= decision.delay_s <= min(60.0, 2.0**waits)
