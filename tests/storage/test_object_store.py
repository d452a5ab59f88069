"""Blobs in an object store: the same promises over S3 as over local files."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from batch.domain.errors import NotFound, Unavailable
from batch.files.blobs import BlobStore
from tests.harness.databases import free_port


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[BlobStore]:
    """A bucket in a server that speaks S3 on this machine."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=free_port(), verbose=False)
    server.start()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server._port}",
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    import boto3

    boto3.client("s3", endpoint_url=f"http://127.0.0.1:{server._port}").create_bucket(Bucket="bucket")
    opened = BlobStore("s3://bucket/prefix")
    opened.check()
    yield opened
    server.stop()


def test_a_blob_of_several_parts_is_written_read_listed_and_deleted(store: BlobStore) -> None:
    """Multipart above 8 MB; ranges on reading."""
    block = bytes(range(256)) * 4096
    writer = store.writer("inputs/ab/abc")
    for _ in range(20):
        writer.write(block)
    writer.commit()
    assert store.size("inputs/ab/abc") == writer.size == 20 * len(block)
    assert b"".join(store.read("inputs/ab/abc")) == block * 20
    assert b"".join(store.read("inputs/ab/abc", 300, 350)) == (block * 2)[300:350]
    assert [(name, size) for name, size, _ in store.list("inputs")] == [("inputs/ab/abc", 20 * len(block))]
    store.delete("inputs/ab/abc")
    store.delete("inputs/ab/abc")
    with pytest.raises(NotFound):
        store.size("inputs/ab/abc")


def test_nothing_appears_of_a_writer_that_failed(store: BlobStore) -> None:
    """What was sent of it ends with the bucket's rule for unfinished uploads."""
    writer = store.writer("inputs/a")
    writer.write(b"x" * 20_000_000)
    writer.abort()
    assert list(store.list("inputs")) == []


def test_a_store_that_is_away_is_unavailable_after_a_few_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Readiness asks this; the message carries no address and no key."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "secret-id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-key")
    away = BlobStore("s3://bucket/prefix")
    with pytest.raises(Unavailable) as caught:
        away.check()
    assert "127.0.0.1" not in str(caught.value)
    assert "secret" not in str(caught.value)
