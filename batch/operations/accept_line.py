"""One input line to one request row, or to the reason why not.

Owns: the order of checks: envelope, defaults, request rules, model and route, one model per file where
asked for, capability, estimate; and which bodies stay in the blob. May not touch: the database.
Serves ingest, where it must cost a few microseconds a line: what repeats is remembered by RouteBook.
"""

from __future__ import annotations

from batch.completions.prefix import prefix_key
from batch.completions.rules import check_body
from batch.completions.schema import SchemaCache
from batch.completions.tokens import estimate
from batch.domain.line import InputLine, LineProblem, merge_defaults, parse_line
from batch.domain.options import BatchOptions
from batch.files.jsonl import RawLine
from batch.operations.private_urls import find_private_url
from batch.operations.routing import RouteBook
from batch.settings import BODY_IN_ROW_BYTES, Settings
from batch.storage.ingest import RequestRow

_MAX_INT4 = 2**31 - 1


class LineGate:
    """Accepts the lines of one batch. `first_model` and `is_mixed` tell which models it asks for."""

    def __init__(
        self,
        settings: Settings,
        batch_id: int,
        endpoint: str,
        options: BatchOptions,
        book: RouteBook,
        schemas: SchemaCache,
        *,
        is_seekable: bool,
    ) -> None:
        self.first_model: str | None = None
        self.is_mixed = False
        self._settings = settings
        self._batch_id = batch_id
        self._endpoint = endpoint
        self._defaults = options.defaults
        self._book = book
        self._schemas = schemas
        # a line of a compressed blob cannot be read without all before it: such bodies go into the row
        self._row_bytes = BODY_IN_ROW_BYTES if is_seekable else settings.max_line_bytes

    @property
    def model(self) -> str | None:
        """The one model of all lines so far; None when there are several, or none yet."""
        return None if self.is_mixed else self.first_model

    def accept(self, raw: RawLine) -> RequestRow | LineProblem:
        """Never raises for what stands in the line."""
        if raw.data is None:
            limit = self._settings.max_line_bytes
            message = f"This line has {raw.length:,} bytes; at most {limit:,} are allowed."
            return LineProblem("line_too_long", message, None)
        line = parse_line(raw.data, self._endpoint)
        if isinstance(line, LineProblem):
            return line
        body = line.body
        if self._defaults:
            body, _ = merge_defaults(body, line.body_bytes, self._defaults)
        problems = check_body(body, self._endpoint, self._schemas)
        if problems:
            first, more = problems[0], len(problems) - 1
            message = f"{first.message} (and {more} more in this line)" if more else first.message
            return LineProblem(first.code, message, first.param, line.custom_id)
        return self._place(raw, line, body)

    def _place(self, raw: RawLine, line: InputLine, body: dict[str, object]) -> RequestRow | LineProblem:
        model = str(body["model"])
        route = self._book.book(model, line.override)
        if isinstance(route, LineProblem):
            return route._replace(custom_id=line.custom_id)
        if model != self.first_model and not self._admit(model):
            return _mismatched(model, line.custom_id)
        if body.get("seed") is not None:
            route = self._book.pin(route, body)
        refusal = self._book.judge(body, route) or (find_private_url(body) if route.may_fetch else None)
        if refusal is not None:
            return refusal._replace(custom_id=line.custom_id)
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

    def _admit(self, model: str) -> bool:
        if self.first_model is None:
            self.first_model = model
        elif self._settings.strict_single_model:
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
