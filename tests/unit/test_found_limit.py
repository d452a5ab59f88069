"""What refusals teach about a limit that nobody stated: step() alone."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch.domain.found_limit import Found, Seen, step

START = 1_000.0


def second(started, refused=0, crowded=0, at_once=10.0, **more):
    return Seen(started, refused, crowded, at_once, 1.0, **more)


def after(*seconds, found=None, may_be_rate=True, start=START):
    """The state after so many seconds, one step each."""
    found = found or Found()
    for number, seen in enumerate(seconds):
        found = step(found, seen, start + number, may_be_rate=may_be_rate)
    return found


QUIET = [second(50)] * 5
STORM = [second(50, 20)] * 2


def test_nothing_is_limited_before_an_incident():
    assert after(*QUIET).value == math.inf


def test_one_refusal_in_a_hundred_is_no_incident():
    assert after(*[second(100, 1)] * 600).kind == ""


def test_a_cut_goes_to_what_was_admitted():
    found = after(*QUIET, *STORM)
    assert found.kind == "rate"
    assert 20 <= found.value <= 50


def test_what_was_found_is_kept_over_a_restart():
    found = after(*QUIET, *STORM)
    again = Found.kept(found.keep())
    assert (again.kind, again.value) == (found.kind, pytest.approx(found.value, abs=0.001))
    grown = after(*[second(40)] * 30, found=again, start=START + 60)
    assert found.value < grown.value < math.inf
    assert Found().keep() is None and Found.kept(None) == Found()


def test_refusals_of_calls_on_their_way_belong_to_the_same_incident():
    found = after(*QUIET, *STORM)
    again = step(found, second(50, 30), found.at + 0.5, may_be_rate=True)
    assert again.value == found.value


def test_words_of_crowding_or_a_known_rate_look_for_calls_at_once():
    crowd = [second(50, 20, 20)] * 2
    assert after(*QUIET, *crowd).kind == "slots"
    found = after(*QUIET, *crowd, may_be_rate=False)
    assert (found.kind, found.slots) == ("slots", 9)


def test_an_outage_does_not_wear_the_limit_down():
    """Its first second looks like a limit; where nothing passes there is nothing more to learn."""
    assert after(*QUIET, *[second(50, 50, 50)] * 60).slots >= 8


def test_a_long_retry_after_tells_of_the_whole_period():
    """600 calls in ten seconds, then 50 s to wait: ten a second."""
    found = after(*[second(60)] * 10, *[second(30, 30, asked_s=50.0)] * 2)
    assert 8 <= found.value <= 11


def test_it_grows_only_while_it_is_used():
    found = after(*QUIET, *STORM)
    idle = after(*[second(1)] * 300, found=found, start=found.at + 10)
    busy = after(*[second(60)] * 300, found=found, start=found.at + 10)
    assert idle.grown_s == pytest.approx(0.0, abs=5.0)
    assert busy.value > 2 * found.value


def test_a_limit_that_refuses_again_and_again_at_once_is_of_the_other_kind():
    found = after(*QUIET, *STORM)
    kinds = []
    for _cut in range(6):
        found = after(*[second(50, 20)] * 6, found=found, start=found.at + 1)
        kinds.append(found.kind)
    assert kinds[0] == "rate"
    assert "slots" in kinds


@given(st.lists(st.tuples(st.integers(0, 500), st.floats(0, 1), st.floats(0, 1), st.floats(0, 5), st.booleans())))
def test_whatever_is_seen_the_limit_stays_a_positive_number(seconds):
    found, now = Found(), START
    for started, refused, crowded, passed, may_be_rate in seconds:
        now += passed
        seen = second(started, int(started * refused), int(started * refused * crowded), 5.0 * passed)
        found = step(found, seen, now, may_be_rate=may_be_rate)
        assert found.value > 0 and found.slots >= 1 if found.kind else found.value == math.inf
