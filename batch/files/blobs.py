"""Blobs: named byte strings under `files_url`, whichever store that is.

Owns: durable atomic writes, ranged reads in constant memory, names that cannot be guessed or escape.
A blob appears under its name whole or not at all; `file://` blobs and their directories are fsynced
by the writer's commit, so a row that names a blob may be committed right after.
May not touch: rows. Serves upload, ingest, finalize and download.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, from_url

from batch.clock import SYSTEM_CLOCK, Clock
from batch.domain.errors import InvalidConfiguration, NotFound, Unavailable

PART_BYTES = 8 * 1024 * 1024
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*(?:[./][A-Za-z0-9_-]+)*")
_RETRY: Any = {"max_retries": 4, "retry_timeout": timedelta(seconds=60)}  # then Unavailable; callers come again
_STAGED = re.compile(r".+#\d+")  # what obstore's local backend calls a blob that is still being written


def new_blob_name(kind: str, clock: Clock = SYSTEM_CLOCK) -> str:
    """A fresh name such as `inputs/3f/3f9c…`: 128 random bits, spread over 256 directories."""
    token = clock.randbytes(16).hex()
    return f"{kind}/{token[:2]}/{token}"


class BlobStore:
    """Blobs under one URL: `file:///dir`, `s3://bucket/prefix`, `gs://…`, `az://…`. Safe for threads.

    Store faults become Unavailable, a missing blob NotFound; neither carries credentials or URLs.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.root: Path | None = None
        self._store: Any
        if parts.scheme == "file":
            self.root = Path(unquote(parts.path))
            try:
                self.root.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InvalidConfiguration(f"files_url {self.root}: {error.strerror}", param="files_url") from None
            self._store = LocalStore(str(self.root))
        elif parts.scheme in {"s3", "gs", "az", "azure", "s3a", "gcs"}:
            self._store = from_url(url, retry_config=_RETRY)
        else:
            raise InvalidConfiguration(
                f"files_url: {parts.scheme or 'no scheme'} is not supported; use file://, s3://, gs:// or az://",
                param="files_url",
            )

    def writer(self, name: str) -> BlobWriter:
        """The blob exists once the writer commits, and never when it aborts."""
        return BlobWriter(self._store, _checked(name), self.root)

    def read(
        self, name: str, start: int = 0, end: int | None = None, chunk_bytes: int = 1 << 20
    ) -> Iterator[bytes]:
        """Blocks of bytes [start, end). Each is a ranged request of its own: readers may be slow."""
        stop = self.size(name) if end is None else end
        block = chunk_bytes if self.root else max(chunk_bytes, PART_BYTES)
        while start < stop:
            upto = min(start + block, stop)
            with _faults_of(name):
                data = obstore.get_range(self._store, _checked(name), start=start, end=upto).to_bytes()
            if not data:
                return
            yield data
            start += len(data)

    def size(self, name: str) -> int:
        with _faults_of(name):
            return int(obstore.head(self._store, _checked(name))["size"])

    def delete(self, name: str) -> None:
        """Remove a blob; a missing one is no error."""
        with _faults_of(name), suppress(FileNotFoundError):
            obstore.delete(self._store, _checked(name))

    def list(self, prefix: str = "") -> Iterator[tuple[str, int, int]]:
        """(name, size in bytes, modified in ms since the epoch) of each whole blob under `prefix`."""
        with _faults_of(prefix):
            for page in obstore.list(self._store, prefix or None, chunk_size=500):
                for item in page:
                    yield item["path"], int(item["size"]), int(item["last_modified"].timestamp() * 1000)

    def drop_unfinished(self, modified_before_ms: int) -> int:
        """Remove half-written local files of dead writers; returns how many.

        Object stores keep such parts invisible: a lifecycle rule there ends unfinished multipart uploads.
        """
        if self.root is None:
            return 0
        dropped = 0
        for path in self.root.rglob("*#*"):
            if _STAGED.fullmatch(path.name) and path.stat().st_mtime * 1000 < modified_before_ms:
                path.unlink(missing_ok=True)
                dropped += 1
        return dropped

    def check(self) -> None:
        """Raises Unavailable when the store cannot be listed (readiness)."""
        with _faults_of(""):
            next(iter(obstore.list(self._store, "inputs/00", chunk_size=1)), None)


class BlobWriter:
    """Buffers up to 8 MB and sends parts as they fill; `size` counts the bytes written so far."""

    def __init__(self, store: Any, name: str, root: Path | None) -> None:
        self.name = name
        self.size = 0
        self._root = root
        self._file: Any = obstore.open_writer(store, name, buffer_size=PART_BYTES, max_concurrency=4)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        with _faults_of(self.name):
            self._file.write(data)
        self.size += len(data)

    def commit(self) -> None:
        """Make the blob durable and visible."""
        with _faults_of(self.name):
            self._file.close()
            if self._root is not None:
                _sync_to_disk(self._root, self._root / self.name)
        self._file = None

    def abort(self) -> None:
        """Forget what was written and not committed; nothing appears under the name."""
        self._file = None
        if self._root is not None:
            target = self._root / self.name
            for staged in target.parent.glob(target.name + "#*"):
                staged.unlink(missing_ok=True)


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise NotFound("no such blob")
    return name


def _sync_to_disk(root: Path, path: Path) -> None:
    """The file, then each directory up to the root: a fresh directory's own entry must survive too."""
    _fsync(path, os.O_RDONLY)
    while path != root:
        path = path.parent
        _fsync(path, os.O_RDONLY | os.O_DIRECTORY)


def _fsync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _faults_of(name: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise NotFound(f"no such blob: {name}") from None
    except (OSError, BaseError) as error:
        raise Unavailable(f"the file store does not answer ({type(error).__name__})") from None
