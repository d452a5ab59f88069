"""JSON Schemas, compiled once each and checked without danger.

Owns: SchemaCache (one compilation per distinct schema), Schema (the check of one answer).
Nothing is ever fetched; patterns run on a linear engine; what could take long (schema_bounds) runs in
schema_child's process, which is killed after TIME_LIMIT_S. May not touch: prompts, providers.
"""

from __future__ import annotations

import threading
from hashlib import blake2b
from typing import Any

import jsonschema_rs
import orjson

from batch.completions.schema_bounds import Bounds, measure
from batch.completions.schema_process import KillableCheck, describe_error, list_errors
from batch.domain.errors import InvalidRequest

MAX_SCHEMA_BYTES = 256 * 1024
HEAVY_ANSWER_BYTES = 256 * 1024
TIME_LIMIT_S = 2.0
# Schema nodes × answer bytes: beyond it a check may take more than some 50 ms.
_HEAVY_WORK = 50_000_000
_HEAVY_UNIQUE_BYTES = 32 * 1024
_REGEX = jsonschema_rs.RegexOptions(size_limit=1 << 20, dfa_size_limit=1 << 20)


class Schema:
    """One compiled schema. `document` is the schema as given."""

    __slots__ = ("_bounds", "_killable", "_source", "_validator", "document")

    def __init__(self, document: Any, source: bytes, bounds: Bounds, killable: KillableCheck) -> None:
        self.document = document
        self._source = source.decode()
        self._bounds = bounds
        self._killable = killable
        self._validator = _compile(document)

    def errors(self, value: Any, text: str) -> list[str]:
        """At most five messages, "/path: what is wrong"; empty when `value` (parsed from `text`) is valid."""
        if self.is_heavy(len(text)):
            return self._killable.errors(self._source, text, TIME_LIMIT_S)
        return list_errors(self._validator, value)

    def is_heavy(self, answer_bytes: int) -> bool:
        """True when the check runs in a process of its own and may block for TIME_LIMIT_S."""
        bounds = self._bounds
        return (
            answer_bytes > HEAVY_ANSWER_BYTES
            or bounds.branches_back
            or bounds.expanded * answer_bytes > _HEAVY_WORK
            or (bounds.compares_items and answer_bytes > _HEAVY_UNIQUE_BYTES)
        )


class SchemaCache:
    """Compiled schemas by content; bad ones are remembered too. Safe to share between threads."""

    def __init__(self, capacity: int = 1024) -> None:
        self._capacity = capacity
        self._compiled: dict[bytes, Schema | str] = {}
        self._lock = threading.Lock()
        self._killable = KillableCheck()

    def compile(self, document: Any) -> Schema:
        """The compiled schema; InvalidRequest says what is wrong with it."""
        try:
            source = orjson.dumps(document)
        except orjson.JSONEncodeError as error:
            raise InvalidRequest(f"the schema cannot be read: {error}") from None
        key = blake2b(source, digest_size=16).digest()
        known = self._compiled.get(key)
        if known is None:
            known = self._remember(key, self._build(document, source))
        if isinstance(known, str):
            raise InvalidRequest(known)
        return known

    def close(self) -> None:
        self._killable.close()

    def _build(self, document: Any, source: bytes) -> Schema | str:
        if len(source) > MAX_SCHEMA_BYTES:
            return f"the schema has {len(source):,} bytes; {MAX_SCHEMA_BYTES:,} are allowed"
        try:
            return Schema(document, source, measure(document), self._killable)
        except InvalidRequest as error:
            return error.message

    def _remember(self, key: bytes, entry: Schema | str) -> Schema | str:
        with self._lock:
            while len(self._compiled) >= self._capacity:
                del self._compiled[next(iter(self._compiled))]
            self._compiled[key] = entry
        return entry


def _compile(document: Any) -> jsonschema_rs.Validator:
    try:
        return jsonschema_rs.validator_for(document, retriever=_refuse, pattern_options=_REGEX)
    except jsonschema_rs.ValidationError as error:
        raise InvalidRequest(describe_error(error)) from None
    except (ValueError, jsonschema_rs.ReferencingError) as error:
        raise InvalidRequest(str(error)[:300]) from None


def _refuse(uri: str) -> Any:
    raise ValueError(f"references outside the schema are not followed: {uri[:200]}")
