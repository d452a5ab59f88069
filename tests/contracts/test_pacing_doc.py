"""docs/pacing.md against the code: the retry table, the codes of pauses, the words of status."""

from __future__ import annotations

from pathlib import Path

import pytest

from batch.domain.retry import RULES, Rule
from batch.operations import eta
from workers.pacer_lane import USED_UP

TEXT = (Path(__file__).resolve().parents[2] / "docs/pacing.md").read_text()
_WORDS = {
    "retry": "again", "fail": "the line ends", "demote": "without the parameter", "refused": "this line or the model",
    "pause_key": "the key pauses", "pause_lane": "the model pauses", "hold_scope": "lines of that budget wait",
}  # fmt: skip


def row_of(kind: str, rule: Rule) -> str:
    """The row that the guide must hold for one kind of failure."""
    again = rule.then == "retry"
    ends = rule.then not in {"pause_key", "pause_lane", "hold_scope"} and not (again and rule.budget == "none")
    cells = [
        f"`{kind}`",
        _WORDS[rule.then],
        rule.budget if again else "–",
        str(rule.tries) if again and rule.tries < 1_000 else "–",
        ("at once, then " if rule.first_s == 0 else "") + f"{rule.base_s:g}" if again else "–",
        f"{rule.cap_s:g}" if again else "–",
        f"`{rule.code}`" if ends else "–",
    ]
    return f"| {' | '.join(cells)} |"


@pytest.mark.parametrize("kind", list(RULES), ids=lambda kind: kind.value)
def test_the_retry_table_is_the_one_that_runs(kind) -> None:
    assert row_of(kind.value, RULES[kind]) in TEXT


def test_every_pause_is_explained() -> None:
    pausing = {kind.value for kind, rule in RULES.items() if rule.then in {"pause_key", "pause_lane", "hold_scope"}}
    for code in pausing | {USED_UP, "person", "forbidden", "model_not_found"}:
        assert f"`{code}`" in TEXT


def test_every_reason_of_a_standstill_is_explained() -> None:
    source = Path(eta.__file__).read_text()
    for words in ("No worker is running", "does not answer; one line tries again in", "answered 429 and asked to wait",
                  "No running worker is configured for", "waiting lines wait for their time"):  # fmt: skip
        assert words in source and words in TEXT
