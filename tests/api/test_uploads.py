"""/v1/uploads: a file in parts, by the SDK's own helper and by hand."""

from __future__ import annotations

import hashlib
from pathlib import Path

import openai
import pytest
from openai import OpenAI

INPUT = b'{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {}}\n' * 50


def test_the_sdk_uploads_a_file_in_chunks(client: OpenAI, tmp_path: Path) -> None:
    """client.uploads.upload_file_chunked, with more parts than one."""
    path = tmp_path / "in.jsonl"
    path.write_bytes(INPUT)
    done = client.uploads.upload_file_chunked(
        file=path, mime_type="application/jsonl", purpose="batch", part_size=1_000
    )
    assert (done.status, done.bytes, done.filename) == ("completed", len(INPUT), "in.jsonl")
    assert done.file is not None and done.file.status == "processed" and done.file.purpose == "batch"
    assert client.files.content(done.file.id).read() == INPUT


def test_parts_are_joined_in_the_order_named(client: OpenAI) -> None:
    upload = client.uploads.create(filename="a.jsonl", purpose="batch", bytes=len(INPUT), mime_type="text/plain")
    assert (upload.status, upload.object, upload.expires_at) == ("pending", "upload", upload.created_at + 3600)
    tail = client.uploads.parts.create(upload.id, data=INPUT[1000:])
    head = client.uploads.parts.create(upload.id, data=INPUT[:1000])
    assert (head.object, head.upload_id) == ("upload.part", upload.id)
    done = client.uploads.complete(
        upload.id, part_ids=[head.id, tail.id], md5=hashlib.md5(INPUT, usedforsecurity=False).hexdigest()
    )
    assert done.file is not None and client.files.content(done.file.id).read() == INPUT


def test_a_wrong_sum_or_md5_keeps_the_upload_pending(client: OpenAI) -> None:
    upload = client.uploads.create(filename="a.jsonl", purpose="batch", bytes=len(INPUT), mime_type="text/plain")
    short = client.uploads.parts.create(upload.id, data=INPUT[:1000])
    whole = client.uploads.parts.create(upload.id, data=INPUT)
    for part_ids, md5 in (([short.id], None), ([whole.id], "0" * 32), (["part_none"], None)):
        with pytest.raises(openai.BadRequestError):
            client.uploads.complete(upload.id, part_ids=part_ids, **({"md5": md5} if md5 else {}))
    done = client.uploads.complete(upload.id, part_ids=[whole.id])
    assert done.status == "completed"


def test_an_sdk_that_lost_the_answer_completes_again(client: OpenAI) -> None:
    """The same parts give the same upload with its file; others are refused, and no retry is asked for."""
    upload = client.uploads.create(filename="a.jsonl", purpose="batch", bytes=len(INPUT), mime_type="text/plain")
    part = client.uploads.parts.create(upload.id, data=INPUT)
    done = client.uploads.complete(upload.id, part_ids=[part.id])
    assert done.file is not None
    assert client.uploads.complete(upload.id, part_ids=[part.id]) == done
    with pytest.raises(openai.ConflictError) as caught:
        client.uploads.complete(upload.id, part_ids=[part.id, part.id])
    assert caught.value.response.headers["x-should-retry"] == "false"


def test_a_cancelled_upload_takes_nothing_more(client: OpenAI) -> None:
    upload = client.uploads.create(filename="a.jsonl", purpose="batch", bytes=9, mime_type="text/plain")
    assert client.uploads.cancel(upload.id).status == "cancelled"
    assert client.uploads.cancel(upload.id).status == "cancelled"
    with pytest.raises(openai.ConflictError) as caught:
        client.uploads.parts.create(upload.id, data=b"x")
    assert caught.value.response.headers["x-should-retry"] == "false"
    with pytest.raises(openai.ConflictError):
        client.uploads.complete(upload.id, part_ids=[])


def test_a_part_of_more_than_64_mb_is_refused(client: OpenAI) -> None:
    upload = client.uploads.create(filename="a.jsonl", purpose="batch", bytes=70 << 20, mime_type="text/plain")
    with pytest.raises(openai.BadRequestError, match="at most"):
        client.uploads.parts.create(upload.id, data=b"x" * ((64 << 20) + 1))
