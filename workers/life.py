"""A sign of life that the kernel takes away: one locked file per worker process, in the memory of its machine.

Owns: Life, and the finding of those that have ended. A file that is there and locked by nobody belonged to a
process that is gone, however it ended. No file proves nothing: that worker may live on another machine, in
another container or where there is no /dev/shm, and only its lease tells (docs/leases.md).
"""

from __future__ import annotations

import contextlib
import fcntl
from hashlib import blake2b
from pathlib import Path
from typing import IO

PLACE = Path("/dev/shm")  # noqa: S108 - never on a network, never shared by two kernels


class Life:
    """Holds the sign of the worker `name` of a database from now until end() or the process' death."""

    def __init__(self, database_url: str, name: str) -> None:
        self._path = PLACE / f"{_prefix(database_url)}{name}"
        self._file: IO[str] | None = None
        with contextlib.suppress(OSError):  # no sign, then: its leases expire
            unlocked = self._path.with_name(f".{self._path.name}")
            self._file = unlocked.open("x")
            fcntl.flock(self._file, fcntl.LOCK_EX)
            unlocked.rename(self._path)

    def end(self) -> None:
        """An end in order: nothing is left to be found."""
        if self._file is not None:
            forget_ended(self._path)
            self._file.close()


def find_ended(database_url: str) -> list[tuple[str, Path]]:
    """(name, sign) of this machine's workers of the database that ended without end()."""
    prefix = _prefix(database_url)
    return [(path.name.removeprefix(prefix), path) for path in sorted(PLACE.glob(f"{prefix}*")) if _is_free(path)]


def forget_ended(sign: Path) -> None:
    with contextlib.suppress(OSError):
        sign.unlink()


def _is_free(path: Path) -> bool:
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # locked, gone, or not ours to read
        return False
    return True


def _prefix(database_url: str) -> str:
    return f"batchmill-{blake2b(database_url.encode(), digest_size=8).hexdigest()}-"
