"""What the lines of one lane came to, counted between two heartbeats.

Owns: sums that cost a line next to nothing; the heartbeat turns them into events, logs and metrics at once.
May not touch: results; what is lost with a process is a few seconds of counts.
"""

from __future__ import annotations

from collections import Counter

from batch.domain.result import LineResult
from batch.telemetry import emit


class Tally:
    """add() for each line that ended in this process, tell() every few seconds. Used on the event loop only."""

    def __init__(self) -> None:
        self._outcomes: Counter[str] = Counter()
        self._repairs: Counter[str] = Counter()
        self._input_tokens = 0
        self._output_tokens = 0
        self._cost_usd = 0.0

    def add(self, row: LineResult) -> None:
        outcome = "completed" if row.ok else "failed"
        for fact in row.facts:
            if fact.startswith("schema:"):
                self._repairs[fact[7:]] += 1
            elif fact == "refused":
                outcome = "refused"
        self._outcomes[outcome] += 1
        self._input_tokens += row.billed.input_tokens
        self._output_tokens += row.billed.output_tokens
        self._cost_usd += row.cost_usd or 0.0

    def tell(self, provider: str, model: str) -> None:
        if not self._outcomes:
            return
        for outcome, lines in self._outcomes.items():
            emit("lines_ended", provider=provider, model=model, outcome=outcome, lines=lines)
        for kind, answers in self._repairs.items():
            emit("answers_repaired", provider=provider, model=model, kind=kind, answers=answers)
        emit(
            "tokens_billed", provider=provider, model=model, input_tokens=self._input_tokens,
            output_tokens=self._output_tokens, cost_usd=self._cost_usd,
        )  # fmt: skip
        self.__init__()  # type: ignore[misc]
