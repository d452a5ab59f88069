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
from contextlib import suppress
from pathlib import Path
from typing import IO

from batch.cli.console import note
from batch.cli.datadir import signal_group
from batch.clock import SYSTEM_CLOCK
from batch.domain.errors import Unavailable

STABLE_AFTER_S = 10.0
BACK_OFF_MAX_S = 30.0
HOPELESS_AFTER = 2  # ends in a row of a child that was never stable
LOG_ROTATE_BYTES = 20 * 1024 * 1024
LAST_ROWS = 12


class Child:
    """Started when made. `command` is a module with its arguments, run tethered under this Python, or a program
    that `is_program`. `log` None lets it write to our own stderr."""

    def __init__(
        self, name: str, command: list[str], env: dict[str, str], *, log: Path | None, drain_s: float, is_program: bool
    ) -> None:
        self.name = name
        self._command = command
        self._env = env
        self._log = log
        self._drain_s = drain_s
        self._is_program = is_program
        self._tether: int | None = None
        self._restart_at: float | None = None
        self._ends = 0
        self._was_stable = False
        self._start()

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process.poll() is None else None

    def _start(self) -> None:
        self._started = SYSTEM_CLOCK.monotonic()
        self._restart_at = None
        self._close_tether()
        read_end, self._tether = os.pipe()
        sink = self._open_log()
        tethered = [sys.executable, "-m", "batch.cli.tethered", str(read_end), str(self._drain_s + 5)]
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own commands
                self._command if self._is_program else tethered + self._command,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=sink if sink else 2,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=() if self._is_program else (read_end,),
                preexec_fn=_die_with_parent if self._is_program else None,
            )
        finally:
            os.close(read_end)
            if sink:
                sink.close()

    def tick(self) -> bool:
        """Look after it; True when it was started again. Raises Unavailable when it cannot start at all."""
        now = SYSTEM_CLOCK.monotonic()
        if self._restart_at is not None:
            if now < self._restart_at:
                return False
            self._start()
            return True
        code = self._process.poll()
        if code is not None:
            signal_group(self._process.pid, signal.SIGKILL)  # what it may have left of its own children
            self._schedule_restart(code, now)
        elif now - self._started > STABLE_AFTER_S:
            self._was_stable, self._ends = True, 0
        return False

    def _schedule_restart(self, code: int, now: float) -> None:
        self._ends += 1
        if not self._was_stable and (code > 0 or self._ends >= HOPELESS_AFTER):  # its own error would only come again
            raise Unavailable(f"{self.name} does not start ({_how(code)}){self.last_words()}")
        wait_s = 0.0 if self._ends == 1 else min(2.0 ** (self._ends - 2), BACK_OFF_MAX_S)
        self._restart_at = now + wait_s
        note(f"{self.name} ended ({_how(code)}); starting it again" + (f" in {wait_s:g} s" if wait_s else ""))

    def ask_to_end(self) -> None:
        """SIGTERM to the leader alone: Celery counts signals."""
        self._restart_at = None
        self._process.terminate()

    def wait_ended(self, until: float) -> None:
        """At most until then (monotonic)."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(max(0.0, until - SYSTEM_CLOCK.monotonic()))

    def kill(self) -> None:
        """SIGKILL to its whole group, also when the leader has ended. The last call."""
        signal_group(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._close_tether()

    def last_words(self) -> str:
        """The end of its log, for a message; empty when it writes to our stderr."""
        if self._log is None:
            return ""
        tail = self._log.read_bytes()[-8_000:].decode(errors="replace").splitlines()[-LAST_ROWS:]
        return f"; the end of {self._log}:\n" + "\n".join(tail)

    def _open_log(self) -> IO[bytes] | None:
        if self._log is None:
            return None
        if self._log.exists() and self._log.stat().st_size > LOG_ROTATE_BYTES:
            self._log.replace(self._log.with_suffix(".log.1"))
        return self._log.open("ab")

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
