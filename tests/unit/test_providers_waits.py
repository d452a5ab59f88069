"""How long a provider says to wait, from headers, bodies and sentences."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch.providers.classify import classify
from batch.providers.error_shapes import read_error
from batch.providers.headers import parse_reset
from batch.providers.presets import load_preset

NOW = 1_790_000_000.0


def wait(headers: dict[str, str], body: Any = None, provider: str = "openai", status: int = 429) -> float | None:
    preset = load_preset(provider)
    return classify(status, headers, read_error(orjson.dumps(body), status), preset, now=NOW).retry_after_s


def text(message: str) -> dict[str, Any]:
    return {"error": {"message": message}}


def test_milliseconds_win_over_seconds_over_the_body_over_resets() -> None:
    """The order of trust."""
    resets = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "40s"}
    body = text("Please try again in 5.289s.")
    assert wait({"retry-after-ms": "1500", "retry-after": "9", **resets}, body) == 1.5
    assert wait({"retry-after": "9", **resets}, body) == 9.0
    assert wait(resets, body) == 5.289
    assert wait(resets, text("no hint")) == 40.0
    assert wait({}, text("no hint")) is None


@pytest.mark.parametrize(
    ("message", "seconds"),
    [
        ("Please try again in 6m0s.", 360.0),
        ("try again in 20ms", 0.02),
        ("Try again in 1h2m3s", 3723.0),
        ("Please retry after 30 seconds.", 30.0),
        ("Please wait 2 minutes before", 120.0),
        ("Retry in 500 ms", 0.5),
    ],
)
def test_waits_in_sentences_are_read(message: str, seconds: float) -> None:
    assert wait({}, text(message)) == pytest.approx(seconds)


def test_retry_info_and_relayed_headers_are_read() -> None:
    """Gemini's RetryInfo, OpenRouter's metadata."""
    assert wait({}, {"error": {"message": "x", "details": [{"retryDelay": "59s"}]}}, "gemini") == 59.0
    relayed = {"error": {"message": "x", "metadata": {"headers": {"X-RateLimit-Reset": str(int((NOW + 12) * 1000))}}}}
    assert wait({}, relayed, "openrouter") == pytest.approx(12.0)


def test_resets_are_no_reason_to_wait_when_something_remains() -> None:
    assert wait({"x-ratelimit-remaining-requests": "3", "x-ratelimit-reset-requests": "40s"}, text("x")) is None


def test_an_http_date_is_a_wait() -> None:
    assert wait({"retry-after": "Mon, 21 Sep 2026 14:14:00 GMT"}, text("x")) == pytest.approx(40.0, abs=60)


@given(st.one_of(st.text(max_size=30), st.floats().map(str), st.integers().map(str)))
def test_any_value_gives_a_wait_within_a_day_or_none(value: str) -> None:
    """Clamped to [0, 86400] whatever is sent."""
    seconds = parse_reset(value, NOW)
    assert seconds is None or 0.0 <= seconds <= 86_400.0
