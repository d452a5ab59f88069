"""`batchmill up`: one process tree that starts whole, ends whole, and tidies up after a violent end."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from batch.cli.datadir import DataDir, started_at
from batch.domain.errors import Conflict
from batch.settings import Settings
from tests.harness.databases import free_port
from tests.harness.servers import Child, clean_environment, python
from tests.harness.waiting import eventually


class Up:
    """A running `batchmill up` with what it started."""

    def __init__(self, directory: Path) -> None:
        self.data = directory / "data"
        self.port = free_port()
        self.directory = directory

    def start(self, only: str | None = None) -> Child:
        command = python("-m", "batch.cli.app", "up", "--port", str(self.port), "--data-dir", str(self.data))
        command += ["--only", only] if only else []
        log = self.directory / "up.log"
        return Child(command, env=clean_environment(), cwd=self.directory, log=log)

    def is_ready(self) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}/readyz", trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    def pids(self) -> dict[str, int]:
        rows = json.loads((self.data / "children.json").read_text())
        return {name: pid for name, (pid, _) in rows.items()}


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    service = Up(tmp_path)
    yield service
    for pid in service.pids().values() if (service.data / "children.json").exists() else ():
        if started_at(pid) is not None:
            os.kill(pid, signal.SIGKILL)


def test_sigterm_ends_the_whole_tree(up: Up) -> None:
    """Exit code 0, no child left, and the socket was for its owner only."""
    child = up.start()
    eventually(lambda: up.is_ready() and len(up.pids()) == 4, 60, what=f"ready\n{child.text()}")
    assert (up.data / "valkey.sock").stat().st_mode & 0o777 == 0o600
    assert up.data.stat().st_mode & 0o777 == 0o700
    pids = up.pids()
    assert sorted(pids) == ["api", "jobs", "valkey", "worker-1"]
    assert child.terminate() == 0
    assert [name for name, pid in pids.items() if started_at(pid) is not None] == []
    assert "the next start continues" in child.text()
    for noise in ("superuser", "overcommit", "Sending due task", "Traceback"):
        assert noise not in child.text()


def test_a_part_started_again_takes_its_folder_again(up: Up) -> None:
    """Parts that come and go leave one folder of logs, not one for each start."""
    for number in range(1, 3):
        child = up.start(only="beat")
        eventually(lambda: (up.directory / "up.log").read_text().count("providers") == number, 60)  # noqa: B023
        child.terminate()
    assert [path.name for path in (up.data / "parts").iterdir()] == ["beat"]


def test_a_killed_worker_is_started_again(up: Up) -> None:
    """And the terminal says so."""
    child = up.start()
    eventually(lambda: up.is_ready() and len(up.pids()) == 4, 60, what=f"ready\n{child.text()}")
    before = up.pids()["worker-1"]
    os.kill(before, signal.SIGKILL)
    eventually(lambda: up.pids().get("worker-1") not in (None, before), 30, what="a new worker")
    assert "worker-1 ended (SIGKILL); starting it again" in child.text()
    child.terminate()


def test_after_a_sigkill_of_the_parent_the_next_start_works(up: Up) -> None:
    """Its children end by themselves; nothing has to be tidied by hand."""
    first = up.start()
    eventually(lambda: up.is_ready() and len(up.pids()) == 4, 60, what=f"ready\n{first.text()}")
    pids = list(up.pids().values())
    first.process.kill()
    second = up.start()
    eventually(lambda: all(started_at(pid) is None for pid in pids), 60, what="the old children end")
    eventually(up.is_ready, 60, what=f"ready again\n{second.text()}")
    assert second.terminate() == 0


def test_a_second_start_in_the_directory_says_who_is_there(tmp_path: Path) -> None:
    """With pid and address, and leaves the first alone."""
    first, second = DataDir(tmp_path), DataDir(tmp_path)
    first.make()
    first.lock({"kind": "up", "address": "http://127.0.0.1:8484"})
    with pytest.raises(Conflict, match=rf"pid {os.getpid()}, API on http://127.0.0.1:8484"):
        second.lock({"kind": "up"})
    first.unlock()
    second.lock({"kind": "up"})
    second.unlock()


def test_a_stranger_with_a_remembered_pid_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A pid that now belongs to another process (another start time) is never signalled."""
    data = DataDir(tmp_path)
    data.make()
    (tmp_path / "children.json").write_text(json.dumps({"worker-1": [os.getpid(), "1"]}))
    data.end_leftovers(drain_s=0.1)
    assert capsys.readouterr().err == ""


def test_a_long_data_directory_gets_a_short_socket(tmp_path: Path) -> None:
    """Unix sockets hold about a hundred bytes of path."""
    long = tmp_path / ("d" * 120)
    socket = Settings(data_dir=long).valkey_socket
    assert len(os.fsencode(socket)) <= 100
    assert socket == Settings(data_dir=long).valkey_socket
    assert Settings(data_dir=tmp_path).valkey_socket == tmp_path / "valkey.sock"
