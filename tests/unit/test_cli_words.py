"""What people read: numbers, the check's summary, the story of a batch, the bar's words."""

from __future__ import annotations

from typing import Any

import pytest

from batch.cli.progress import progress_words
from batch.cli.story import tell
from batch.cli.wording import amount, dollars, listing, rate
from batch.operations.warn_window import duration


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (99, "99 s"), (120, "2 min"), (48_000, "13 h 20 min"), (7200, "2 h"), (32_220, "8 h 57 min"),
     (273_600, "3 d 4 h")],
)
def test_durations_read_as_people_say_them(seconds: float, words: str) -> None:
    """Never more than two units."""
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("number", "words"), [(42, "42"), (9_400, "9,400"), (12_480, "12.5 k"), (5_900_000, "5.9 M"), (2.1e9, "2.1 G")]
)
def test_amounts_are_rounded_for_reading(number: float, words: str) -> None:
    """Small ones stay exact."""
    assert amount(number) == words


def test_rates_use_the_unit_that_reads_better() -> None:
    """Slow ones by the minute, fast ones by the second."""
    assert [rate(15.6 / 60), rate(5), rate(250)] == ["15.6/min", "300/min", "250/s"]


def test_small_money_keeps_its_digits() -> None:
    """A hundredth of a cent is not nothing."""
    assert [dollars(0), dollars(0.0123), dollars(40.833)] == ["$0.00", "$0.0123", "$40.83"]


def test_long_lists_of_lines_end_in_a_count() -> None:
    """Five are named."""
    assert listing([1, 2, 3, 4, 5, 6, 7]) == "1, 2, 3, 4, 5 and 2 more"


def story(**changes: Any) -> dict[str, Any]:
    """An explanation as operations.explain_batch gives it, of a batch in the middle."""
    usage = dict.fromkeys(("input_tokens", "output_tokens", "billed_input_tokens", "billed_output_tokens"), 0)
    counts = {"total": 100, "completed": 40, "failed": 3, "waiting": 57, "cancelled": 0, "expired": 0}
    base = {
        "id": "batch_67f0a1b2c3", "file": "docs.jsonl", "status": "in_progress", "paused": False, "pause_reason": None,
        "counts": counts, "lanes": [], "failures": [], "errors": [], "error_count": 0, "answers": {}, "usage": usage,
        "cost_usd": 0.0, "unpriced_lines": 0, "budget_usd": None, "now": 1000.0, "created_at": 0.0, "started_at": 0.0,
        "ended_at": None, "expires_at": None, "warnings": [], "parent": None, "idle": None,
        "rate_per_s": 0.5, "eta_s": 114.0,
    }  # fmt: skip
    return base | changes


def text_of(facts: dict[str, Any]) -> str:
    return "\n".join(row.plain for row in tell(facts))


PAUSED_LANE = {
    "provider": "mx4", "model": "mx4-atlas-core", "ready": 57, "leased": 0, "in_flight": 0,
    "paused": {"until": 2000.0, "code": "bad_key", "reason": 'answered 401 "Invalid API key"',
               "mend": "restart the workers with a new MX4_API_KEY"},
}  # fmt: skip


def test_a_pause_tells_its_reason_and_its_mend() -> None:
    """Nobody has to read a log to learn why a batch stands still."""
    words = text_of(story(lanes=[PAUSED_LANE]))
    assert "in_progress, PAUSED on mx4" in words
    assert 'mx4 / mx4-atlas-core: answered 401 "Invalid API key". No line failed for it' in words
    assert "restart the workers with a new MX4_API_KEY" in words


def test_failures_name_their_lines() -> None:
    """The code as the error file has it, and where to look."""
    failures = [{"code": "context_length_exceeded", "count": 2, "lines": (88, 1203)}]
    assert "2 context_length_exceeded (lines 88, 1203)" in text_of(story(failures=failures))


def test_a_refused_file_names_its_first_problems() -> None:
    """And says how many more there are."""
    message = "This line is not parseable as valid JSON."
    errors = [{"code": "invalid_json_line", "message": message, "param": None, "line": 7}]
    words = text_of(story(status="failed", errors=errors, error_count=3, ended_at=5.0))
    assert "line 7: This line is not parseable" in words
    assert "and 2 problems more" in words


def test_answers_are_summed_up_in_one_row() -> None:
    """What was emulated, mended and refused, and who served."""
    report = {"emulated:n": 133, "schema:reasked": 31, "schema:mended": 30, "refused": 4, "served:core": 40,
              "fingerprint:fp_1": 40, "failed:json_schema_invalid": 1}  # fmt: skip
    words = text_of(story(answers=report))
    assert "n emulated 133   schema re-asked 31, mended 30   refused 4   served by core (1 fingerprint)" in words
    assert "failed json_schema_invalid" not in words


def test_the_bar_shows_share_rate_and_eta() -> None:
    """All that a person asks of a bar."""
    assert progress_words(story()) == "43 %  43/100  30.0/min  3 failed  eta 2 min"


def test_the_bar_says_that_it_is_paused() -> None:
    """An eta of a batch that stands still would be a lie."""
    still = story(lanes=[PAUSED_LANE], rate_per_s=0.0, eta_s=None)
    assert progress_words(still).endswith("paused on mx4 / mx4-atlas-core")
