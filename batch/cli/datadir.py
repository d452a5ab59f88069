"""The data directory: who holds it, which processes it left behind.

Owns: up.lock (an flock; its text says who holds it and where the API listens) and children.json (pids
with start times, so that a later start ends leftovers of a killed parent and never a stranger).
May not touch: the database and the files inside.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import orjson

from batch.cli.console import note
from batch.clock import SYSTEM_CLOCK
from batch.domain.errors import Conflict, InvalidConfiguration


class DataDir:
    """One data directory, made on demand for its owner only (0700)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None

    def make(self) -> None:
        """Raises InvalidConfiguration when it cannot be made or written."""
        try:
            for directory in (self.path, self.logs):
                directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            probe = self.path / f".write-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise InvalidConfiguration(
                f"data directory {self.path}: {error.strerror or error}\n"
                "choose one that you may write: --data-dir DIR or BATCHMILL_DATA_DIR",
                param="data_dir",
            ) from None

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    def try_lock(self, holder: dict[str, Any]) -> bool:
        """Become the one stack of this directory; False when another process is."""
        descriptor = os.open(self.path / "up.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        self._lock = descriptor
        self.describe(holder)
        return True

    def lock(self, holder: dict[str, Any]) -> None:
        """Raises Conflict that names the holder."""
        if not self.try_lock(holder):
            other = self.holder()
            address = f", API on {other['address']}" if other.get("address") else ""
            raise Conflict(
                f"batchmill {other.get('kind', 'up')} already runs in {self.path} "
                f"(pid {other.get('pid', '?')}{address})\n"
                "stop it first, use it (batchmill submit, status), or choose another --data-dir"
            )

    def describe(self, holder: dict[str, Any]) -> None:
        """What a second start is told. Only for the holder of the lock."""
        assert self._lock is not None
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, orjson.dumps({"pid": os.getpid(), **holder}), 0)

    def unlock(self) -> None:
        if self._lock is not None:
            os.ftruncate(self._lock, 0)
            os.close(self._lock)
            self._lock = None

    def holder(self) -> dict[str, Any]:
        """What the holder of the lock says about itself; empty when nobody does."""
        return _read_json(self.path / "up.lock")

    def remember_children(self, pids: dict[str, int]) -> None:
        """Write name → (pid, start time); replaced as a whole."""
        rows = {name: [pid, started_at(pid)] for name, pid in pids.items()}
        draft = self.path / "children.json.new"
        draft.write_bytes(orjson.dumps(rows))
        draft.replace(self.path / "children.json")

    def end_leftovers(self, drain_s: float) -> None:
        """Stop what an earlier, killed start left running: SIGTERM, then SIGKILL of the group."""
        rows = _read_json(self.path / "children.json")
        left = {name: row[0] for name, row in rows.items() if started_at(row[0]) == row[1] is not None}
        if not left:
            return
        note(f"ending what an earlier start left behind: {', '.join(sorted(left))}")
        for pid in left.values():
            signal_group(pid, signal.SIGTERM)
        limit = SYSTEM_CLOCK.monotonic() + drain_s
        while any(started_at(pid) == rows[name][1] for name, pid in left.items()):
            if SYSTEM_CLOCK.monotonic() > limit:
                for pid in left.values():
                    signal_group(pid, signal.SIGKILL)
                break
            SYSTEM_CLOCK.sleep(0.05)
        self.remember_children({})


def started_at(pid: int) -> str | None:
    """When a process started, in the system's own unit; None when it does not run (or is a zombie)."""
    stat = Path(f"/proc/{pid}/stat")
    if Path("/proc/self/stat").exists():
        try:
            rest = stat.read_text().rpartition(") ")[2].split(" ")
        except OSError:
            return None
        return None if rest[0] in {"Z", "X"} else rest[19]
    answer = subprocess.run(  # noqa: S603 - a fixed command and a number
        ["/bin/ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    text = answer.stdout.strip()
    return None if not text or text.startswith("Z") else text.partition(" ")[2].strip()


def signal_group(pid: int, number: int) -> None:
    """To the group that a child of ours led, also when the child itself has ended."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = orjson.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
