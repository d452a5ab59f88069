"""Rate-limit headers of every family, read into one shape."""

from __future__ import annotations

import pytest

from batch.providers.headers import RateWindow, parse_rate_headers, parse_reset
from batch.providers.presets import RateHeaders, load_preset

NOW = 1_790_000_000.0


def reading(provider: str, headers: dict[str, str]) -> set[RateWindow]:
    return set(parse_rate_headers(headers, load_preset(provider).rate_headers, NOW).windows)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("1s", 1.0), ("6m0s", 360.0), ("12ms", 0.012), ("2m59.56s", 179.56), ("1h30m", 5400.0), ("1d", 86_400.0),
        ("11.382867", 11.382867), ("0", 0.0), (str(int(NOW) + 30), 30.0), (str(int(NOW + 30) * 1000), 30.0),
        ("2026-09-21T14:13:50Z", 30.0), ("59s", 59.0), ("-5", None), ("soon", None), ("", None), ("nan", None),
        (str(int(NOW) - 30), 0.0), ("1738500000", 0.0), ("9999999", 86_400.0),
    ],
)  # fmt: skip
def test_every_form_of_a_reset_is_told_apart(value: str, seconds: float | None) -> None:
    """Durations, floats, Unix seconds and milliseconds, RFC 3339."""
    found = parse_reset(value, NOW)
    assert found is None if seconds is None else found == pytest.approx(seconds, abs=0.001)


def test_openai_counts_minutes_and_tells_durations() -> None:
    headers = {
        "x-ratelimit-limit-requests": "60", "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s", "x-ratelimit-limit-tokens": "150000",
        "x-ratelimit-remaining-tokens": "149984", "x-ratelimit-reset-tokens": "6m0s",
    }  # fmt: skip
    assert reading("openai", headers) == {
        RateWindow("requests", 60.0, 60.0, 59.0, 1.0),
        RateWindow("tokens", 60.0, 150_000.0, 149_984.0, 360.0),
    }


def test_mx4_resets_are_unix_times() -> None:
    headers = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": str(int(NOW) + 17)}
    assert reading("mx4", headers) == {RateWindow("requests", 60.0, None, 0.0, 17.0)}


def test_groq_requests_count_days_and_tokens_minutes() -> None:
    headers = {"x-ratelimit-limit-requests": "14400", "x-ratelimit-limit-tokens": "18000"}
    found = parse_rate_headers(headers, load_preset("groq").rate_headers, NOW)
    assert found.limits == {"requests_per_day": 14_400.0, "tokens_per_minute": 18_000.0}


def test_anthropic_names_the_kind_last_and_tells_rfc_3339() -> None:
    headers = {
        "anthropic-ratelimit-requests-limit": "50",
        "anthropic-ratelimit-requests-remaining": "49",
        "anthropic-ratelimit-requests-reset": "2026-09-21T14:14:20Z",
        "anthropic-ratelimit-input-tokens-limit": "40000",
        "anthropic-ratelimit-output-tokens-limit": "8000",
    }
    found = parse_rate_headers(headers, load_preset("anthropic").rate_headers, NOW)
    assert RateWindow("requests", 60.0, 50.0, 49.0, 60.0) in found.windows
    assert found.limits == {
        "requests_per_minute": 50.0, "input_tokens_per_minute": 40_000.0, "output_tokens_per_minute": 8_000.0,
    }  # fmt: skip


def test_cerebras_names_its_periods() -> None:
    headers = {
        "x-ratelimit-limit-requests-day": "1000", "x-ratelimit-reset-requests-day": "33011.382867",
        "x-ratelimit-limit-tokens-minute": "160000", "x-ratelimit-remaining-tokens-minute": "0",
        "x-ratelimit-reset-tokens-minute": "11.382867",
    }  # fmt: skip
    found = parse_rate_headers(headers, load_preset("cerebras").rate_headers, NOW)
    assert found.limits == {"requests_per_day": 1000.0, "tokens_per_minute": 160_000.0}
    assert found.exhausted_for_s == pytest.approx(11.382867)


def test_fireworks_tells_tokens_per_second() -> None:
    headers = {"x-ratelimit-limit-tokens-prompt": "60000", "x-ratelimit-limit-tokens-generated": "600"}
    found = parse_rate_headers(headers, load_preset("fireworks").rate_headers, NOW)
    assert found.limits == {"input_tokens_per_minute": 3_600_000.0, "output_tokens_per_minute": 36_000.0}


def test_together_limits_of_unknown_period_teach_no_limit_but_their_rest_is_read() -> None:
    headers = {
        "x-ratelimit-limit": "10", "x-ratelimit-remaining": "0", "x-ratelimit-reset": "2",
        "x-tokenlimit-limit": "1000", "x-tokenlimit-remaining": "5",
    }  # fmt: skip
    found = parse_rate_headers(headers, load_preset("together").rate_headers, NOW)
    assert found.limits == {}
    assert set(found.windows) == {
        RateWindow("requests", None, 10.0, 0.0, 2.0), RateWindow("tokens", None, 1000.0, 5.0, None),
    }  # fmt: skip
    assert found.exhausted_for_s == 2.0


def test_suffixes_name_hours_and_minutes() -> None:
    """The style of some other hosts: -1h, -per-minute."""
    headers = {"x-ratelimit-limit-requests-1h": "1000", "x-ratelimit-limit-tokens-per-minute": "5"}
    found = parse_rate_headers(headers, RateHeaders(), NOW)
    assert found.limits == {"requests_per_hour": 1000.0, "tokens_per_minute": 5.0}


def test_rows_about_something_else_are_left_out() -> None:
    """OpenAI added further rows: what is not known is not guessed."""
    headers = {"x-ratelimit-limit-project-tokens": "5", "x-ratelimit-foo": "1", "x-ratelimit-limit-requests": "many"}
    assert parse_rate_headers(headers, RateHeaders(), NOW).windows == ()
