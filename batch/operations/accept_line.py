"""One input line to one request row, or to the reasons why not.

Owns: the order of checks: envelope, defaults, request rules, model and route, one model per file where
asked for, capability, estimate; and which bodies stay in the blob. May not touch: the database.
Serves ingest, where it must cost a few microseconds a line (what repeats is remembered by RouteBook), and `check`.
"""

from __future__ import annotations

from typing import Any

from batch.completions.prefix import prefix_key
from batch.completions.rules import check_body
from batch.completions.schema import SchemaCache
from batch.completions.tokens import estimate
from batch.domain.errors import UnknownModel
from batch.domain.line import InputLine, LineProblem, merge_defaults, parse_line
from batch.files.jsonl import RawLine
from batch.operations.private_urls import find_private_url
from batch.operations.routing import BookedRoute, RouteBook
from batch.settings import BODY_IN_ROW_BYTES
from batch.storage.ingest import RequestRow

_MAX_INT4 = 2**31 - 1


class LineGate:
    """Accepts the lines of one batch. `first_model` and `is_mixed` tell which models it asks for."""

    def __init__(self, book: RouteBook, *, batch_id: int = 0, is_seekable: bool = True) -> None:
        self.first_model: str | None = None
        self.is_mixed = False
        self.schemas = SchemaCache()
        self._book = book
        self._endpoint = book.endpoint
        self._defaults = book.options.defaults
        self._batch_id = batch_id
        # a line of a compressed blob cannot be read without all before it: such bodies go into the row
        self._row_bytes = BODY_IN_ROW_BYTES if is_seekable else book.settings.max_line_bytes

    @property
    def model(self) -> str | None:
        """The one model of all lines so far; None when there are several, or none yet."""
        return None if self.is_mixed else self.first_model

    def accept(self, raw: RawLine) -> RequestRow | LineProblem:
        """Never raises for what stands in the line; the first of several problems stands for all."""
        read = self.read(raw)
        if isinstance(read, list):
            first, more = read[0], len(read) - 1
            return first._replace(message=f"{first.message} (and {more} more in this line)") if more else first
        line, body = read
        route = self.place(line, body)
        if isinstance(route, LineProblem):
            if route.code != UnknownModel.code:
                return route
            message = f"The provided model '{body['model']}' is not supported by the Batch API. ({route.message})"
            return route._replace(message=message)
        est_input, est_output = estimate(body, endpoint=self._endpoint)
        in_row = len(line.body_bytes) <= self._row_bytes
        return RequestRow(
            self._batch_id,
            raw.number,
            line.custom_id,
            line.body_bytes.decode() if in_row else None,
            None if in_row else raw.offset,
            None if in_row else raw.length,
            min(est_input, _MAX_INT4),
            min(est_output, _MAX_INT4),
            route.number,
            None,
            prefix_key(body) if route.by_prefix else None,
        )

    def read(self, raw: RawLine) -> tuple[InputLine, dict[str, Any]] | list[LineProblem]:
        """The line and its body with the batch's defaults, or everything that is wrong with them."""
        if raw.data is None:
            limit = self._book.settings.max_line_bytes
            message = f"This line has {raw.length:,} bytes; at most {limit:,} are allowed."
            return [LineProblem("line_too_long", message, None)]
        line = parse_line(raw.data, self._endpoint)
        if isinstance(line, LineProblem):
            return [line]
        body = line.body
        if self._defaults:
            body, _ = merge_defaults(body, line.body_bytes, self._defaults)
        problems = check_body(body, self._endpoint, self.schemas)
        if problems:
            return [LineProblem(*problem, line.custom_id) for problem in problems]
        return line, body

    def place(self, line: InputLine, body: dict[str, Any]) -> BookedRoute | LineProblem:
        """Where a sound line goes, or why nobody serves it."""
        model = str(body["model"])
        route = self._book.book(model, line.override)
        if isinstance(route, LineProblem):
            return route._replace(custom_id=line.custom_id)
        if model != self.first_model and not self._admit(model):
            return _mismatched(model, line.custom_id)
        if body.get("seed") is not None:
            route = self._book.pin(route, body)
        refusal = self._book.judge(body, route) or (find_private_url(body) if route.may_fetch else None)
        return route if refusal is None else refusal._replace(custom_id=line.custom_id)

    def _admit(self, model: str) -> bool:
        if self.first_model is None:
            self.first_model = model
        elif self._book.settings.strict_single_model:
            return False
        else:
            self.is_mixed = True
        return True


def _mismatched(model: str, custom_id: str) -> LineProblem:
    return LineProblem(
        "mismatched_model",
        f"The model '{model}' for this request does not match the rest of the batch. "
        "Each batch must contain requests for a single model.",
        "body.model",
        custom_id,
    )
