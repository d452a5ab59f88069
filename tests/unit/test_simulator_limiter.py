"""The simulator's limits are enforced as vendors enforce them."""

from __future__ import annotations

from batch.simulator.config import Limit
from batch.simulator.limiter import Cost, Limiter, Refusal, Ticket

ONE = Cost(10, 40)
NOON = 1_790_000_040.0  # a whole minute


def admitted(limiter: Limiter, at: float, times: int, cost: Cost = ONE) -> int:
    return sum(isinstance(limiter.admit(at, "key", "model", cost), Ticket) for _ in range(times))


def test_a_token_bucket_starts_full_and_refills_continuously() -> None:
    limiter = Limiter((Limit("requests", 60),))
    assert admitted(limiter, NOON, 100) == 60
    assert admitted(limiter, NOON + 2.5, 10) == 2


def test_a_shallow_bucket_allows_no_burst_beyond_its_depth() -> None:
    limiter = Limiter((Limit("requests", 600, over_s=1.0),))
    assert admitted(limiter, NOON, 100) == 10


def test_a_fixed_minute_gives_everything_back_on_the_minute() -> None:
    limiter = Limiter((Limit("requests", 60, kind="fixed_window"),))
    assert admitted(limiter, NOON + 59.9, 100) == 60
    assert admitted(limiter, NOON + 59.95, 1) == 0
    assert admitted(limiter, NOON + 60.0, 100) == 60


def test_a_fixed_second_enforces_a_minutes_rate_second_by_second() -> None:
    limiter = Limiter((Limit("requests", 600, kind="fixed_window", over_s=1.0),))
    assert admitted(limiter, NOON, 100) == 10
    assert admitted(limiter, NOON + 1, 100) == 10


def test_concurrency_is_held_until_the_answer_ends() -> None:
    limiter = Limiter((Limit("concurrency", 2),))
    first = limiter.admit(NOON, "key", "model", ONE)
    assert isinstance(first, Ticket)
    assert admitted(limiter, NOON, 5) == 1
    first.settle(NOON + 1, 10, 5)
    first.settle(NOON + 1, 10, 5)  # once is enough
    assert admitted(limiter, NOON + 1, 5) == 1


def test_a_refused_request_costs_nothing_in_any_dimension() -> None:
    limiter = Limiter((Limit("requests", 100), Limit("tokens", 100)))
    assert admitted(limiter, NOON, 10) == 2  # 50 tokens each
    used = limiter.readings(NOON, "key", "model")
    assert [reading.remaining for reading in used] == [98, 0]


def test_tokens_charge_the_reserved_maximum_and_refund_only_where_the_vendor_does() -> None:
    keeps = Limiter((Limit("tokens", 100, kind="fixed_window"),))
    refunds = Limiter((Limit("tokens", 100, kind="fixed_window", charge="reserve_refund"),))
    for limiter in (keeps, refunds):
        ticket = limiter.admit(NOON, "key", "model", ONE)
        assert isinstance(ticket, Ticket)
        ticket.settle(NOON + 1, 10, 5)
    assert keeps.readings(NOON + 1, "key", "model")[0].remaining == 50
    assert refunds.readings(NOON + 1, "key", "model")[0].remaining == 85


def test_actual_charging_takes_the_answer_afterwards_even_below_zero() -> None:
    limiter = Limiter((Limit("tokens", 60, charge="actual"),))
    ticket = limiter.admit(NOON, "key", "model", ONE)
    assert isinstance(ticket, Ticket)
    ticket.settle(NOON, 10, 100)
    assert admitted(limiter, NOON, 1) == 0
    assert admitted(limiter, NOON + 61, 1) == 1


def test_a_request_larger_than_the_whole_limit_never_fits() -> None:
    limiter = Limiter((Limit("tokens", 20),))
    refusal = limiter.admit(NOON, "key", "model", ONE)
    assert isinstance(refusal, Refusal)
    assert refusal.retry_after_s == float("inf")


def test_retry_after_is_the_time_until_the_same_request_fits() -> None:
    limiter = Limiter((Limit("requests", 60, over_s=1.0),))
    admitted(limiter, NOON, 1)
    refusal = limiter.admit(NOON, "key", "model", ONE)
    assert isinstance(refusal, Refusal)
    assert admitted(limiter, NOON + refusal.retry_after_s, 1) == 1


def test_each_key_and_where_told_each_model_has_its_own_limit() -> None:
    shared = Limiter((Limit("requests", 1),))
    own = Limiter((Limit("requests", 1, scope="model"),))
    for limiter, second_model in ((shared, Refusal), (own, Ticket)):
        assert isinstance(limiter.admit(NOON, "a", "m1", ONE), Ticket)
        assert isinstance(limiter.admit(NOON, "a", "m2", ONE), second_model)
        assert isinstance(limiter.admit(NOON, "b", "m1", ONE), Ticket)
