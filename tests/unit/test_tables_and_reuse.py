"""Tables into requests and back, and answers that outlive a change of the input."""

from __future__ import annotations

import csv
import io
import json
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from batch.cli.runs import RunRecord, Runs
from batch.domain.errors import Conflict, InvalidRequest
from batch.files.local_file import write_atomically
from batch.files.tabular import read_rows
from batch.operations.join_csv import join_csv
from batch.operations.prepare_requests import parse_template, prepare_requests
from batch.operations.reuse_answers import (
    KeptAnswers,
    digest_requests,
    merge_answers,
    unchanged_answers,
    without_kept,
)

CHAT = "/v1/chat/completions"


def prepared(template: str, rows: list[dict[str, Any]], **options: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in prepare_requests(rows, parse_template(template, **options))]


def test_a_prompt_template_becomes_a_user_message() -> None:
    """With the row's values in place, and braces that are text kept."""
    (request,) = prepared("Sum {{up}}: {text}", [{"text": "hello"}], model="m", system="For {text}")
    assert request["custom_id"] == "row-1"
    assert request["body"] == {
        "model": "m",
        "messages": [{"role": "system", "content": "For hello"}, {"role": "user", "content": "Sum {up}: hello"}],
    }


def test_a_json_template_is_a_whole_body() -> None:
    """Placeholders work in every string of it."""
    body = {"model": "m", "n": 2, "messages": [{"role": "user", "content": "{a}/{b}"}]}
    (request,) = prepared(json.dumps(body), [{"a": 1, "b": None}], id_column="a")
    assert (request["custom_id"], request["body"]["n"]) == ("1", 2)
    assert request["body"]["messages"][0]["content"] == "1/"


def test_an_unknown_column_names_the_known_ones() -> None:
    """And says how to write a brace that is text."""
    with pytest.raises(InvalidRequest, match=r'row 1: no column "txt" \(there are: text\)'):
        prepared("{txt}", [{"text": "x"}], model="m")


def test_answers_join_their_rows(tmp_path: Path) -> None:
    """Several choices become several columns; what failed says why; the table's order stays."""
    table = tmp_path / "t.csv"
    table.write_text("name,text\nada,one\nbob,two\ncyd,three\n")
    choices = [{"finish_reason": "stop", "message": {"content": text}} for text in ("A", "B,b")]
    good = {"custom_id": "row-2", "error": None, "response": {"status_code": 200, "body": {"choices": choices}}}
    bad = {"custom_id": "row-1", "response": None, "error": {"code": "truncated", "message": "cut off"}}
    joined = b"".join(join_csv(table, [json.dumps(good).encode(), json.dumps(bad).encode()])).decode()
    rows = list(csv.DictReader(io.StringIO(joined)))
    assert [row["name"] for row in rows] == ["ada", "bob", "cyd"]
    assert (rows[1]["answer_1"], rows[1]["answer_2"], rows[1]["error"]) == ("A", "B,b", "")
    assert [rows[0]["error"], rows[2]["error"]] == ["truncated: cut off", "no answer"]


def test_an_id_that_is_no_text_is_the_same_on_the_way_out_and_back(tmp_path: Path) -> None:
    """Numbers, truth values and lists as JSON writes them."""
    table = tmp_path / "t.jsonl"
    table.write_text('{"id": true}\n{"id": 1.5}\n{"id": ["a"]}\n')
    requests = prepared("x", list(read_rows(table)), model="m", id_column="id")
    assert [request["custom_id"] for request in requests] == ["true", "1.5", '["a"]']
    answers = [
        {"custom_id": request["custom_id"], "error": None, "response": {"status_code": 200, "body": {"choices": []}}}
        for request in requests
    ]
    joined = b"".join(join_csv(table, [json.dumps(answer).encode() for answer in answers], id_column="id")).decode()
    assert [row["error"] for row in csv.DictReader(io.StringIO(joined))] == ["", "", ""]


def test_a_date_of_a_table_stands_in_a_prompt_as_it_is_written() -> None:
    """Parquet has dates and decimals."""
    (request,) = prepared("{day} {sum}", [{"day": date(2026, 1, 2), "sum": Decimal("1.50")}], model="m")
    assert request["body"]["messages"][0]["content"] == "2026-01-02 1.50"


def test_tables_of_each_kind_give_the_same_rows(tmp_path: Path) -> None:
    """CSV with a BOM, TSV and JSONL."""
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbfa,b\r\n1,x\r\n")
    (tmp_path / "t.tsv").write_text("a\tb\n1\tx\n")
    (tmp_path / "t.jsonl").write_text('{"a": "1", "b": "x"}\n\n')
    assert all(list(read_rows(tmp_path / f"t.{kind}")) == [{"a": "1", "b": "x"}] for kind in ("csv", "tsv", "jsonl"))


def request_line(custom_id: str, text: str) -> bytes:
    body = {"model": "m", "messages": [{"role": "user", "content": text}]}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body}).encode() + b"\n"


def answer_line(custom_id: str, text: str, status: int = 200) -> bytes:
    response = {"status_code": status, "body": {"text": text}}
    return json.dumps({"custom_id": custom_id, "response": response, "error": None}).encode() + b"\n"


def test_only_unchanged_and_answered_lines_are_kept(tmp_path: Path) -> None:
    """A changed, a failed and a new request are asked again; the output is whole and in the new order."""
    old = [request_line("a", "1"), request_line("b", "2"), request_line("c", "3")]
    new = [request_line("c", "3"), request_line("b", "changed"), request_line("a", "1"), request_line("d", "4")]
    out, digests, kept_file = tmp_path / "out", tmp_path / "digests", tmp_path / "kept"
    write_atomically(out, [answer_line("a", "old"), answer_line("b", "old"), answer_line("c", "old", status=400)])
    write_atomically(digests, digest_requests(old, CHAT))
    write_atomically(kept_file, unchanged_answers(digests, new, out, CHAT))
    kept = KeptAnswers.load(kept_file)
    asked = list(without_kept(new, kept, CHAT))
    assert asked == [new[0], new[1], b"\n", new[3]]  # the blank line keeps line numbers true
    fresh = [answer_line("c", "new"), answer_line("b", "new"), answer_line("d", "new")]
    merged = [json.loads(line) for line in merge_answers(new, kept, fresh, CHAT)]
    assert [(m["custom_id"], m["response"]["body"]["text"]) for m in merged] == [
        ("c", "new"), ("b", "new"), ("a", "old"), ("d", "new"),
    ]  # fmt: skip


def record(tmp_path: Path, sha: str = "1", **options: Any) -> RunRecord:
    return RunRecord(str(tmp_path / "out.jsonl"), "in.jsonl", sha, {"endpoint": CHAT, **options})


def test_the_same_command_continues_and_another_is_refused(tmp_path: Path) -> None:
    """OUT belongs to one input and one set of options; --force and --reuse say otherwise."""
    runs = Runs(tmp_path)
    first = runs.begin(record(tmp_path), force=False, reuse=False)
    runs.save(first)
    assert runs.begin(record(tmp_path), force=False, reuse=False) == first
    with pytest.raises(Conflict, match="earlier version of this input"):
        runs.begin(record(tmp_path, "2"), force=False, reuse=False)
    with pytest.raises(Conflict, match="n not given → 3"):
        runs.begin(record(tmp_path, n=3), force=False, reuse=False)
    assert runs.begin(record(tmp_path, "2"), force=False, reuse=True).reuses
    anew = runs.begin(record(tmp_path), force=True, reuse=False)
    assert anew.key != first.key


def test_a_file_that_no_run_made_is_not_overwritten(tmp_path: Path) -> None:
    """Somebody else's work is safe without --force."""
    (tmp_path / "out.jsonl").write_text("mine\n")
    with pytest.raises(Conflict, match="--force"):
        Runs(tmp_path).begin(record(tmp_path), force=False, reuse=False)


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    """Whole or not at all, and no draft stays."""
    path = tmp_path / "out"
    path.write_text("old")

    def broken() -> Any:
        yield b"new"
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, broken())
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert path.read_text() == "old"
