"""Prepare requests: one line of batch input for each row of a table, from a template.

Owns: placeholders ({column}; {{ and }} stand for braces), the two kinds of template (a prompt, or a whole
body in JSON), custom ids ("row-1", or a column's value). May not touch: the network, the database.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from batch.domain.errors import InvalidRequest

_PLACEHOLDER = re.compile(r"\{\{|\}\}|\{([^{}\n]+)\}")


@dataclass(frozen=True)
class Template:
    """What each row becomes. `prompt` is a user message; `body`, where given, a whole request body."""

    prompt: str | None = None
    body: Mapping[str, Any] | None = None
    model: str | None = None
    system: str | None = None
    schema: Mapping[str, Any] | None = None
    schema_name: str = "answer"
    extra: Mapping[str, Any] = field(default_factory=dict)  # further body keys: n, seed, temperature, …
    id_column: str | None = None
    endpoint: str = "/v1/chat/completions"


def parse_template(text: str, **options: Any) -> Template:
    """A JSON object with `messages` is a body, everything else a prompt. Raises InvalidRequest."""
    if text.lstrip().startswith("{"):
        try:
            body = orjson.loads(text)
        except orjson.JSONDecodeError:
            body = None
        if isinstance(body, dict) and "messages" in body:
            return Template(body=body, **options)
    return Template(prompt=text.rstrip("\n"), **options)


def prepare_requests(rows: Iterable[Mapping[str, Any]], template: Template) -> Iterator[bytes]:
    """JSONL lines with their newline. Raises InvalidRequest for an unknown column or a repeated id."""
    seen: set[str] = set()
    if template.model is None and not (template.body or {}).get("model"):
        raise InvalidRequest("no model: give --model, or name one in the template's body", param="model")
    for number, row in enumerate(rows, 1):
        custom_id = f"row-{number}"
        if template.id_column is not None:
            custom_id = as_text(_column(row, template.id_column, number))
            if custom_id in seen or not custom_id:
                raise InvalidRequest(f'row {number}: --id {template.id_column}: "{custom_id}" is empty or repeated')
            seen.add(custom_id)
        request = {
            "custom_id": custom_id,
            "method": "POST",
            "url": template.endpoint,
            "body": _body(row, template, number),
        }
        yield orjson.dumps(request) + b"\n"


def _body(row: Mapping[str, Any], template: Template, number: int) -> dict[str, Any]:
    if template.body is not None:
        body = dict(_fill(template.body, row, number))
    else:
        messages = [{"role": "user", "content": _fill(template.prompt, row, number)}]
        if template.system is not None:
            messages.insert(0, {"role": "system", "content": _fill(template.system, row, number)})
        body = {"messages": messages}
    head: dict[str, Any] = {"model": template.model} if template.model else {}
    body = {**head, **{key: value for key, value in body.items() if key not in head}, **template.extra}
    if template.schema is not None:
        body["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": template.schema_name, "strict": True, "schema": template.schema},
        }
    return body


def _fill(value: Any, row: Mapping[str, Any], number: int) -> Any:
    """Placeholders replaced in every string of a JSON value."""
    if isinstance(value, str):
        return _PLACEHOLDER.sub(lambda match: _replacement(match, row, number), value)
    if isinstance(value, Mapping):
        return {key: _fill(item, row, number) for key, item in value.items()}
    if isinstance(value, list):
        return [_fill(item, row, number) for item in value]
    return value


def _replacement(match: re.Match[str], row: Mapping[str, Any], number: int) -> str:
    name = match.group(1)
    if name is None:
        return match.group(0)[0]
    return as_text(_column(row, name.strip(), number))


def _column(row: Mapping[str, Any], name: str, number: int) -> Any:
    if name not in row:
        known = ", ".join(str(key) for key in list(row)[:20])
        raise InvalidRequest(
            f'row {number}: no column "{name}" (there are: {known}); write {{{{ and }}}} for braces that are text'
        )
    return row[name]


def as_text(value: Any) -> str:
    """A cell of a table: texts and dates as they stand, all else as JSON."""
    if value is None or isinstance(value, str):
        return value or ""
    text = orjson.dumps(value, default=str)
    return str(orjson.loads(text)) if text.startswith(b'"') else text.decode()
