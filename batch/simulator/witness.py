"""The request log: what was really sent here, as a witness for tests.

Owns: records in memory and in a JSONL file, and totals. A record is written when its answer is
decided, before any of it is sent, so that calls whose caller died are counted too.
Never holds prompts, answers or keys, unless log_bodies asks for the request bodies.
"""

from __future__ import annotations

import io
import threading
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

_KEPT = 200_000  # records in memory


@dataclass(slots=True)
class Record:
    """One request. `time` is Unix seconds at arrival; `key` is the last four characters of the API key;
    `parameters` are scalar body keys."""

    time: float
    path: str
    status: int
    model: str = ""
    seed: int | None = None
    n: int | None = None
    stream: bool = False
    fault: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    key: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    body: Any = None


class Witness:
    """Appends from the loop's thread; may be read from any."""

    def __init__(self, path: Path | None, *, keep: bool) -> None:
        self._lock = threading.Lock()
        self._records: deque[Record] = deque(maxlen=_KEPT)
        self._keep = keep
        self._file: io.FileIO | None = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = io.FileIO(str(path), "a")
        self._next = 0
        self.in_flight = 0
        self.forget()

    def forget(self) -> None:
        """Empty the records and set the totals to zero; the file stays as it is."""
        with self._lock:
            self._records.clear()
        self.statuses: Counter[int] = Counter()
        self.faults: Counter[str] = Counter()
        self.prompt_tokens = self.completion_tokens = self.aborted = 0
        self.most_in_flight = self.in_flight

    @property
    def is_listening(self) -> bool:
        """False when nobody wants records, only totals."""
        return self._keep or self._file is not None

    def next_number(self) -> int:
        """Arrivals are numbered from 0, never twice."""
        self._next += 1
        return self._next - 1

    def count(self, status: int, fault: str | None, prompt_tokens: int, completion_tokens: int) -> None:
        self.statuses[status] += 1
        if fault is not None:
            self.faults[fault] += 1
        self.prompt_tokens += prompt_tokens
        self.completion_tokens += completion_tokens

    def write(self, record: Record) -> None:
        if self._keep:
            with self._lock:
                self._records.append(record)
        if self._file is not None:  # one unbuffered write: whole lines, even when the process is killed
            self._file.write(orjson.dumps(record) + b"\n")

    def records(self) -> list[Record]:
        """In order of arrival."""
        with self._lock:
            return list(self._records)

    def totals(self) -> dict[str, Any]:
        counted = ("prompt_tokens", "completion_tokens", "in_flight", "most_in_flight", "aborted")
        return {
            "requests": self.statuses.total(),
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
            "faults": dict(self.faults),
            **{name: getattr(self, name) for name in counted},
        }

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
