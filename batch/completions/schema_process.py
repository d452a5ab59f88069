"""A validator in a process of its own, for checks that may run away.

Owns: the child (this same file, run as a program), its time limit and its restart. The child kills
itself by a timer, so that it ends even when its parent is gone; validators cannot be interrupted.
May not touch: which checks come here (schema.py decides). Blocks its caller for at most the limit.
"""

from __future__ import annotations

import json
import signal
import struct
import subprocess
import sys
import threading
from itertools import islice
from typing import IO, Any

_HEADER = struct.Struct("!dII")  # seconds, bytes of the schema, bytes of the answer
_LENGTH = struct.Struct("!I")
MAX_ERRORS = 5
_MEMORY_BYTES = 2 * 1024**3


class KillableCheck:
    """One child, made on first use and again after it was killed; callers take turns."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None

    def errors(self, schema: bytes, answer: bytes, limit_s: float) -> list[str]:
        """At most five messages; a check that is killed counts as one error that says so."""
        with self._lock:
            child = self._child = self._child or _start()
            try:
                assert child.stdin is not None
                child.stdin.write(_HEADER.pack(limit_s, len(schema), len(answer)))
                child.stdin.write(schema)
                child.stdin.write(answer)
                child.stdin.flush()
                return _read_messages(child)
            except (BrokenPipeError, EOFError, struct.error):
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


def _read_messages(child: subprocess.Popen[bytes]) -> list[str]:
    assert child.stdout is not None
    (length,) = _LENGTH.unpack(_read_exactly(child.stdout, _LENGTH.size))
    messages: list[str] = json.loads(_read_exactly(child.stdout, length))
    return messages


def _read_exactly(pipe: IO[bytes], count: int) -> bytes:
    data = pipe.read(count)
    if len(data) < count:
        raise EOFError
    return data


def serve_checks(source: IO[bytes], sink: IO[bytes]) -> None:
    """The child's loop: a frame in, messages out, until the parent closes the pipe."""
    import resource  # noqa: PLC0415 - only the child limits itself; not on every platform

    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    while header := source.read(_HEADER.size):
        limit_s, schema_length, answer_length = _HEADER.unpack(header)
        schema = _read_exactly(source, schema_length)
        answer = _read_exactly(source, answer_length)
        signal.setitimer(signal.ITIMER_REAL, limit_s)  # its default action ends the process, also in native code
        messages = json.dumps(_check(schema, answer)).encode()
        signal.setitimer(signal.ITIMER_REAL, 0)
        sink.write(_LENGTH.pack(len(messages)) + messages)
        sink.flush()


def _check(schema: bytes, answer: bytes) -> list[str]:
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
