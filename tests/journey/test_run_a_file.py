"""One file in, one file out, at a terminal: `batchmill run` as its own process, over a simulated provider."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from batch.simulator import Simulator, start_simulator
from tests.harness.servers import Child, clean_environment, python
from tests.harness.waiting import eventually


@pytest.fixture
def provider() -> Iterator[Simulator]:
    """A provider that answers at once and remembers every request."""
    with start_simulator(personality="openai") as simulator:
        yield simulator


class Desk:
    """A directory with an input file and a configuration, and the command run in it."""

    def __init__(self, directory: Path, provider: Simulator) -> None:
        self.directory = directory
        provider_table = f'[providers.local]\nbase_url = "{provider.base_url}"\nmodels = ["m"]\n'
        (directory / "batchmill.toml").write_text(provider_table)

    def write(self, count: int, text: str = "Say something") -> None:
        (self.directory / "in.jsonl").write_text("".join(json.dumps(request(i, text)) + "\n" for i in range(count)))

    def command(self, *arguments: str) -> list[str]:
        return python("-m", "batch.cli.app", "run", "in.jsonl", "-o", "out.jsonl", *arguments)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments), cwd=self.directory, env=clean_environment(), capture_output=True, text=True,
            timeout=120, check=False,
        )  # fmt: skip

    def answers(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.directory / "out.jsonl").read_text().splitlines()]

    def children(self) -> dict[str, list[Any]]:
        path = self.directory / ".batchmill" / "children.json"
        return dict(json.loads(path.read_text() or "{}")) if path.exists() else {}


def request(number: int, text: str) -> dict[str, Any]:
    body = {"model": "m", "messages": [{"role": "user", "content": f"{text} {number}"}]}
    return {"custom_id": f"r{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] == "Z" if Path("/proc").exists() else False


@pytest.fixture
def desk(tmp_path: Path, provider: Simulator) -> Desk:
    return Desk(tmp_path, provider)


def test_a_file_goes_in_and_answers_come_out_in_order(desk: Desk, provider: Simulator) -> None:
    """Every custom_id once, in the input's order; the same command afterwards asks nobody again."""
    desk.write(20)
    done = desk.run()
    assert done.returncode == 0, done.stderr
    assert [answer["custom_id"] for answer in desk.answers()] == [f"r{i}" for i in range(20)]
    asked = len(provider.requests)
    again = desk.run()
    assert (again.returncode, len(provider.requests)) == (0, asked)
    assert all(is_gone(pid) for pid, _ in desk.children().values())


def test_a_changed_file_asks_only_what_changed(desk: Desk, provider: Simulator) -> None:
    """Refused without --reuse; with it, the new line alone is sent."""
    desk.write(5)
    assert desk.run().returncode == 0
    asked = len(provider.requests)
    lines = (desk.directory / "in.jsonl").read_text().replace("something 3", "something new")
    (desk.directory / "in.jsonl").write_text(lines)
    refused = desk.run()
    assert refused.returncode == 2
    assert "--reuse" in refused.stderr
    assert desk.run("--reuse").returncode == 0
    assert len(provider.requests) == asked + 1
    assert [answer["custom_id"] for answer in desk.answers()] == [f"r{i}" for i in range(5)]


def test_failed_lines_give_exit_code_1_and_an_error_file(desk: Desk, provider: Simulator) -> None:
    """Unless their share is allowed."""
    provider.apply(provider.config.from_mapping({"faults": [{"kind": "content_policy", "contains": "something 3"}]}))
    desk.write(5)
    assert desk.run().returncode == 1
    errors = (desk.directory / "out.errors.jsonl").read_text().splitlines()
    assert [json.loads(line)["custom_id"] for line in errors] == ["r3"]
    assert desk.run("--allow-failed", "20%").returncode == 0


def test_an_interrupt_keeps_what_is_done_and_the_same_command_continues(desk: Desk, provider: Simulator) -> None:
    """Exit code 130, no process left, and no line is answered twice in the output."""
    provider.apply(provider.config.from_mapping({"latency": "0.2", "limits": [{"what": "requests", "amount": 600}]}))
    desk.write(60)
    child = Child(desk.command(), env=clean_environment(), cwd=desk.directory, log=desk.directory / "run.log")
    eventually(lambda: len(provider.requests) > 5, 60, what="the first calls")
    pids = [pid for pid, _ in desk.children().values()]
    child.process.send_signal(signal.SIGINT)
    assert child.process.wait(timeout=60) == 130, child.text()
    assert "Continue: the same command." in child.text()
    assert all(is_gone(pid) for pid in pids)
    provider.apply(provider.config.from_mapping({}))
    assert desk.run().returncode == 0
    assert [answer["custom_id"] for answer in desk.answers()] == [f"r{i}" for i in range(60)]


def test_killed_without_warning_it_leaves_no_process_and_loses_nothing(desk: Desk, provider: Simulator) -> None:
    """SIGKILL of the parent ends its children; the same command continues."""
    provider.apply(provider.config.from_mapping({"latency": "0.2", "limits": [{"what": "requests", "amount": 600}]}))
    desk.write(40)
    child = Child(desk.command(), env=clean_environment(), cwd=desk.directory, log=desk.directory / "run.log")
    eventually(lambda: len(provider.requests) > 5, 60, what="the first calls")
    pids = [pid for pid, _ in desk.children().values()]
    child.process.kill()
    eventually(lambda: all(is_gone(pid) for pid in pids), 60, what="the children end")
    provider.apply(provider.config.from_mapping({}))
    done = desk.run()
    assert done.returncode == 0, done.stderr
    assert [answer["custom_id"] for answer in desk.answers()] == [f"r{i}" for i in range(40)]


def test_a_dry_run_sends_nothing(desk: Desk, provider: Simulator) -> None:
    """It says what would be done, and writes nothing."""
    desk.write(3)
    done = desk.run("--dry-run")
    assert done.returncode == 0
    assert "3 requests" in done.stderr
    assert (len(provider.requests), (desk.directory / "out.jsonl").exists()) == (0, False)


def test_a_rehearsal_answers_schemas_where_the_provider_has_none(desk: Desk, provider: Simulator) -> None:
    """The simulated model obeys a schema in the prompt; nobody is asked, and OUT stays for the real run."""
    desk.write(2)
    config = desk.directory / "batchmill.toml"
    config.write_text('[providers.mx4]\nqueue = "own"\napi_key_env = "KEY"\n[[routes]]\nmatch = "m"\n'
                      'providers = ["mx4/mx4-atlas-core"]\n')  # fmt: skip
    schema = {"type": "object", "properties": {"title": {"type": "string"}}, "required": ["title"]}
    shaped = {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}, "n": 2}
    line = request(9, "Shape")
    with (desk.directory / "in.jsonl").open("a") as file:
        file.write(json.dumps(line | {"body": line["body"] | shaped}) + "\n")
    done = subprocess.run(
        desk.command("--simulate"), cwd=desk.directory, env=clean_environment(KEY="any"), capture_output=True,
        text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    answers = (desk.directory / "out.simulated.jsonl").read_text().splitlines()
    choices = json.loads(answers[2])["response"]["body"]["choices"]
    assert [list(json.loads(choice["message"]["content"])) for choice in choices] == [["title"], ["title"]]
    assert (len(provider.requests), (desk.directory / "out.jsonl").exists()) == (0, False)


def test_a_wrong_key_pauses_and_the_command_leaves_when_told(desk: Desk, provider: Simulator) -> None:
    """Exit code 3, no line failed, and the mend is told."""
    provider.apply(provider.config.from_mapping({"valid_keys": ["another"]}))
    config = desk.directory / "batchmill.toml"
    config.write_text(config.read_text() + 'api_key_env = "LOCAL_KEY"\n')
    desk.write(3)
    done = subprocess.run(
        desk.command("--max-pause", "1s"), cwd=desk.directory, env=clean_environment(LOCAL_KEY="wrong-key-123"),
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert "restart the workers with a new LOCAL_KEY" in done.stderr
    assert "0 failed" in done.stdout
    assert "wrong-key-123" not in done.stdout + done.stderr
