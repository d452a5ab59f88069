"""Where each choice of a line stands.

Owns: ChoiceState (kept, or how often and how it is asked again) and its form in a snapshot.
May not touch: calls; answering.py moves these states.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from batch.completions.judge import Verdict
from batch.completions.reask import Reask


@dataclass(slots=True)
class ChoiceState:
    """One choice: `kept` with the record it came from (`raw`: the text before JSON was taken out of it; `cut`: at a
    stop, here), or what its next ask is.

    `asked` counts answers that covered it, `reasks` those of its wrong answers that were asked again with
    the errors, `empties` answers without it, `reseeds` how often its next seed was moved on.
    """

    asked: int = 0
    reasks: int = 0
    empties: int = 0
    reseeds: int = 0
    grown_to: int | None = None
    reask: Reask | None = None
    kept: dict[str, Any] | None = None
    record: int = 0
    raw: str | None = None
    cut: bool = False
    rejected: list[dict[str, Any]] = field(default_factory=list)

    def reject(self, verdict: Verdict) -> None:
        self.rejected.append(
            {
                "message": verdict.choice["message"],
                "finish_reason": verdict.choice.get("finish_reason"),
                "errors": list(verdict.errors),
            }
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> ChoiceState:
        reask = stored["reask"]
        return cls(**{**stored, "reask": Reask(**reask) if reask else None})
