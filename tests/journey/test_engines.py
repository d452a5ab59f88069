"""Real engines: the bundled model behind llama.cpp's server, one and several, ours and others'."""

from __future__ import annotations

import json
import os
import signal
import sys

import orjson
import psutil
import pytest

from batch.cli.local_model import MODEL
from tests.harness.engines import engine_table, needs_model, running_llamas
from tests.harness.service import Service, chat, running_service
from tests.harness.waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.local_model, needs_model]

LAUNCH = f"""[providers.eng]
engine = "llamacpp"
models = ["{MODEL}"]
[providers.eng.launch]
command = ["{sys.executable}", "-m", "batch.cli.local_model", "{{port}}", "1"]
"""


def test_a_replica_dies_and_returns_in_the_middle_of_a_batch() -> None:
    """Its lines move at once and cost no attempt, it is used again when it is back, and no line is lost."""
    with running_llamas(2) as (first, second), running_service(engine_table([first.base_url, second.base_url])) as up:
        lines = [chat(f"c{i}", MODEL, f"Count to {i}.", max_tokens=24, temperature=0) for i in range(120)]
        batch_id = up.submit(lines)
        eventually(lambda: first.answered() > 100 and second.answered() > 100, 60, what="both replicas work")
        first.kill()
        eventually(lambda: "replica_out" in up.child.text(), 20, what="it is taken out")
        first.start()
        eventually(lambda: first.is_ready() and first.answered() > 0, 60, what="it works again")
        ended = up.wait(batch_id, 120)
    assert ended.batch["request_counts"] == {"total": 120, "completed": 120, "failed": 0}
    assert {note["attempts"] for note in map(ended.note, ended.lines)} == {1}


def test_an_engine_of_ours_starts_serves_is_recorded_and_ends_with_its_worker() -> None:
    """Its command and version stand in the report; killed, it starts again; a killed worker takes it along."""
    with running_service(LAUNCH) as up:
        ended = up.run([chat(f"c{i}", MODEL, "Say yes.", max_tokens=4) for i in range(6)], timeout_s=90)
        assert ended.batch["request_counts"]["completed"] == 6
        [built] = [fact for fact in ended.report if fact.startswith("engine:")]
        assert built.startswith("engine:llama.cpp server b") and "batch.cli.local_model" in built
        engine = _engines(up.child.pid)[0]
        engine.kill()
        eventually(lambda: "replica_back" in up.child.text().partition("engine_ended")[2], 60, what="it is back")
        again = up.run([chat("again", MODEL, "Say yes.", max_tokens=4)], timeout_s=60)
        assert again.batch["request_counts"]["completed"] == 1
        engines, workers = _engines(up.child.pid), _workers(up.child.pid)
        assert engines and all("XAI_API_KEY" not in process.environ() for process in engines)
        for process in workers:
            os.kill(process.pid, signal.SIGKILL)
        eventually(lambda: not any(process.is_running() for process in engines), 20, what="no orphan is left")
        last = up.run([chat("last", MODEL, "Say yes.", max_tokens=4)], timeout_s=90)
        assert last.batch["request_counts"]["completed"] == 1
        engines = _engines(up.child.pid)
    assert engines and not any(process.is_running() for process in engines)


def test_lines_over_one_document_are_sent_together_and_come_out_in_input_order() -> None:
    """By default for engines; the output file keeps the input's order."""
    documents = [f"Document {i}. " + "It says little. " * 30 for i in range(3)]
    lines = [
        chat(f"d{i % 3}-q{i // 3}", MODEL, documents[i % 3] + f"Question {i // 3}?", max_tokens=2) for i in range(9)
    ]
    with running_llamas(1) as [server], running_service(engine_table([server.base_url])) as up:
        ended = up.run(lines, timeout_s=90)
        replicas = eventually(lambda: _replicas(up), 30, what="a beat tells of the engine")
    assert list(ended.lines) == [line["custom_id"] for line in lines]
    assert replicas[0]["up"] is True and replicas[0]["version"].startswith("b")


def test_n_and_schema_hold_on_an_engine_that_ignores_them() -> None:
    """A server taken for one of those is asked n times, and with the schema in the prompt."""
    schema = {"type": "object", "properties": {"yes": {"type": "boolean"}}, "required": ["yes"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    rows = {"n": "ignored", "json_schema": "ignored", "response_format": "ignored", "schema_mode": "prompt"}
    ignoring = "".join(f'capabilities.{name} = "{value}"\n' for name, value in rows.items())
    with running_llamas(1) as [server], running_service(engine_table([server.base_url]) + ignoring) as up:
        lines = [
            chat("three", MODEL, "Name a colour.", n=3, max_tokens=8, temperature=1),
            chat("shape", MODEL, 'Is water wet? {"yes": true} or {"yes": false}', response_format=wanted,
                 max_tokens=24, temperature=0.2),
        ]  # fmt: skip
        ended = up.run(lines, timeout_s=90, schema_retries=8)
    assert len(ended.body("three")["choices"]) == 3
    line = ended.lines["shape"]
    if line["response"] is not None:  # a model this small may fail it, but then says so
        assert isinstance(json.loads(ended.body("shape")["choices"][0]["message"]["content"])["yes"], bool)
    else:
        assert line["error"]["code"] in {"json_schema_invalid", "truncated"}
    assert ended.report.get("emulated:n") == 1
    assert orjson.dumps(ended.report)


def _replicas(up: Service) -> list[dict]:
    shown = up.client.get("/v1/providers").json()["data"]
    return next(row for row in shown if row["provider"] == "eng")["replicas"]


def _descendants(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def _engines(pid: int) -> list[psutil.Process]:
    return [p for p in _descendants(pid) if p.cmdline()[1:3] == ["-m", "batch.cli.local_model"]]


def _workers(pid: int) -> list[psutil.Process]:
    return [p for p in _descendants(pid) if any("worker-" in word for word in p.cmdline())]
