"""The children of `up` and `run`: started again after a violent end, given up at once after an error of their own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from batch.cli.children import Child
from batch.cli.datadir import started_at
from batch.domain.errors import Unavailable
from tests.harness.servers import clean_environment
from tests.harness.waiting import eventually


@contextlib.contextmanager
def child(directory: Path, code: str) -> Iterator[Child]:
    """A running child whose module is `code`."""
    (directory / "theirs.py").write_text(code)
    env = clean_environment()
    env["PYTHONPATH"] = f"{directory}:{env['PYTHONPATH']}"
    running = Child("api", ["theirs"], env, log=directory / "api.log", drain_s=0.0, is_program=False)
    yield running
    running.kill()


def test_an_unknown_bug_of_a_child_is_told_once(tmp_path: Path) -> None:
    """A second start would only print it again."""
    with child(tmp_path, 'raise RuntimeError("a bug of ours")\n') as running:
        with pytest.raises(Unavailable, match=r"api does not start \(exit 1\)(.|\n)*RuntimeError: a bug of ours"):
            eventually(running.tick, 30, what="its end")
        assert (tmp_path / "api.log").read_text().count("Traceback") == 1


def test_a_killed_child_takes_its_own_along_and_is_started_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing of its first life works beside the second; one that is killed time and again is given up."""
    code = """if True:
        import os, signal, subprocess
        print(subprocess.Popen(["sleep", "600"]).pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    with child(tmp_path, code) as running:
        eventually(running.tick, 30, what="its second start")
        (left,) = (tmp_path / "api.log").read_text().split()[:1]
        eventually(lambda: started_at(int(left)) is None, 10, what="the end of what it left")
        assert "api ended (SIGKILL); starting it again" in capsys.readouterr().err
        with pytest.raises(Unavailable, match=r"api does not start \(SIGKILL\)"):
            eventually(running.tick, 30, what="its second end")
