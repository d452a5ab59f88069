"""Ingest: what a file becomes, line by line and as a whole."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import orjson
import pytest
import sqlalchemy as sa

from batch.operations import ingest as ingest_module
from batch.operations.cancel_batch import cancel_batch
from batch.operations.ingest import ingest_batch
from batch.operations.keys import set_project_limits
from batch.operations.read_batches import get_batch_errors
from batch.operations.retention import delete_file, remove_deleted_bytes
from batch.operations.world import World
from batch.storage import jobs
from batch.storage.batches import BatchRow
from batch.storage.packing import unpack_lines
from batch.storage.tables import batch_lanes, requests, results, slices, webhook_deliveries
from tests.harness.worlds import create, default_project, ingest, jsonl, load, make_world, request_line, upload


def rows(world: World, table: sa.Table, batch: BatchRow) -> list[Any]:
    with world.db.read() as conn:
        return list(conn.execute(sa.select(table).where(table.c.batch_id == batch.id).order_by(sa.text("2"))))


def errors(world: World, batch: BatchRow) -> list[tuple[str, str | None, int | None]]:
    found = get_batch_errors(world, [batch.id]).get(batch.id, [])
    return [(error.code, error.param, error.line) for error in found]


def test_lines_become_rows_slices_and_a_running_batch(world: World) -> None:
    """Bodies are kept as they were sent; counts, lanes and the bell follow in one transaction."""
    body = b'{"model":"m","messages":[{"role":"user","content":"hi"}],"big":123456789012345678901234567890}'
    line = b'{"custom_id":"b","method":"POST","url":"/v1/chat/completions","body":' + body + b"}"
    batch = ingest(world, jsonl([request_line("a"), line, request_line("c", model="m2")]))
    assert (batch.status, batch.total, batch.model) == ("in_progress", 3, None)
    stored = rows(world, requests, batch)
    assert [row.custom_id for row in stored] == ["a", "b", "c"]
    assert stored[1].body.encode() == body
    cuts = rows(world, slices, batch)
    assert sorted(unpack_lines(cut.lines) for cut in cuts) == [[1, 2], [3]]
    assert {lane.ready_lines for lane in rows(world, batch_lanes, batch)} == {1, 2}
    assert {name for name, _ in world.bells.rung} == {"ingest", "drain"}  # type: ignore[attr-defined]


def test_bom_crlf_blank_lines_and_a_missing_last_newline_are_read(world: World) -> None:
    """Line numbers count blank lines, as an editor does."""
    first, second = orjson.dumps(request_line("a")), orjson.dumps(request_line("b"))
    batch = ingest(world, b"\xef\xbb\xbf" + first + b"\r\n\r\n  \n" + second)
    assert [(row.line, row.custom_id) for row in rows(world, requests, batch)] == [(1, "a"), (4, "b")]


def test_a_compressed_input_is_the_same_batch_and_keeps_large_bodies_in_rows(world: World) -> None:
    """A line of a gzip file cannot be read by offset."""
    content = jsonl([request_line("a"), request_line("b", content="x" * 70_000)])
    batch = ingest(world, upload(world, gzip.compress(content), "in.jsonl.gz"))
    assert batch.total == 2
    assert [row.blob_offset for row in rows(world, requests, batch)] == [None, None]


def test_a_large_body_stays_in_the_blob(world: World) -> None:
    """The row keeps offset and length of the whole line."""
    lines = [request_line("a"), request_line("b", content="x" * 70_000)]
    content = jsonl(lines)
    batch = ingest(world, content)
    row = rows(world, requests, batch)[1]
    assert row.body is None
    assert content[row.blob_offset : row.blob_offset + row.blob_length] == orjson.dumps(lines[1])


def test_every_bad_line_is_reported_and_nothing_starts(world: World) -> None:
    """One entry a line, in line order, with OpenAI's codes; the batch fails before a token is spent."""
    good = request_line("a")
    lines: list[Any] = [
        good,
        b'{"custom_id": "x"',
        {"method": "POST", "url": good["url"], "body": good["body"]},
        {**good, "custom_id": "u", "url": "/v1/embeddings"},
        {**good, "custom_id": "m", "method": "GET"},
        request_line("n", model="unknown-model"),
        request_line("s", stream=True),
        request_line("t", temperature=9),
        {**good, "custom_id": "b", "body": []},
        good,
        {**request_line("o"), "batchmill": {"provider": "nobody"}},
    ]
    batch = ingest(world, jsonl(lines))
    assert (batch.status, batch.in_progress_at, batch.failed_at is not None) == ("failed", None, True)
    assert errors(world, batch) == [
        ("invalid_json_line", None, 2),
        ("missing_required_parameter", "custom_id", 3),
        ("invalid_url", "url", 4),
        ("invalid_method", "method", 5),
        ("model_not_found", "body.model", 6),
        ("streaming_unsupported", "body.stream", 7),
        (errors(world, batch)[6][0], "body.temperature", 8),
        ("invalid_type", "body", 9),
        ("duplicate_custom_id", "custom_id", 10),
        ("model_not_found", "body.model", 11),
    ]
    assert rows(world, slices, batch) == []
    with world.db.read() as conn:
        assert conn.execute(sa.select(webhook_deliveries.c.event)).scalars().all() == ["batch.failed"]


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b'{"model":"m","messages":"\xff"}', "Byte 95 is not UTF-8."),
        (b'{"a":"\x00"}', "Column 76: unexpected control character in string."),
        (b"[" * 5000 + b"]" * 5000, "Column 1094: depth limit exceeded."),
        (b'"\\ud800"', "Column 71: no low surrogate in string."),
    ],
    ids=["invalid UTF-8", "raw NUL", "deep nesting", "lone surrogate"],
)
def test_an_unreadable_line_says_where_and_why(sqlite_world: World, body: bytes, why: str) -> None:
    """`invalid_json_line`, whatever the parser dislikes."""
    line = b'{"custom_id":"z","method":"POST","url":"/v1/chat/completions","body":' + body + b"}"
    batch = ingest(sqlite_world, jsonl([request_line("a"), line]))
    assert errors(sqlite_world, batch) == [("invalid_json_line", None, 2)]
    assert why in get_batch_errors(sqlite_world, [batch.id])[batch.id][0].message


def test_a_nul_in_a_text_is_a_character_and_in_a_custom_id_an_error(world: World) -> None:
    """PostgreSQL's text cannot hold NUL; an escaped one in a body never reaches it unescaped."""
    batch = ingest(world, jsonl([request_line("a", content="x\0y")]))
    assert batch.status == "in_progress"
    assert errors(world, ingest(world, jsonl([request_line("a\0b")]))) == [("invalid_value", "custom_id", 1)]


def test_of_a_doubled_key_the_last_counts_for_checks_and_provider_alike(sqlite_world: World) -> None:
    """A body with `stream` twice is written anew, so that no provider sees the first one."""
    body = b'{"stream":true,"model":"m","messages":[{"role":"user","content":"x"}],"stream":false}'
    line = b'{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":' + body + b"}"
    batch = ingest(sqlite_world, jsonl([line]))
    assert batch.status == "in_progress"
    assert rows(sqlite_world, requests, batch)[0].body.count('"stream"') == 1


def test_a_line_over_the_limit_is_passed_over_without_being_kept(sqlite_url: str, tmp_path: Path) -> None:
    """Its number and size are reported, the rest of the file is read."""
    world = make_world(sqlite_url, tmp_path, max_line_bytes=2048)
    batch = ingest(world, jsonl([request_line("a"), b"{" + b"x" * 5_000_000 + b"}", b"{"]))
    assert errors(world, batch) == [("line_too_long", None, 2), ("invalid_json_line", None, 3)]


def test_bad_lines_go_to_the_error_file_when_asked(world: World) -> None:
    """They are results from the start, counted as failed; the good ones run."""
    lines = [request_line("a"), request_line("b", temperature=9), request_line("c")]
    batch = ingest(world, jsonl(lines), options={"on_invalid_line": "error_file"})
    assert (batch.status, batch.total, batch.failed, batch.last_seq) == ("in_progress", 3, 1, 1)
    [row] = rows(world, results, batch)
    assert (row.line, row.custom_id, row.ok) == (2, "b", False)
    assert orjson.loads(row.output)["error"]["code"] == "invalid_request"


def test_a_batch_of_bad_lines_alone_goes_straight_to_its_files(world: World) -> None:
    """Nothing is left to run: it is sealed by ingest."""
    batch = ingest(world, jsonl([request_line("b", temperature=9)]), options={"on_invalid_line": "error_file"})
    assert (batch.status, batch.sealed_at is not None, batch.failed) == ("finalizing", True, 1)


def test_unreadable_lines_and_duplicates_fail_the_batch_all_the_same(world: World) -> None:
    """Without a unique custom_id there is no line in an error file to point to."""
    lines: list[Any] = [request_line("a", temperature=9), request_line("a"), b"{"]
    batch = ingest(world, jsonl(lines), options={"on_invalid_line": "error_file"})
    assert (batch.status, errors(world, batch)) == (
        "failed",
        [("duplicate_custom_id", "custom_id", 2), ("invalid_json_line", None, 3)],
    )


def test_more_than_a_thousand_errors_end_in_one_summary(sqlite_world: World) -> None:
    """The first thousand are listed."""
    batch = ingest(sqlite_world, jsonl([request_line("a")]) + b"{\n" * 1500)
    found = errors(sqlite_world, batch)
    assert len(found) == 1001
    assert found[-1] == ("too_many_errors", None, None)


def test_a_deleted_input_file_fails_the_batch(world: World) -> None:
    """Deleting it right after create is no server error."""
    batch = create(world, jsonl([request_line("a")]))
    delete_file(world, batch.project_id, batch.input_file)
    assert ingest_batch(world, batch.id, "test") == "failed"
    assert errors(world, batch) == [("invalid_request", "file_id", None)]


def test_a_zip_bomb_is_refused(sqlite_url: str, tmp_path: Path) -> None:
    """What comes out of gzip is bounded by the size of a file."""
    world = make_world(sqlite_url, tmp_path, max_file_bytes=1_000_000)
    bomb = gzip.compress(jsonl([request_line("a")]) + b" " * 50_000_000)
    batch = ingest(world, upload(world, bomb, "x.jsonl.gz"))
    assert (batch.status, errors(world, batch)[0][0]) == ("failed", "too_large")


def test_one_model_per_file_where_the_settings_ask_for_it(sqlite_url: str, tmp_path: Path) -> None:
    """OpenAI's rule, off by default."""
    world = make_world(sqlite_url, tmp_path, strict_single_model=True)
    batch = ingest(world, jsonl([request_line("a"), request_line("b", model="m2")]))
    assert errors(world, batch) == [("mismatched_model", "body.model", 2)]


def test_too_many_requests_fail_the_batch(sqlite_url: str, tmp_path: Path) -> None:
    """The limit is a setting."""
    world = make_world(sqlite_url, tmp_path, max_requests_per_batch=3)
    batch = ingest(world, jsonl([request_line(str(i)) for i in range(5)]))
    assert errors(world, batch) == [("too_many_tasks", None, None)]


def test_project_limits_count_what_is_still_open(world: World) -> None:
    """A second batch over the enqueued limit fails with OpenAI's code."""
    default_project(world)
    set_project_limits(world, "default", limits={"enqueued_requests": 3})
    assert ingest(world, jsonl([request_line("a"), request_line("b")])).status == "in_progress"
    second = ingest(world, jsonl([request_line("a"), request_line("b")]))
    assert errors(world, second) == [("token_limit_exceeded", None, None)]


def test_a_budget_without_a_price_is_refused(world: World) -> None:
    """Better than a budget that cannot stop anything."""
    batch = ingest(world, jsonl([request_line("a")]), options={"budget_usd": 1.0})
    assert errors(world, batch) == [("price_unknown", "options.budget_usd", None)]


def test_defaults_are_checked_with_the_line_and_stored_apart(world: World) -> None:
    """A default that is out of range is found; a body keeps only what was sent."""
    bad = ingest(world, jsonl([request_line("a")]), options={"defaults": {"temperature": 9}})
    assert bad.status == "failed"
    good = ingest(world, jsonl([request_line("a")]), options={"defaults": {"temperature": 0.5}})
    assert "temperature" not in rows(world, requests, good)[0].body


def test_a_model_may_come_from_the_defaults(world: World) -> None:
    """The line's model is the merged one."""
    line = request_line("a")
    del line["body"]["model"]
    assert ingest(world, jsonl([line]), options={"defaults": {"model": "m"}}).model == "m"


def test_duplicates_share_one_answer_when_asked(world: World) -> None:
    """Only where the answer is meant to be the same: temperature 0 or a seed."""
    lines = [
        request_line("a", content="x", temperature=0),
        request_line("b", content="x", temperature=0),
        request_line("c", content="x"),
        request_line("d", content="x"),
    ]
    batch = ingest(world, jsonl(lines), options={"dedupe": True})
    assert [row.copy_of for row in rows(world, requests, batch)] == [None, 1, None, None]
    assert [unpack_lines(cut.lines) for cut in rows(world, slices, batch)] == [[1, 3, 4]]


def test_a_window_that_is_too_short_is_warned_of(sqlite_url: str, tmp_path: Path) -> None:
    """On the batch object, before anything is sent."""
    slow = {"acme": {"base_url": "http://127.0.0.1:9/v1", "models": ["m"], "requests_per_minute": 1}}
    world = make_world(sqlite_url, tmp_path, providers=slow)
    batch = ingest(world, jsonl([request_line(str(i)) for i in range(50)]), completion_window="30m")
    [warning] = batch.warnings
    assert "49 min" in warning["message"]
    assert "requests/minute" in warning["message"]


def test_slices_hold_at_most_twenty_seconds_of_the_known_rate(sqlite_url: str, tmp_path: Path) -> None:
    """30 requests a minute are 10 lines a slice."""
    paced = {"acme": {"base_url": "http://127.0.0.1:9/v1", "models": ["m"], "requests_per_minute": 30}}
    world = make_world(sqlite_url, tmp_path, providers=paced)
    batch = ingest(world, jsonl([request_line(str(i)) for i in range(25)]))
    assert [row.line_count for row in rows(world, slices, batch)] == [10, 10, 5]


class Killed(BaseException):
    """What a kill −9 is to the code: nothing runs after it."""


def test_an_ingest_that_dies_is_resumed_at_its_offset(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each line once, whatever chunk the first one died in; the dead one can write nothing any more."""
    monkeypatch.setattr(ingest_module, "CHUNK_ROWS", 100)
    batch = create(world, jsonl([request_line(f"r{i}", model=("m", "m2")[i % 2]) for i in range(400)]))
    asked = iter([False, False])

    def die() -> bool:
        if next(asked, None) is None:
            raise Killed
        return False

    with pytest.raises(Killed):
        ingest_batch(world, batch.id, "first", die)
    half = load(world, batch)
    assert (half.status, half.total, half.ingest_line) == ("validating", 0, len(rows(world, requests, batch)))
    assert ingest_batch(world, batch.id, "second") == "idle"  # the dead one's lease still runs
    expire_job(world, batch)
    assert ingest_batch(world, batch.id, "second") == "started"
    assert [row.line for row in rows(world, requests, batch)] == list(range(1, 401))
    cut = [line for row in rows(world, slices, batch) for line in unpack_lines(row.lines)]
    assert sorted(cut) == list(range(1, 401))
    with world.db.write() as conn:
        assert not jobs.renew_job_if_held(conn, batch.id, 1)  # the first one's epoch


def test_a_resumed_ingest_knows_the_twins_of_the_one_that_died(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A duplicate behind the crash takes the answer of a first line before it."""
    monkeypatch.setattr(ingest_module, "CHUNK_ROWS", 100)
    lines = [request_line(f"r{i}", content=f"c{i % 150}", seed=1) for i in range(400)]
    batch = create(world, jsonl(lines), options={"dedupe": True})

    def die() -> bool:
        raise Killed

    with pytest.raises(Killed):
        ingest_batch(world, batch.id, "first", die)
    assert 0 < load(world, batch).ingest_line < 150
    expire_job(world, batch)
    assert ingest_batch(world, batch.id, "second") == "started"
    expected = [None if line <= 150 else (line - 1) % 150 + 1 for line in range(1, 401)]
    assert [row.copy_of for row in rows(world, requests, batch)] == expected
    assert sum(row.line_count for row in rows(world, slices, batch)) == 150


def test_an_input_deleted_after_a_part_of_it_was_read_does_not_fail_the_batch(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one ingest has begun the next one ends, whether a crash lies between or not."""
    monkeypatch.setattr(ingest_module, "CHUNK_ROWS", 100)
    batch = create(world, jsonl([request_line(f"r{i}") for i in range(200)]))
    assert ingest_batch(world, batch.id, "first", lambda: True) == "stopped"
    delete_file(world, batch.project_id, batch.input_file)
    remove_deleted_bytes(world)
    assert ingest_batch(world, batch.id, "second") == "started"
    assert load(world, batch).total == 200


def test_an_ingest_that_is_asked_to_stop_gives_its_job_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one goes on at once, without waiting for a lease."""
    monkeypatch.setattr(ingest_module, "CHUNK_ROWS", 100)
    batch = create(world, jsonl([request_line(f"r{i}") for i in range(200)]))
    assert ingest_batch(world, batch.id, "first", lambda: True) == "stopped"
    assert ingest_batch(world, batch.id, "second") == "started"
    assert load(world, batch).total == 200


def test_a_cancel_stops_an_ingest_at_its_next_chunk(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It writes nothing more: the next chunk meets the freed job."""
    monkeypatch.setattr(ingest_module, "CHUNK_ROWS", 100)
    batch = create(world, jsonl([request_line(f"r{i}") for i in range(300)]))

    def cancel() -> bool:
        cancel_batch(world, batch.project_id, batch.public_id)
        return False

    assert ingest_batch(world, batch.id, "test", cancel) == "lost"
    assert load(world, batch).status == "cancelling"
    assert rows(world, slices, batch) == []


def expire_job(world: World, batch: BatchRow) -> None:
    from batch.storage.tables import batches

    with world.db.write() as conn:
        conn.execute(sa.update(batches).where(batches.c.id == batch.id).values(job_until=1))
