"""Tables as rows of named values: CSV, TSV, JSONL, and Parquet where pyarrow is installed.

Owns: reading them one row at a time, in the file's order, and naming the columns.
May not touch: what rows are used for (operations.prepare_requests, operations.join_csv).
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from batch.domain.errors import InvalidRequest

Row = dict[str, Any]


def read_rows(path: Path) -> Iterator[Row]:
    """Rows in order. The kind is told by the suffix. Raises InvalidRequest that names the file and the line."""
    readers = {
        ".csv": _read_csv,
        ".tsv": _read_csv,
        ".jsonl": _read_jsonl,
        ".ndjson": _read_jsonl,
        ".parquet": _read_parquet,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise InvalidRequest(f"{path}: not a table; it must end in {', '.join(readers)}")
    return reader(path)


def _read_csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(64 * 1024 * 1024)
    try:
        with path.open(encoding="utf-8-sig", newline="") as source:
            reader = csv.DictReader(source, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", restval="")
            for row in reader:
                if None in row:
                    raise InvalidRequest(f"{path}, line {reader.line_num}: more cells than the header has columns")
                yield row
    except UnicodeDecodeError:
        raise InvalidRequest(f"{path}: not UTF-8; save the table as UTF-8 first") from None
    except csv.Error as error:
        raise InvalidRequest(f"{path}: {error}") from None


def _read_jsonl(path: Path) -> Iterator[Row]:
    with path.open("rb") as source:
        for number, line in enumerate(source, 1):
            if not line.strip():
                continue
            try:
                row = orjson.loads(line)
            except orjson.JSONDecodeError:
                raise InvalidRequest(f"{path}, line {number}: not valid JSON") from None
            if not isinstance(row, dict):
                raise InvalidRequest(f"{path}, line {number}: each line must be an object of columns")
            yield row


def _read_parquet(path: Path) -> Iterator[Row]:
    try:
        import pyarrow.parquet  # noqa: PLC0415 - optional
    except ImportError:
        raise InvalidRequest(f"{path}: reading Parquet needs pyarrow: pip install pyarrow") from None
    for group in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=1_000):
        yield from group.to_pylist()
