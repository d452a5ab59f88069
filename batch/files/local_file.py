"""Files that a person named: written whole or not at all.

Owns: the draft beside the target, fsync, and the rename that makes it visible.
May not touch: blobs (files.blobs).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path


def write_atomically(path: Path, blocks: Iterable[bytes]) -> int:
    """Replace `path` by these bytes once all are on disk; returns the size. On an exception it is untouched."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    size = 0
    try:
        with draft.open("wb") as target:
            for block in blocks:
                size += target.write(block)
            target.flush()
            os.fsync(target.fileno())
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        if error.errno and error.filename in (None, str(draft)):  # the person knows the other name
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    return size


def read_blocks(path: Path, block_bytes: int = 1 << 20) -> Iterator[bytes]:
    """The file's bytes in blocks."""
    with path.open("rb") as source:
        while block := source.read(block_bytes):
            yield block
