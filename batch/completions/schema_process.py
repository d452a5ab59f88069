"""A validator in a process of its own, for checks that may run away.

Owns: the child (this same file, run as a program), its time limit and its restart. The child kills
itself by a timer, so that it ends even when its parent is gone; validators cannot be interrupted.
May not touch: which checks come here (schema.py decides). Blocks its caller for at most the limit.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from itertools import islice
from typing import IO, Any

MAX_ERRORS = 5
_MEMORY_BYTES = 2 * 1024**3


class KillableCheck:
    """One child, made on first use and again after it was killed; callers take turns."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None

    def errors(self, schema: str, answer: str, limit_s: float) -> list[str]:
        """At most five messages; a check that is killed counts as one error that says so."""
        with self._lock:
            child = self._child = self._child or _start()
            assert child.stdin is not None and child.stdout is not None
            try:
                child.stdin.write(json.dumps([limit_s, schema, answer]).encode() + b"\n")
                child.stdin.flush()
                if (line := child.stdout.readline()).endswith(b"\n"):
                    messages: list[str] = json.loads(line)
                    return messages
            except BrokenPipeError:
                pass
            self._end_child()
            return [f"/: the check took more than {limit_s:g} s or too much memory and was stopped"]

    def close(self) -> None:
        with self._lock:
            self._end_child()

    def _end_child(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    try:
                        pipe.close()
                    except BrokenPipeError:
                        continue  # what was still buffered for the dead child is of no use


def _start() -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603 - our own file, no shell, no user input in the arguments
        [sys.executable, "-I", __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def serve_checks(source: IO[bytes], sink: IO[bytes]) -> None:
    """The child's loop: a line in, messages out, until the parent closes the pipe."""
    import resource  # noqa: PLC0415 - only the child limits itself; not on every platform

    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    for line in source:
        limit_s, schema, answer = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, limit_s)  # its default action ends the process, also in native code
        messages = json.dumps(_check(schema, answer)).encode()
        signal.setitimer(signal.ITIMER_REAL, 0)
        sink.write(messages + b"\n")
        sink.flush()


def _check(schema: str, answer: str) -> list[str]:
    import jsonschema_rs  # noqa: PLC0415 - the parent's other users of this module never need it

    validator = jsonschema_rs.validator_for(
        json.loads(schema), offline=True, pattern_options=jsonschema_rs.RegexOptions()
    )
    return list_errors(validator, json.loads(answer))


def list_errors(validator: Any, value: Any) -> list[str]:
    """At most five messages, "/path: what is wrong"; empty when `value` is valid."""
    if validator.is_valid(value):
        return []
    return [describe_error(error) for error in islice(validator.iter_errors(value), MAX_ERRORS)]


def describe_error(error: Any) -> str:
    path = "".join(f"/{step}" for step in error.instance_path)
    return f"{path or '/'}: {error.message[:300]}"


if __name__ == "__main__":
    serve_checks(sys.stdin.buffer, sys.stdout.buffer)
