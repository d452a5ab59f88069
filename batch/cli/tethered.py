"""`python -m batch.cli.tethered FD DRAIN_S MODULE ARG...`: run a module that ends when its parent ends.

Owns: the child's end of the tether. The parent holds the other end of a pipe; when that closes, even by
SIGKILL, this process gets the SIGTERM that its parent can no longer send, and is gone DRAIN_S later.
`-- PROGRAM ARG...` in place of a module runs any program so, with its whole process group.
"""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import threading

from batch.clock import SYSTEM_CLOCK


def main() -> None:
    descriptor, drain_s, module = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
    os.set_inheritable(descriptor, False)
    threading.Thread(target=_watch, args=(descriptor, drain_s), name="tether", daemon=True).start()
    if module == "--":
        sys.exit(_run(sys.argv[4:]))
    sys.argv = sys.argv[3:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _run(command: list[str]) -> int:
    """The program's exit code; SIGTERM is passed on. The parent ends what the program leaves of its group."""
    program = subprocess.Popen(command, stdin=subprocess.DEVNULL)  # noqa: S603 - the configured command
    signal.signal(signal.SIGTERM, lambda *_: program.terminate())
    code = program.wait()
    if _is_orphan.is_set():
        os.killpg(0, signal.SIGKILL)
    return code if code >= 0 else 128 - code


_is_orphan = threading.Event()


def _watch(descriptor: int, drain_s: float) -> None:
    while os.read(descriptor, 64):
        continue
    _is_orphan.set()
    os.kill(os.getpid(), signal.SIGTERM)
    SYSTEM_CLOCK.sleep(drain_s)  # the main thread may be stuck; then the whole group goes
    os.killpg(os.getpgid(0), signal.SIGKILL)


if __name__ == "__main__":
    main()
