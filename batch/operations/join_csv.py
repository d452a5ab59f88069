"""Join answers back to the table that `prepare` made requests from, as CSV.

Owns: the added columns: answer (answer_1 … answer_n where choices are several), finish_reason, error.
Holds the answers in memory, the table not. May not touch: the network.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from batch.domain.errors import InvalidRequest
from batch.files.tabular import read_rows
from batch.operations.prepare_requests import as_text


@dataclass(frozen=True, slots=True)
class Answer:
    texts: tuple[str, ...]
    finish_reason: str
    error: str


def join_csv(table: Path, lines: Iterable[bytes], *, id_column: str | None = None) -> Iterator[bytes]:
    """CSV in blocks, header first, in the table's order. `lines` are of the output and error files.

    Rows are matched as prepare_requests names them: "row-N", or the value of `id_column`.
    """
    answers = {custom_id: answer for custom_id, answer in map(_read_line, lines) if custom_id is not None}
    width = max((len(answer.texts) for answer in answers.values()), default=1)
    added = ["answer"] if width <= 1 else [f"answer_{i + 1}" for i in range(width)]
    header: list[str] | None = None
    for number, row in enumerate(read_rows(table), 1):
        if header is None:
            header = list(row)
            yield _csv_row([*header, *added, "finish_reason", "error"])
        if id_column is not None and id_column not in row:
            raise InvalidRequest(f'{table}: no column "{id_column}"')
        custom_id = f"row-{number}" if id_column is None else as_text(row[id_column])
        answer = answers.get(custom_id, Answer((), "", "no answer"))
        texts = [*answer.texts, *[""] * (len(added) - len(answer.texts))]
        yield _csv_row([*[as_text(row.get(name)) for name in header], *texts, answer.finish_reason, answer.error])


def _read_line(line: bytes) -> tuple[str | None, Answer]:
    data = orjson.loads(line)
    response, error = data.get("response"), data.get("error")
    body = (response or {}).get("body") or {}
    if error is None and response and response.get("status_code") == 200:
        choices = body.get("choices") or []
        texts = tuple(_content(choice.get("message") or {}) for choice in choices)
        return data.get("custom_id"), Answer(texts, str(choices[0].get("finish_reason") or "") if choices else "", "")
    error = error or body.get("error") or {}
    text = f"{error.get('code') or error.get('type') or 'error'}: {error.get('message') or ''}"
    return data.get("custom_id"), Answer((), "", text)


def _content(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    if message.get("refusal"):
        return str(message["refusal"])
    return orjson.dumps(message["tool_calls"]).decode() if message.get("tool_calls") else ""


def _csv_row(cells: list[str]) -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer).writerow(cells)
    return buffer.getvalue().encode()
