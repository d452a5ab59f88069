"""/v1/files as the openai SDK and plain HTTP clients use it."""

from __future__ import annotations

import gzip
import io
import json
import os
from pathlib import Path

import httpx
import openai
import pytest
from openai import OpenAI

from tests.harness.api import line, running_api

INPUT = "".join(json.dumps(line(f"r{number}")) + "\n" for number in range(3)).encode()


def test_a_file_comes_back_as_it_was_sent(client: OpenAI) -> None:
    """Upload, retrieve, download, with the fields of the contract."""
    made = client.files.create(file=("in.jsonl", INPUT), purpose="batch")
    assert made.status == "processed"
    assert (made.bytes, made.filename, made.purpose) == (len(INPUT), "in.jsonl", "batch")
    assert made.id.startswith("file-") and len(made.id) == 27
    assert made.expires_at == made.created_at + 30 * 86_400
    assert client.files.retrieve(made.id) == made
    assert client.files.content(made.id).read() == INPUT
    assert client.files.wait_for_processing(made.id).status == "processed"


def test_bytes_without_a_name_are_accepted_as_upload(client: OpenAI) -> None:
    """curator and instructor send BytesIO: no .jsonl suffix."""
    made = client.files.create(file=io.BytesIO(INPUT), purpose="batch")
    assert made.filename == "upload"


def test_expires_after_is_kept(client: OpenAI) -> None:
    made = client.files.create(
        file=INPUT, purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert made.expires_at == made.created_at + 3600


def test_deleting_hides_the_file(client: OpenAI) -> None:
    made = client.files.create(file=INPUT, purpose="batch")
    deleted = client.files.delete(made.id)
    assert (deleted.id, deleted.object, deleted.deleted) == (made.id, "file", True)
    with pytest.raises(openai.NotFoundError) as caught:
        client.files.retrieve(made.id)
    assert caught.value.body == {
        "message": f"No such File object: {made.id}",
        "type": "invalid_request_error",
        "param": "id",
        "code": None,
    }


def test_the_sdk_pages_through_all_files(client: OpenAI) -> None:
    ids = [client.files.create(file=INPUT, purpose="evals").id for _ in range(5)]
    assert [file.id for file in client.files.list(purpose="evals", limit=2)] == ids[::-1]
    assert [file.id for file in client.files.list(purpose="evals", limit=2, order="asc")] == ids


@pytest.mark.parametrize("file_first", [True, False])
def test_a_chunked_form_is_read_in_any_order_of_fields(http: httpx.Client, file_first: bool) -> None:
    """As openai-node sends it: Transfer-Encoding chunked, no Content-Length, the file wherever it stands."""
    data = os.urandom(300_000).hex().encode()
    content = b'{"a": "' + data + b'"}\n'
    part = b'--XX\r\nContent-Disposition: form-data; name="file"; filename="in.jsonl"\r\n' + (
        b"Content-Type: application/octet-stream\r\n\r\n" + content + b"\r\n"
    )
    purpose = b'--XX\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    body = (part + purpose if file_first else purpose + part) + b"--XX--\r\n"
    pieces = (body[start : start + 7001] for start in range(0, len(body), 7001))
    answer = http.post("/v1/files", content=pieces, headers={"content-type": "multipart/form-data; boundary=XX"})
    assert answer.status_code == 200, answer.text
    assert answer.json()["bytes"] == len(content)
    assert http.get(f"/v1/files/{answer.json()['id']}/content").content == content


def test_content_answers_ranges_and_tags(client: OpenAI, http: httpx.Client) -> None:
    file_id = client.files.create(file=("ü\"x\r\ny.jsonl", INPUT), purpose="batch").id
    url = f"/v1/files/{file_id}/content"
    whole = http.get(url)
    assert whole.headers["content-type"] == "application/octet-stream"
    assert "attachment" in whole.headers["content-disposition"] and "content-encoding" not in whole.headers
    part = http.get(url, headers={"range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, INPUT[10:20])
    assert part.headers["content-range"] == f"bytes 10-19/{len(INPUT)}"
    assert http.get(url, headers={"range": "bytes=-7"}).content == INPUT[-7:]
    assert http.get(url, headers={"range": f"bytes={len(INPUT)}-"}).status_code == 416
    assert http.get(url, headers={"if-none-match": whole.headers["etag"]}).status_code == 304
    stale = http.get(url, headers={"range": "bytes=0-1", "if-range": '"other"'})
    assert (stale.status_code, stale.content) == (200, INPUT)


def test_content_is_compressed_for_who_takes_nothing_else(client: OpenAI, http: httpx.Client) -> None:
    data = b'{"a": 1}\n' * 1000
    file_id = client.files.create(file=data, purpose="batch").id
    request = http.build_request(
        "GET", f"/v1/files/{file_id}/content", headers={"accept-encoding": "gzip, identity;q=0"}
    )
    answer = http.send(request, stream=True)
    raw = b"".join(answer.iter_raw())
    assert answer.headers["content-encoding"] == "gzip"
    assert len(raw) < 1000 and gzip.decompress(raw) == data


@pytest.mark.parametrize(
    ("name", "content"),
    [("notes.txt", INPUT), ("in.jsonl", b""), ("in.jsonl", b"hello\n"), ("in.jsonl", b"[1]\n")],
)
def test_what_is_plainly_no_batch_input_is_refused_at_once(client: OpenAI, name: str, content: bytes) -> None:
    with pytest.raises(openai.BadRequestError, match=r"Invalid file format for Batch API. Must be .jsonl"):
        client.files.create(file=(name, content), purpose="batch")


def test_wrong_forms_are_400_in_the_envelope(http: httpx.Client) -> None:
    kind = {"content-type": "multipart/form-data; boundary=XX"}
    no_purpose = http.post("/v1/files", files={"file": ("in.jsonl", INPUT)})
    assert (no_purpose.status_code, no_purpose.json()["error"]["message"]) == (
        400,
        "'purpose' is a required property",
    )
    cut = b'--XX\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n{"a": 1}\n'
    for body in (b"", b"nonsense", cut, b"--XX--\r\n"):
        answer = http.post("/v1/files", content=body, headers=kind)
        assert answer.status_code == 400, body
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    twice = http.post("/v1/files", data={"purpose": "batch"}, files=[("file", INPUT), ("file", INPUT)])
    assert twice.status_code == 400
    many = http.post("/v1/files", data={f"f{number}": "x" for number in range(100)}, files={"file": INPUT})
    assert many.status_code == 400
    large = http.post("/v1/files", data={"purpose": "x" * 100_000}, files={"file": INPUT})
    assert large.status_code == 400
    assert http.post("/v1/files", json={"purpose": "batch"}).status_code == 400


def test_a_path_in_the_file_name_is_cut_off(client: OpenAI) -> None:
    assert client.files.create(file=("../../etc/in.jsonl", INPUT), purpose="batch").filename == "in.jsonl"


def test_user_data_is_not_downloadable(client: OpenAI) -> None:
    file_id = client.files.create(file=("a.txt", b"x"), purpose="user_data").id
    with pytest.raises(openai.BadRequestError, match="Not allowed to download files of purpose: user_data"):
        client.files.content(file_id)


def test_a_file_over_the_limit_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with running_api(tmp_path, BATCHMILL_MAX_FILE_BYTES="1000000") as api:
        with pytest.raises(openai.BadRequestError, match=r"File is too large\."):
            api.sdk().files.create(file=INPUT + b'{"a": 1}\n' * 1_000_000, purpose="batch")
        assert list(api.world.blobs.list()) == []


def test_what_was_moved_is_counted(client: OpenAI, http: httpx.Client) -> None:
    """Bytes sent are those of the range, not of the file."""
    file_id = client.files.create(file=INPUT, purpose="batch").id
    before = _sent_bytes(http)
    http.get(f"/v1/files/{file_id}/content", headers={"range": "bytes=0-9"})
    http.get(f"/v1/files/{file_id}/content", headers={"range": "bytes=99999-"})
    assert _sent_bytes(http) - before == 10


def _sent_bytes(http: httpx.Client) -> float:
    rows = [row for row in http.get("/metrics").text.splitlines() if row.startswith("batchmill_files_bytes_total")]
    return sum(float(row.split()[-1]) for row in rows if 'direction="out"' in row)
