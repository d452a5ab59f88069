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

IGNORED_FROM = 3
_DEMOTED = (Support.IGNORED, Support.REJECTED)


def learn_support(
    learned: Mapping[str, Any] | None,
    card: Card,
    findings: Mapping[str, str],
    source: Literal["traffic", "probe"] = "traffic",
) -> dict[str, Any]:
    """A patch {"support": all that is learned now} when a finding changes `card`; {} when nothing is new.

    `learned` is the lane's, and `card` already holds it; `findings` are {feature: "native" | "ignored" |
    "rejected"}.
    """
    changed = {}
    for feature, found in findings.items():
        held = card.of(feature)
        # Traffic never lifts a demotion: one lucky answer proves little. A probe may.
        if found != held and (source == "probe" or found in _DEMOTED or held is Support.UNLISTED):
            changed[feature] = found
    held_rows = (learned or {}).get("support") or {}
    return {"support": {**held_rows, **changed}} if changed else {}


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
