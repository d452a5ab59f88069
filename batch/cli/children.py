"""Child processes: started in sessions of their own, restarted with back-off, ended as groups.

Owns: one child's life. ^C reaches only the parent, which drains the children; a pipe (tethered.py) or
the kernel's parent-death signal ends them when the parent is killed. Single-threaded: the owner ticks.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from batch.cli.datadir import signal_group
from batch.clock import SYSTEM_CLOCK, Clock
from batch.domain.errors import Unavailable

STABLE_AFTER_S = 10.0
BACK_OFF_MAX_S = 30.0
HOPELESS_AFTER = 2  # ends in a row of a child that was never stable
WRONG_SET_UP = 2  # the exit code, ours and Celery's, of what no second start can mend
LOG_ROTATE_BYTES = 20 * 1024 * 1024


@dataclass
class ChildSpec:
    """How to start one child. `module` runs tethered under this Python; `command` runs as it is."""

    name: str
    module: list[str] | None = None
    command: list[str] | None = None
    env: dict[str, str] = field(default_factory=dict)


class Child:
    """`log` None lets the child write to our own stderr."""

    def __init__(self, spec: ChildSpec, *, log: Path | None, drain_s: float, clock: Clock = SYSTEM_CLOCK) -> None:
        self.spec = spec
        self.log = log
        self._drain_s = drain_s
        self._clock = clock
        self._process: subprocess.Popen[bytes] | None = None
        self._tether: int | None = None
        self._started = 0.0
        self._restart_at: float | None = None
        self._ends = 0
        self._was_stable = False

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process and self._process.poll() is None else None

    def start(self) -> None:
        self._started = self._clock.monotonic()
        self._restart_at = None
        self._close_tether()
        read_end, self._tether = os.pipe()
        sink = self._open_log()
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own commands
                self._command(read_end),
                env=self.spec.env,
                stdin=subprocess.DEVNULL,
                stdout=sink if sink else 2,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=(read_end,) if self.spec.module else (),
                preexec_fn=None if self.spec.module else _die_with_parent,
            )
        finally:
            os.close(read_end)
            if sink:
                sink.close()

    def tick(self, report: Callable[[str], None]) -> bool:
        """Look after it; True when it was started again. Raises Unavailable when it cannot start at all."""
        now = self._clock.monotonic()
        if self._restart_at is not None:
            if now < self._restart_at:
                return False
            self.start()
            return True
        if self._process is None:
            return False
        code = self._process.poll()
        if code is None:
            if now - self._started > STABLE_AFTER_S:
                self._was_stable, self._ends = True, 0
            return False
        self._schedule_restart(code, now, report)
        return False

    def _schedule_restart(self, code: int, now: float, report: Callable[[str], None]) -> None:
        assert self._process is not None
        signal_group(self._process.pid, signal.SIGKILL)  # what it may have left of its own children
        self._ends += 1
        if not self._was_stable and (code == WRONG_SET_UP or self._ends >= HOPELESS_AFTER):
            raise Unavailable(f"{self.spec.name} does not start ({_how(code)}){self.last_words()}")
        wait_s = 0.0 if self._ends == 1 else min(2.0 ** (self._ends - 2), BACK_OFF_MAX_S)
        self._restart_at = now + wait_s
        report(f"{self.spec.name} ended ({_how(code)}); starting it again" + (f" in {wait_s:g} s" if wait_s else ""))

    def ask_to_end(self) -> None:
        """SIGTERM to the leader alone: Celery counts signals."""
        self._restart_at = None
        if self._process and self._process.poll() is None:
            with suppress(ProcessLookupError):
                self._process.terminate()

    def wait_ended(self, until: float) -> bool:
        """True when it ended by `until` (monotonic)."""
        if self._process is None:
            return True
        while self._process.poll() is None and self._clock.monotonic() < until:
            self._clock.sleep(0.02)
        return self._process.poll() is not None

    def kill(self) -> None:
        """SIGKILL to its whole group, also when the leader has ended."""
        if self._process is not None:
            signal_group(self._process.pid, signal.SIGKILL)
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
        self._close_tether()

    def last_words(self, rows: int = 12) -> str:
        """The end of its log, for a message; empty when it writes to our stderr."""
        if self.log is None or not self.log.exists():
            return ""
        tail = self.log.read_bytes()[-8_000:].decode(errors="replace").splitlines()[-rows:]
        return f"; the end of {self.log}:\n" + "\n".join(tail)

    def _command(self, read_end: int) -> list[str]:
        if self.spec.command is not None:
            return self.spec.command
        assert self.spec.module is not None
        tether = [sys.executable, "-m", "batch.cli.tethered", str(read_end), str(self._drain_s + 5)]
        return [*tether, *self.spec.module]

    def _open_log(self) -> IO[bytes] | None:
        if self.log is None:
            return None
        if self.log.exists() and self.log.stat().st_size > LOG_ROTATE_BYTES:
            self.log.replace(self.log.with_suffix(".log.1"))
        return self.log.open("ab")

    def _close_tether(self) -> None:
        if self._tether is not None:
            os.close(self._tether)
            self._tether = None


def _how(code: int) -> str:
    if code >= 0:
        return f"exit {code}"
    with suppress(ValueError):
        return signal.Signals(-code).name
    return f"signal {-code}"


_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def _die_with_parent() -> None:
    """In the forked child of a program that knows no tether: the kernel sends SIGTERM when we die."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
