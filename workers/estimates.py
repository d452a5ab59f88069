"""What a call will be charged, and what returned usage teaches about it.

Owns: Estimates of one lane — ratios of the lane and of its batches (a batch is a template), the charge
that the pacer reserves, and when `lanes.learned["tokens"]` is due. Step: pace.
May not touch: the database (the caller saves what is due), the estimate of a text (completions.tokens).
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from batch.completions.tokens import Ratios, charged_tokens, sent_max_tokens
from batch.domain.limits import Limits
from batch.domain.outcome import Usage

BATCHES_KEPT = 256
SAVE_EVERY_S = 30.0


class Estimates:
    """One per lane; `learned` is the lane's row's. Estimates given and observed are those of ingest."""

    def __init__(self, learned: dict[str, Any]) -> None:
        self._lane = Ratios.from_json(learned.get("tokens"))
        self._batches: OrderedDict[int, Ratios] = OrderedDict()
        self._seen_when_saved = self._lane.prompt.seen
        self._saved_at: float | None = None

    def charge(
        self, limits: Limits, batch_id: int, est_input: int, est_output: int, body: bytes, choices: int
    ) -> tuple[int, int]:
        """(total, output part) to reserve for one call that answers `choices` choices."""
        ratios = self._of(batch_id)
        limit = None
        if limits.charge in {"reserve_max", "reserve_refund"}:
            limit = sent_max_tokens(body)
        return charged_tokens(
            limits.charge, ratios.input(est_input), ratios.output(est_output), limit and limit * choices
        )

    def observe(self, batch_id: int, est_input: int, est_output: int, usage: Usage) -> None:
        """One answered call."""
        self._of(batch_id).observe(
            est_input=est_input,
            est_output=est_output,
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
        )

    @property
    def errors(self) -> tuple[float | None, float | None]:
        """Mean relative errors of corrected estimates (input, output); None before the first answer."""
        return self._lane.input_error, self._lane.output_error

    def due(self, now: float) -> dict[str, Any] | None:
        """The patch for `lanes.learned`, at most twice a minute and only after new answers; monotonic seconds."""
        if self._lane.prompt.seen == self._seen_when_saved:
            return None
        if self._saved_at is not None and now - self._saved_at < SAVE_EVERY_S:
            return None
        self._saved_at, self._seen_when_saved = now, self._lane.prompt.seen
        return {"tokens": self._lane.to_json()}

    def _of(self, batch_id: int) -> Ratios:
        ratios = self._batches.get(batch_id)
        if ratios is None:
            ratios = self._batches[batch_id] = Ratios(parent=self._lane)
            if len(self._batches) > BATCHES_KEPT:
                self._batches.popitem(last=False)
        return ratios
