"""A real `transformers serve --continuous-batching` with a model made here: it ignores what a batch asks for.

Runs where its program is on the PATH (pip install torch "transformers[serving]"); the weights are random.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.weights import make_model
from tests.harness.service import Service, chat, running_service
from tests.harness.waiting import eventually

PROGRAM = shutil.which("transformers")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason="transformers is not installed"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("toy")
    make_model(directory, "toy")
    return str(directory)


@pytest.fixture
def up(model: str, tmp_path: Path) -> Iterator[Service]:
    """A service that starts the engine; its cache of a few thousand tokens is made at the first call."""
    (tmp_path / "hub").mkdir()
    command = [
        PROGRAM, "serve", model, "--host", "127.0.0.1", "--port", "{port}", "--device", "cpu", "--continuous-batching",
        "--cb-num-blocks", "64", "--cb-block-size", "64", "--cb-max-batch-tokens", "256",
    ]  # fmt: skip
    table = f"""[providers.eng]
engine = "transformers"
models = ["{model}"]
[providers.eng.launch]
command = {command}
env = {{ HF_HOME = "{tmp_path}", HF_HUB_OFFLINE = "1" }}
"""
    with running_service(table) as service:
        yield service


def test_what_it_ignores_is_made_good_or_told(up: Service, model: str) -> None:
    """n as single calls, a schema that noise never meets is an error of the line, a seed in the report."""
    schema = {"type": "object", "properties": {"yes": {"type": "boolean"}}, "required": ["yes"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    lines = [chat(f"plain{i}", model, f"Count to {i}.", max_tokens=8) for i in range(24)]
    lines += [
        chat("three", model, "Name a colour.", n=3, max_tokens=8, seed=7),
        chat("shape", model, "Is water wet?", response_format=wanted, max_tokens=8),
    ]
    ended = up.run(lines, timeout_s=120)
    assert ended.batch["request_counts"] == {"total": 26, "completed": 25, "failed": 1}
    assert [choice["index"] for choice in ended.body("three")["choices"]] == [0, 1, 2]
    assert ended.lines["shape"]["error"]["code"] == "truncated"  # it never ends by itself
    assert ended.report.get("emulated:n") == 1
    assert any(fact.startswith("engine:transformers serve") for fact in ended.report)


def test_a_prompt_that_ends_its_loop_fails_alone(up: Service, model: str) -> None:
    """Too long for its cache: the loop dies, the process stays. The engine is started again for the others."""
    lines = [chat("long", model, "Write a long story. " * 2000, max_tokens=8)]
    lines += [chat(f"short{i}", model, "Write.", max_tokens=8) for i in range(4)]
    ended = up.run(lines, timeout_s=300, max_attempts=2)
    assert ended.batch["request_counts"] == {"total": 5, "completed": 4, "failed": 1}
    eventually(lambda: "engine_ended" in up.child.text(), what="it is started again")
