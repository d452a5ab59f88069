"""The circuit and the retry budget: a provider that is down is probed, not hammered."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from batch.domain.circuit import IN_A_ROW, Circuit, RetryBudget
from batch.domain.outcome import Failure, FailureKind, Success
from tests.harness.clock import FakeClock

OK = Success(200, b"{}", {})
DOWN = Failure(FailureKind.UNAVAILABLE, "down", status=503)


def broken(clock):
    circuit = Circuit()
    for _ in range(IN_A_ROW):
        changed = circuit.report(DOWN, clock.now(), clock)
    assert changed == "opened"
    return circuit


def test_five_failures_without_a_success_open_the_circuit():
    clock = FakeClock()
    circuit = broken(clock)
    assert circuit.is_down
    assert circuit.admit(clock.now()) > 0


def test_failures_among_successes_do_not_open_it():
    """At a thousand calls a second, five failures in a row happen by chance."""
    clock, circuit = FakeClock(), Circuit()
    circuit.report(OK, clock.now(), clock)
    for _ in range(20):
        circuit.report(DOWN, clock.now(), clock)
    assert not circuit.is_down
    clock.advance(1.5)
    assert circuit.report(DOWN, clock.now(), clock) == "opened"


def test_exactly_one_line_probes():
    clock = FakeClock()
    circuit = broken(clock)
    clock.advance(6)
    assert circuit.admit(clock.now()) == 0.0
    assert circuit.admit(clock.now()) > 0


def test_a_probe_that_succeeds_closes_it_for_all():
    clock = FakeClock()
    circuit = broken(clock)
    clock.advance(6)
    circuit.admit(clock.now())
    assert circuit.report(OK, clock.now(), clock) == "closed"
    assert circuit.admit(clock.now()) == circuit.admit(clock.now()) == 0.0


def test_a_probe_that_fails_waits_longer_up_to_a_minute():
    clock = FakeClock()
    circuit = broken(clock)
    waits = []
    for _ in range(8):
        waits.append(circuit.admit(clock.now()))
        clock.advance(waits[-1])
        assert circuit.admit(clock.now()) == 0.0
        circuit.report(DOWN, clock.now(), clock)
    assert max(waits) <= 60
    assert waits[-1] >= 30


def test_a_probe_that_was_not_sent_leaves_its_place():
    clock = FakeClock()
    circuit = broken(clock)
    clock.advance(6)
    circuit.admit(clock.now())
    circuit.abandon_probe()
    assert circuit.admit(clock.now()) == 0.0


def test_an_error_about_the_line_shows_that_the_provider_is_up():
    clock = FakeClock()
    refused = Failure(FailureKind.INVALID_REQUEST, "no", status=400)
    assert broken(clock).report(refused, clock.now(), clock) == "closed"


def test_retries_are_at_most_a_tenth_of_successes_after_the_first_burst():
    budget = RetryBudget()
    while budget.take(0.0) == 0.0:
        pass
    for _ in range(100):
        budget.note_success()
    taken = 0
    while budget.take(0.0) == 0.0:
        taken += 1
    assert 9 <= taken <= 10


def test_retries_never_starve_altogether():
    budget = RetryBudget(tokens=0.0)
    wait = budget.take(0.0)
    assert 0 < wait <= 2.0
    assert budget.take(wait) == 0.0


@given(st.lists(st.tuples(st.floats(0, 30), st.sampled_from(["admit", "ok", "down"])), max_size=80))
def test_while_it_is_open_at_most_one_call_is_admitted_per_interval(events):
    """Whatever the order: between two admissions of an open circuit lie at least 2.5 s or an outcome."""
    circuit, now, clock, probing = Circuit(), 0.0, FakeClock(), False
    for wait, event in events:
        now += wait
        if event == "ok":
            circuit.succeed(now)
            probing = False
            assert circuit.admit(now) == 0.0
        elif event == "down":
            circuit.fail(now, clock)
            probing = False
        elif circuit.is_down and circuit.admit(now) == 0.0:
            assert not probing
            probing = True
