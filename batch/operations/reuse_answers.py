"""Reuse answers: which lines of a changed input have their answer already, and one output of old and new.

Owns: the digest of a request, the comparison (custom_id and request equal, answered successfully) and the
merge in input order. Holds a digest or a place per line, never bodies. May not touch: the database.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from batch.domain.line import InputLine, parse_line
from batch.files.jsonl import RawLine, iter_lines
from batch.files.local_file import read_blocks

_LINE_BYTES = 1 << 31
_LEADING_BLANKS = 500_000


def digest_requests(blocks: Iterable[bytes], endpoint: str) -> Iterator[bytes]:
    """One short JSON line per request, [custom_id, digest]: what an input is compared by later."""
    for line in _requests(blocks, endpoint):
        yield orjson.dumps([line.custom_id, _digest(line)]) + b"\n"


def unchanged_answers(
    old_digests: Path, new_input: Iterable[bytes], old_output: Path, endpoint: str
) -> Iterator[bytes]:
    """The lines of `old_output` whose request stands unchanged in the new input, with their newline."""
    before = dict(orjson.loads(raw.data) for raw in _lines(read_blocks(old_digests)) if raw.data)
    same = {line.custom_id for line in _requests(new_input, endpoint) if before.get(line.custom_id) == _digest(line)}
    for raw in _lines(read_blocks(old_output)):
        if raw.data is not None and _answered(raw) in same:
            yield raw.data + b"\n"


@dataclass
class KeptAnswers:
    """A file of output lines, by custom_id: (offset, length) in it."""

    source: Path
    places: dict[str, tuple[int, int]] = field(default_factory=dict)

    @classmethod
    def load(cls, source: Path) -> KeptAnswers:
        kept = cls(source)
        for raw in _lines(read_blocks(source)):
            custom_id = _answered(raw)
            if custom_id is not None:
                kept.places[custom_id] = (raw.offset, raw.length)
        return kept


def without_kept(new_input: Iterable[bytes], kept: KeptAnswers, endpoint: str) -> Iterator[bytes]:
    """The new input's lines that still need an answer, with their newline; a blank line stands for a kept one.

    So line numbers stay the user's. (Blank lines before the first request are few: an upload looks for it.)
    """
    blanks, has_begun = 0, False
    for raw in _lines(new_input):
        line = parse_line(raw.data or b"", endpoint)
        if raw.data is not None and not (isinstance(line, InputLine) and line.custom_id in kept.places):
            has_begun = True
            yield raw.data + b"\n"
        elif has_begun or blanks < _LEADING_BLANKS:
            blanks += 1
            yield b"\n"


def merge_answers(
    new_input: Iterable[bytes], kept: KeptAnswers, fresh: Iterable[bytes], endpoint: str
) -> Iterator[bytes]:
    """Output lines, with newline, in the new input's order. `fresh` is in that order too, with gaps."""
    answers = (raw.data for raw in _lines(fresh) if raw.data is not None)
    waiting = next(answers, None)
    with kept.source.open("rb") as file:
        for line in _requests(new_input, endpoint):
            place = kept.places.get(line.custom_id)
            if place is not None:
                file.seek(place[0])
                yield file.read(place[1]) + b"\n"
            elif waiting is not None and orjson.loads(waiting).get("custom_id") == line.custom_id:
                yield waiting + b"\n"
                waiting = next(answers, None)


def _lines(blocks: Iterable[bytes]) -> Iterator[RawLine]:
    return iter_lines(blocks, max_line_bytes=_LINE_BYTES)


def _requests(blocks: Iterable[bytes], endpoint: str) -> Iterator[InputLine]:
    for raw in _lines(blocks):
        line = parse_line(raw.data or b"", endpoint)
        if isinstance(line, InputLine):
            yield line


def _digest(line: InputLine) -> str:
    facts = orjson.dumps([line.body, line.override], option=orjson.OPT_SORT_KEYS)
    return hashlib.blake2b(facts, digest_size=16).hexdigest()


def _answered(raw: RawLine) -> str | None:
    """The custom_id of a successful output line, else None."""
    try:
        line = orjson.loads(raw.data or b"null")
        ok = line["error"] is None and line["response"]["status_code"] == 200
        return str(line["custom_id"]) if ok else None
    except (ValueError, TypeError, KeyError):
        return None
