"""One call makes the log line and the metric; secrets stay out of both."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from batch import telemetry
from batch.telemetry import EVENTS, emit, redact_secrets


def test_an_event_moves_its_metrics() -> None:
    before = telemetry.REGISTRY.get_sample_value("batchmill_rate_limited_total", _LABELS) or 0
    emit("rate_limited", **_LABELS)
    assert telemetry.REGISTRY.get_sample_value("batchmill_rate_limited_total", _LABELS) == before + 1


_LABELS = {"provider": "p", "model": "m", "kind": "rate_limit"}


def test_a_missing_amount_moves_nothing() -> None:
    """An unknown cost is not a cost of zero."""
    emit("tokens_billed", provider="p", model="free", input_tokens=5, output_tokens=2, cost_usd=None)
    value = telemetry.REGISTRY.get_sample_value
    assert value("batchmill_tokens_total", {"provider": "p", "model": "free", "direction": "input"}) == 5
    assert value("batchmill_cost_usd_total", {"provider": "p", "model": "free"}) is None


def test_an_unknown_event_is_a_mistake_of_the_programmer() -> None:
    with pytest.raises(KeyError):
        emit("no_such_event")


def test_every_event_that_the_code_emits_is_declared() -> None:
    root = Path(telemetry.__file__).parents[1]
    code = "".join(path.read_text() for folder in ("batch", "workers") for path in (root / folder).rglob("*.py"))
    emitted = set(re.findall(r'emit\(\s*f?"([a-z_]+)"', code))
    assert emitted <= set(EVENTS)


def test_every_event_has_a_level_that_the_logger_knows() -> None:
    assert {event.level for event in EVENTS.values()} <= {"debug", "info", "warning", "error"}


@pytest.mark.parametrize(
    "text", ["sk-abcdefgh12345678", "Bearer abc.def-ghi12345", "xai-0123456789abcdef", "bm_" + "x" * 43]
)
def test_texts_that_look_like_keys_are_cut(text: str) -> None:
    event = redact_secrets(None, "info", {"event": "x", "reason": f"401 for {text}, sorry"})
    assert text not in event["reason"] and "***" in event["reason"]
