"""What a call is charged follows the provider's way of charging and what answers taught."""

from __future__ import annotations

from batch.domain.limits import Limits
from batch.domain.outcome import Usage
from workers.estimates import BATCHES_KEPT, Estimates

BODY = b'{"model":"m","messages":[],"max_tokens":500}'


def test_a_reserving_provider_is_charged_the_whole_max_tokens():
    assert Estimates({}).charge(Limits(charge="reserve_max"), 1, 100, 256, BODY, 2) == (1_100, 1_000)


def test_without_max_tokens_the_expectation_is_charged():
    assert Estimates({}).charge(Limits(charge="reserve_max"), 1, 100, 256, b"{}", 1) == (356, 256)


def test_input_only_charges_the_prompt():
    assert Estimates({}).charge(Limits(charge="input_only"), 1, 100, 256, BODY, 1) == (100, 0)


def test_answers_of_a_batch_correct_its_later_estimates():
    estimates = Estimates({})
    for _ in range(30):
        estimates.observe(1, 100, 256, Usage(150, 0, 64))
    total, output = estimates.charge(Limits(charge="actual"), 1, 100, 256, BODY, 1)
    assert (total, output) == (214, 64)


def test_what_was_learned_is_due_once_in_a_while_and_survives():
    estimates = Estimates({})
    assert estimates.due(0.0) is None
    estimates.observe(1, 100, 256, Usage(150, 0, 64))
    patch = estimates.due(0.0)
    estimates.observe(1, 100, 256, Usage(150, 0, 64))
    assert estimates.due(10.0) is None
    assert estimates.due(40.0) is not None
    again = Estimates(patch or {})
    assert again.charge(Limits(charge="actual"), 9, 100, 256, BODY, 1)[0] > 150


def test_memory_is_bounded_by_batches():
    estimates = Estimates({})
    for batch_id in range(3 * BATCHES_KEPT):
        estimates.observe(batch_id, 100, 256, Usage(150, 0, 64))
    assert len(estimates._batches) <= BATCHES_KEPT
