"""The retry table, row by row: what each kind of failure does to a line, its lane and its key."""

from __future__ import annotations

from dataclasses import replace

import pytest

from batch.domain.outcome import Failure, FailureKind
from batch.domain.progress import LineState, Progress
from batch.domain.retry import RULES, Action, LaneFacts, decide
from tests.harness.clock import FakeClock

K = FailureKind
NOW = 1_790_000_000.0
BODY = {"error": {"message": "no", "type": "x"}}
ALIVE = LaneFacts(succeeded_at=NOW - 100)


class Longest:
    """Chance at its upper end: delays are the largest that the jitter allows."""

    def uniform(self, low, high):
        return high


def settle(failure, state=None, *, lane=ALIVE, can_hop=False, deadline=None, now=NOW, max_attempts=5):
    return decide(
        failure, state or LineState(), now=now, deadline=deadline, rng=Longest(), lane=lane, can_hop=can_hop,
        max_attempts=max_attempts,
    )  # fmt: skip


def failure(kind, status=None, **extra):
    return Failure(kind, "no", status=status, body=BODY if status else None, **extra)


def repeat(fail, times, **extra):
    """The decision after the same failure `times` times in a row."""
    state, decision = LineState(), None
    for _ in range(times):
        decision = settle(fail, state, **extra)
        state = decision.state
    return decision


def test_every_kind_of_failure_has_a_row():
    assert set(RULES) == set(FailureKind)


def test_a_refused_connection_backs_off_then_prefers_another_provider():
    first = settle(failure(K.CONNECT), can_hop=True)
    assert (first.action, first.delay_s) == (Action.RETRY, 1.0)
    assert repeat(failure(K.CONNECT), 3, can_hop=True).action is Action.NEXT_PROVIDER


def test_a_closed_connection_is_tried_again_at_once():
    decision = settle(failure(K.DISCONNECT))
    assert (decision.action, decision.delay_s, decision.state.attempts) == (Action.RETRY, 0.0, 1)


def test_a_timeout_is_tried_once_more_then_elsewhere():
    assert settle(failure(K.TIMEOUT), can_hop=True).action is Action.RETRY
    assert repeat(failure(K.TIMEOUT), 2, can_hop=True).action is Action.NEXT_PROVIDER


def test_timeouts_without_another_provider_end_as_request_timeout():
    decision = repeat(failure(K.TIMEOUT), 5)
    assert (decision.action, decision.code) == (Action.FAIL, "request_timeout")


@pytest.mark.parametrize("kind", [K.INVALID_REQUEST, K.CONTENT_POLICY])
def test_a_bad_request_fails_at_once_everywhere(kind):
    """Another provider is not asked: the request is what is wrong."""
    assert settle(failure(kind, 400), can_hop=True).action is Action.FAIL


def test_a_bad_request_shows_the_providers_response():
    assert settle(failure(K.INVALID_REQUEST, 400)).code is None


def test_a_content_filter_ends_as_refused():
    assert settle(failure(K.CONTENT_POLICY, 400)).code == "refused"


def test_an_unsupported_parameter_is_demoted_without_spending():
    decision = settle(failure(K.UNSUPPORTED_PARAM, 400, param="seed"))
    assert (decision.action, decision.param, decision.state.attempts) == (Action.DEMOTE, "seed", 0)


@pytest.mark.parametrize("kind", [K.CONTEXT_LENGTH, K.TOO_MANY_TOKENS, K.NOT_IMPLEMENTED])
def test_what_does_not_fit_here_may_fit_elsewhere(kind):
    assert settle(failure(kind, 400), can_hop=True).action is Action.NEXT_PROVIDER
    assert settle(failure(kind, 400)).action is Action.FAIL


def test_a_wrong_key_pauses_the_key_and_is_probed_every_minute():
    decision = settle(Failure(K.BAD_KEY, "Invalid API key", status=401, body=BODY))
    assert decision.action is Action.PAUSE_KEY
    assert decision.until == NOW + 60
    assert decision.reason == 'answered 401 "Invalid API key"'
    assert decision.state.attempts == 0


def test_an_exhausted_quota_pauses_the_key_for_at_least_a_quarter_of_an_hour():
    assert settle(failure(K.QUOTA, 429)).until == NOW + 900
    assert settle(failure(K.QUOTA, 429, retry_after_s=7_200)).until == NOW + 7_200


def test_a_budget_holds_only_its_scope_until_a_second_scope_is_refused():
    fail = failure(K.BUDGET, 402, scope="end_user:alice", resume_at=NOW + 3_600)
    held = settle(fail)
    assert (held.action, held.scope, held.until) == (Action.HOLD_SCOPE, "end_user:alice", NOW + 3_600)
    second = settle(fail, lane=replace(ALIVE, refused_scopes=frozenset({"end_user:bob"})))
    assert second.action is Action.PAUSE_KEY


def test_the_same_scope_refused_again_is_no_second_scope():
    lane = replace(ALIVE, refused_scopes=frozenset({"end_user:alice"}))
    assert settle(failure(K.BUDGET, 402, scope="end_user:alice"), lane=lane).action is Action.HOLD_SCOPE


def test_a_budget_without_scope_pauses_the_key():
    assert settle(failure(K.BUDGET, 402)).action is Action.PAUSE_KEY


def test_a_daily_limit_pauses_the_lane_until_its_reset():
    assert settle(failure(K.RATE_DAILY, 429, resume_at=NOW + 50)).until == NOW + 50
    unknown = settle(failure(K.RATE_DAILY, 429))
    assert unknown.action is Action.PAUSE_LANE
    assert unknown.until is not None
    assert unknown.until % 86_400 == 0  # the next midnight, UTC


@pytest.mark.parametrize("kind", [K.RATE_LIMIT, K.RATE_CONCURRENCY, K.RATE_DYNAMIC])
def test_rate_limits_never_spend_attempts_however_often(kind):
    decision = repeat(failure(kind, 429), 500, can_hop=True)
    assert decision.action is Action.RETRY
    assert decision.state.attempts == 0
    assert not decision.spends


def test_a_rate_limit_obeys_retry_after():
    decision = settle(failure(K.RATE_LIMIT, 429, retry_after_s=7.0))
    assert 7.0 <= decision.delay_s <= 7.7


def test_a_rate_limit_that_asks_for_more_than_a_minute_pauses_the_model():
    """It is no matter of this line: all would be refused, and status names the moment."""
    decision = settle(failure(K.RATE_LIMIT, 429, retry_after_s=120.0))
    assert (decision.action, decision.until, decision.code) == (Action.PAUSE_LANE, NOW + 120, "rate_limit")


def test_another_wait_over_a_minute_gives_the_line_back():
    decision = settle(failure(K.SERVER_ERROR, 502, retry_after_s=120.0))
    assert decision.action is Action.GIVE_BACK
    assert decision.not_before is not None
    assert decision.not_before >= NOW + 120


def test_server_errors_move_on_after_three_tries_and_fail_after_five():
    assert repeat(failure(K.SERVER_ERROR, 500), 3, can_hop=True).action is Action.RETRY
    assert repeat(failure(K.SERVER_ERROR, 500), 4, can_hop=True).action is Action.NEXT_PROVIDER
    last = repeat(failure(K.SERVER_ERROR, 500), 5)
    assert (last.action, last.code) == (Action.FAIL, None)  # the provider's own 500 is shown


def test_overload_never_fails_a_line_while_nothing_passes():
    assert repeat(failure(K.OVERLOADED, 529), 300, lane=LaneFacts()).action in {Action.RETRY, Action.GIVE_BACK}


def test_overload_of_one_line_alone_ends_after_long_patience():
    """A line that is refused a hundred times while others pass is not waiting for capacity."""
    state, decision = LineState(), None
    for step in range(102):
        lane = LaneFacts(succeeded_at=NOW + step - 0.5)
        decision = settle(failure(K.OVERLOADED), state, lane=lane, now=NOW + step)
        state = decision.state
    assert (decision.action, decision.code) == (Action.FAIL, "provider_unavailable")


def test_overload_has_a_longer_base_and_moves_early():
    assert settle(failure(K.OVERLOADED, 529)).delay_s == 10.0
    assert settle(failure(K.UNAVAILABLE, 503)).delay_s == 5.0
    assert repeat(failure(K.OVERLOADED, 529), 3, can_hop=True).action is Action.NEXT_PROVIDER


def test_a_provider_that_is_down_costs_a_line_nothing():
    down = LaneFacts(succeeded_at=NOW - 5, is_down=True)
    decision = repeat(failure(K.SERVER_ERROR, 502), 20, lane=down)
    assert decision.action in {Action.RETRY, Action.GIVE_BACK}
    assert decision.state.attempts == 0


def test_a_line_that_takes_the_provider_down_pays_for_it():
    """Else it is sent to every engine that comes back, for ever."""
    deadly = replace(failure(K.SERVER_ERROR, 500), ended_server=True)
    decision = repeat(deadly, 5, lane=LaneFacts(is_down=True))
    assert (decision.action, decision.state.attempts) == (Action.FAIL, 5)


def test_a_provider_that_is_down_lets_lines_flow_on():
    decision = settle(failure(K.SERVER_ERROR, 502), lane=LaneFacts(is_down=True), can_hop=True)
    assert decision.action is Action.NEXT_PROVIDER


@pytest.mark.parametrize("kind", [K.FORBIDDEN, K.MODEL_NOT_FOUND])
def test_a_lane_that_never_succeeded_ends_the_line_or_hops(kind):
    never = LaneFacts()
    assert settle(failure(kind, 403), lane=never, can_hop=True).action is Action.NEXT_PROVIDER
    ended = settle(failure(kind, 403), lane=never)
    assert (ended.action, ended.code) == (Action.FAIL, None)


def test_a_403_after_success_pauses_the_lane_when_no_other_line_passes():
    first = settle(failure(K.FORBIDDEN, 403))
    assert (first.action, first.delay_s, first.state.attempts) == (Action.RETRY, 5.0, 0)
    assert settle(failure(K.FORBIDDEN, 403), first.state, now=NOW + 5).action is Action.PAUSE_LANE


def test_a_403_after_success_ends_only_the_line_when_others_pass():
    first = settle(failure(K.FORBIDDEN, 403))
    later = settle(failure(K.FORBIDDEN, 403), first.state, now=NOW + 5, lane=LaneFacts(succeeded_at=NOW + 2))
    assert later.action is Action.FAIL


@pytest.mark.parametrize(
    ("kind", "code"), [(K.BAD_ANSWER, "attempts_exhausted"), (K.SCHEMA_FAILED, "json_schema_invalid")]
)
def test_content_failures_have_their_own_budget(kind, code):
    first = settle(failure(kind, 200))
    assert (first.action, first.delay_s, first.state.attempts) == (Action.RETRY, 0.0, 0)
    last = repeat(failure(kind, 200), 2)
    assert (last.action, last.code) == (Action.FAIL, code)
    assert repeat(failure(kind, 200), 2, can_hop=True).action is Action.NEXT_PROVIDER


def test_should_retry_true_revives_a_bad_request_within_attempts():
    fail = failure(K.INVALID_REQUEST, 400, should_retry=True)
    assert settle(fail).action is Action.RETRY
    assert repeat(fail, 5).action is Action.FAIL


def test_should_retry_false_ends_a_server_error_but_never_a_rate_limited_line():
    assert settle(failure(K.SERVER_ERROR, 500, should_retry=False)).action is Action.FAIL
    limited = settle(failure(K.RATE_LIMIT, 429, should_retry=False))
    assert limited.action is Action.PAUSE_LANE


def test_a_wait_beyond_the_deadline_goes_back_to_expiry():
    decision = settle(failure(K.RATE_LIMIT, 429, retry_after_s=30.0), deadline=NOW + 10)
    assert (decision.action, decision.not_before) == (Action.GIVE_BACK, NOW + 10)


def test_our_own_back_off_leaves_room_for_one_more_call_before_the_deadline():
    decision = settle(failure(K.OVERLOADED, 529), deadline=NOW + 6)
    assert (decision.action, decision.delay_s) == (Action.RETRY, 3.0)


def test_attempts_of_one_provider_count_at_the_next():
    state = repeat(failure(K.SERVER_ERROR, 500), 4, can_hop=True).state
    assert state.attempts == 4
    assert state.here == {}
    assert settle(failure(K.SERVER_ERROR, 500), state).action is Action.FAIL


def test_progress_survives_storage():
    state = repeat(failure(K.SERVER_ERROR, 500), 3).state
    progress = Progress(state, {"kept": [1]})
    assert Progress.from_json(progress.to_json()) == progress
    assert Progress().is_fresh
    assert not progress.is_fresh


@pytest.mark.parametrize("damaged", [None, [], "x", {"state": {"attempts": "many", "here": 3, "causes": {"a": -1}}}])
def test_damaged_progress_starts_anew(damaged):
    assert Progress.from_json(damaged).is_fresh


def test_a_clock_serves_as_chance():
    assert decide(failure(K.CONNECT), LineState(), now=NOW, deadline=None, rng=FakeClock()).delay_s <= 1.0
