"""What `run` remembers of each OUT: which input and options made it, and in which batch.

Owns: DATA_DIR/runs, one small JSON file per OUT, and the rule when the same command continues.
May not touch: batches; the record only names one.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from batch.domain.errors import Conflict
from batch.files.local_file import write_atomically


@dataclass(frozen=True)
class RunRecord:
    """`options` are those that shape answers; budgets and patience may differ from run to run."""

    out: str
    input: str
    input_sha256: str
    options: dict[str, Any]
    batch_id: str | None = None
    serial: int = 0  # counts fresh starts of the same thing, so that each has a key of its own
    reuses: bool = False  # answers of an earlier input are kept beside this record

    @property
    def key(self) -> str:
        """The idempotency key under which the batch is created."""
        facts = orjson.dumps([self.out, self.input_sha256, self.options, self.serial], option=orjson.OPT_SORT_KEYS)
        return "run-" + hashlib.sha256(facts).hexdigest()[:40]


def hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Runs:
    """The records of one data directory."""

    def __init__(self, data_dir: Path) -> None:
        self._directory = data_dir / "runs"
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)

    def find(self, out: Path) -> RunRecord | None:
        try:
            return RunRecord(**orjson.loads(self._path(out).read_bytes()))
        except (OSError, ValueError, TypeError):
            return None

    def save(self, record: RunRecord) -> None:
        write_atomically(self._path(Path(record.out)), [orjson.dumps(asdict(record), option=orjson.OPT_INDENT_2)])

    def begin(self, wanted: RunRecord, *, force: bool, reuse: bool) -> RunRecord:
        """The record to go on with: the old one when nothing that matters changed, else `wanted`.

        Raises Conflict when OUT was made from something else and neither --force nor --reuse allows that.
        """
        out, old = Path(wanted.out), self.find(Path(wanted.out))
        if old is None:
            if out.exists() and out.stat().st_size and not force:
                raise Conflict(f"{out} exists and no run of this data directory made it; --force replaces it")
            return wanted
        if force:
            return replace(wanted, serial=old.serial + 1)
        same_input = old.input_sha256 == wanted.input_sha256
        if same_input and old.options == wanted.options:
            return old
        if reuse:
            return replace(wanted, serial=old.serial + 1, reuses=True)
        raise Conflict(_difference(old, wanted, same_input))

    def digests(self, out: Path) -> Path:
        """Where the digests of the input of OUT stand (operations.reuse_answers)."""
        return self._path(out).with_suffix(".digests")

    def kept(self, out: Path) -> Path:
        """Where answers taken over from an earlier OUT stand."""
        return self._path(out).with_suffix(".kept")

    def _path(self, out: Path) -> Path:
        name = hashlib.sha256(str(out.absolute()).encode()).hexdigest()[:24]
        return self._directory / f"{name}.json"


def _difference(old: RunRecord, wanted: RunRecord, same_input: bool) -> str:
    if not same_input:
        other = f"another input ({old.input})" if old.input != wanted.input else "an earlier version of this input"
        return (
            f"{wanted.out} belongs to {other}\n"
            "--reuse keeps the answers of lines that did not change; --force starts anew; or name another -o"
        )
    names = sorted(set(old.options) | set(wanted.options))
    changed = [
        f"{name} {_word(old.options.get(name))} → {_word(wanted.options.get(name))}"
        for name in names
        if old.options.get(name) != wanted.options.get(name)
    ]
    return (
        f"{wanted.out} was begun with other options ({', '.join(changed)})\n"
        "the same options continue it; --force starts anew; or name another -o"
    )


def _word(value: Any) -> str:
    return "not given" if value is None else orjson.dumps(value).decode()
