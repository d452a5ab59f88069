"""What answers and probes taught about one lane's capabilities, as patches of lanes.learned.

Owns: which finding may replace which: traffic demotes, and promotes only what was unlisted; a probe decides
anew; and how many answers make a finding of what one only suggests.
Layout: {"support": {feature: value}, "limits": {...}}.
May not touch: the database (storage.lanes saves the patch). Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal

from batch.completions.cards import Card, Support

Source = Literal["traffic", "probe"]

IGNORED_FROM = 3
_DEMOTED = (Support.IGNORED, Support.REJECTED)


def learn_support(
    learned: Mapping[str, Any] | None, card: Card, findings: Mapping[str, str], source: Source = "traffic"
) -> dict[str, Any]:
    """A patch {"support": all that is learned now} when a finding changes `card`; {} when nothing is new.

    `learned` is the lane's, and `card` already holds it; `findings` are {feature: "native" | "ignored" |
    "rejected"}.
    """
    changed = {}
    for feature, value in findings.items():
        found, held = Support(value), card.of(feature)
        if found is not held and may_replace(held, found, source):
            changed[feature] = found.value
    held_rows = (learned or {}).get("support") or {}
    return {"support": {**held_rows, **changed}} if changed else {}


def may_replace(held: Support, found: Support, source: Source) -> bool:
    """Traffic never lifts a demotion: one lucky answer proves little. A probe may."""
    if found is Support.UNLISTED:
        return False
    return source == "probe" or found in _DEMOTED or held is Support.UNLISTED


class Evidence:
    """What the answers of one lane suggest. A stray answer proves little: prose for a schema may be the model's
    mood. So "ignored" counts from the third answer on that shows it, while more show it than do not; a refusal
    by name counts at once."""

    def __init__(self) -> None:
        self._answers: Counter[tuple[str, str]] = Counter()

    def weigh(self, findings: Mapping[str, str]) -> dict[str, str]:
        """Count these findings of one answer; those that are settled by now."""
        settled = {}
        for feature, value in findings.items():
            self._answers[feature, value] += 1
            ignored = self._answers[feature, "ignored"]
            if value != "ignored" or (ignored >= IGNORED_FROM and ignored > self._answers[feature, "native"]):
                settled[feature] = value
        return settled


def renamed_max_tokens(support: Mapping[str, Support], field: str) -> str:
    """The field to use for the maximum, once one of its two names was refused."""
    other = "max_tokens" if field == "max_completion_tokens" else "max_completion_tokens"
    refused = support.get(field) is Support.REJECTED and support.get(other) is not Support.REJECTED
    return other if refused else field
