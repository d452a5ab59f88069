"""Blobs on local files: whole or not at all, and nowhere else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from batch.domain.errors import InvalidConfiguration, NotFound
from batch.files import blobs
from batch.files.blobs import BlobStore, new_blob_name


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(f"file://{tmp_path}/files")


def put(store: BlobStore, name: str, content: bytes) -> None:
    writer = store.writer(name)
    writer.write(content)
    writer.commit()


def test_a_blob_is_read_back_in_ranges(store: BlobStore) -> None:
    """In blocks of the size asked for."""
    content = bytes(range(256)) * 100
    put(store, "inputs/ab/abc", content)
    assert b"".join(store.read("inputs/ab/abc", chunk_bytes=1000)) == content
    assert b"".join(store.read("inputs/ab/abc", 10, 20)) == content[10:20]
    assert store.size("inputs/ab/abc") == len(content)


def test_an_empty_blob_exists(store: BlobStore) -> None:
    """The error file of a batch without lines."""
    put(store, "outputs/a", b"")
    assert (store.size("outputs/a"), list(store.read("outputs/a"))) == (0, [])


def test_nothing_appears_of_a_writer_that_failed(store: BlobStore) -> None:
    """Not under the name, and no half-written file stays."""
    writer = store.writer("inputs/a")
    writer.write(b"x" * 20_000_000)
    writer.abort()
    with pytest.raises(NotFound):
        store.size("inputs/a")
    assert store.root is not None
    assert [path for path in store.root.rglob("*") if path.is_file()] == []


def test_nothing_is_visible_before_the_commit(store: BlobStore) -> None:
    """A reader never sees a part."""
    writer = store.writer("inputs/a")
    writer.write(b"x" * 20_000_000)
    assert list(store.list("inputs")) == []
    assert writer.size == 20_000_000
    writer.commit()
    assert [name for name, _, _ in store.list("inputs")] == ["inputs/a"]


def test_file_and_directories_are_on_disk_before_the_writer_ends(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to the root: the entry of a fresh directory must survive a power cut too."""
    synced: list[str] = []
    real = blobs._fsync
    monkeypatch.setattr(blobs, "_fsync", lambda path, flags: (synced.append(str(path)), real(path, flags)))
    put(store, "inputs/ab/abc", b"x")
    root = str(store.root)
    assert synced == [f"{root}/inputs/ab/abc", f"{root}/inputs/ab", f"{root}/inputs", root]


def test_deleting_twice_is_no_error(store: BlobStore) -> None:
    """A sweep may die between deleting and noting it."""
    put(store, "inputs/a", b"x")
    store.delete("inputs/a")
    store.delete("inputs/a")


@pytest.mark.parametrize("name", ["../x", "a/../b", "/etc/passwd", "a//b", "", "a#1", ".hidden", "a/.b", "a\0b"])
def test_a_name_cannot_leave_the_store(store: BlobStore, name: str) -> None:
    """Names are ours; one that looks otherwise is refused before the file system sees it."""
    with pytest.raises(NotFound):
        store.size(name)
    with pytest.raises(NotFound):
        store.writer(name)


def test_names_are_long_random_and_spread(store: BlobStore) -> None:
    """128 bits."""
    names = {new_blob_name("inputs") for _ in range(100)}
    assert len(names) == 100
    assert all(len(name.rsplit("/", 1)[1]) == 32 for name in names)


def test_half_written_files_of_dead_writers_are_dropped_when_old(store: BlobStore) -> None:
    """Younger ones may be at work."""
    assert store.root is not None
    path = store.root / "inputs" / "abc#1"
    path.parent.mkdir()
    path.write_bytes(b"half")
    os.utime(path, (1000, 1000))
    assert store.drop_unfinished(999_000) == 0
    assert store.drop_unfinished(1_001_000) == 1


def test_an_unknown_scheme_is_a_configuration_error() -> None:
    """At start, with what would be right."""
    with pytest.raises(InvalidConfiguration, match="file://, s3://"):
        BlobStore("ftp://x/y")
