"""Every error in OpenAI's envelope, and an id on every answer."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import httpx
import pytest

from batch.api.errors import STATUS, status_of
from batch.domain import errors
from batch.domain.errors import BatchmillError
from tests.harness.api import RunningApi, running_api


def _assert_envelope(answer: httpx.Response, status: int) -> dict[str, object]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"].startswith("req_")
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    return error


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/v1/foo", 404),
        ("GET", "/", 404),
        ("PUT", "/v1/batches", 405),
        ("PATCH", "/v1/files", 405),
        ("GET", "/v1/files/file-none", 404),
        ("DELETE", "/v1/files/file-none", 404),
        ("GET", "/v1/files/file-none/content", 404),
        ("GET", "/v1/files?limit=0", 400),
        ("GET", "/v1/files?limit=x", 400),
        ("GET", "/v1/files?order=up", 400),
        ("GET", "/v1/files?after=file-none", 400),
        ("GET", "/v1/batches/batch_none", 404),
        ("GET", "/v1/batches?limit=101", 400),
        ("GET", "/v1/batches/batch_none/results", 404),
        ("GET", "/v1/batches/batch_none/explanation", 404),
        ("GET", "/v1/models/none", 404),
        ("GET", "/v1/models/no/such/model", 404),
        ("GET", "/v1/webhook_endpoints/we_none", 404),
        ("POST", "/v1/uploads/upload_none/cancel", 404),
    ],
)
def test_each_error_has_the_envelope_and_an_id(http: httpx.Client, method: str, path: str, status: int) -> None:
    _assert_envelope(http.request(method, path), status)


def test_an_unknown_path_is_named(http: httpx.Client) -> None:
    assert _assert_envelope(http.post("/v1/foo"), 404)["message"] == "Invalid URL (POST /v1/foo)"


def test_good_answers_have_an_id_too(http: httpx.Client) -> None:
    answer = http.get("/v1/files")
    assert answer.headers["x-request-id"].startswith("req_")
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    ("body", "message", "param", "code"),
    [
        ({}, "Missing required parameter: 'input_file_id'.", "input_file_id", "missing_required_parameter"),
        (
            {"input_file_id": "file-x", "endpoint": "/v1/x", "completion_window": "24h"},
            "Invalid value: '/v1/x'.",
            "endpoint",
            "invalid_value",
        ),
        (
            {"input_file_id": "file-x", "endpoint": "/v1/chat/completions", "completion_window": "soon"},
            "completion_window",
            "completion_window",
            "invalid_value",
        ),
        (
            {
                "input_file_id": "file-x",
                "endpoint": "/v1/chat/completions",
                "completion_window": "24h",
                "metadata": {"tags": ["a"]},
            },
            "Invalid type for 'metadata.tags': expected a string, but got an array instead.",
            "metadata.tags",
            "invalid_type",
        ),
    ],
)
def test_a_wrong_batch_is_refused_at_once(
    http: httpx.Client, body: dict[str, object], message: str, param: str, code: str
) -> None:
    error = _assert_envelope(http.post("/v1/batches", json=body), 400)
    assert message in str(error["message"])
    assert (error["param"], error["code"], error["type"]) == (param, code, "invalid_request_error")


@pytest.mark.parametrize("content", [b"{", b"[]", b"null", b'"x"', b"", b"\xff"])
def test_a_body_that_is_no_object_is_a_400(http: httpx.Client, content: bytes) -> None:
    for path in ("/v1/batches", "/v1/uploads", "/v1/webhook_endpoints"):
        answer = http.post(path, content=content, headers={"content-type": "application/json"})
        _assert_envelope(answer, 400)


@pytest.mark.parametrize("database", ["sqlite_url", "postgres_url"])
def test_what_a_database_cannot_hold_is_a_400(
    database: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """NUL and lone surrogates, in paths, queries and bodies; huge numbers."""
    create = b'{"input_file_id":"a%s","endpoint":"/v1/chat/completions","completion_window":"24h%s"}'
    bodies = [create % (b"\\u0000", b""), create % (b"\\ud800", b""), create % (b"", b"9" * 5000 + b"d"), b"[" * 9999]
    with running_api(tmp_path, request.getfixturevalue(database)) as api, api.http() as http:
        for path in ("/v1/files/a%00b", "/v1/batches?after=%00", "/v1/models/%00"):
            _assert_envelope(http.get(path), 400)
        for body in bodies:
            answer = http.post("/v1/batches", content=body, headers={"content-type": "application/json"})
            _assert_envelope(answer, 400)


def test_a_wrong_type_is_worded_as_openai_words_it(http: httpx.Client) -> None:
    body = {"filename": "a.jsonl", "purpose": "batch", "bytes": "many", "mime_type": "x"}
    error = _assert_envelope(http.post("/v1/uploads", json=body), 400)
    assert error["message"] == "Invalid type for 'bytes': expected an integer, but got a string instead."
    assert (error["param"], error["code"]) == ("bytes", "invalid_type")


def test_json_routes_want_json(http: httpx.Client) -> None:
    answer = http.post("/v1/batches", content=b"a=b", headers={"content-type": "text/plain"})
    assert _assert_envelope(answer, 400)["code"] == "unsupported_media_type"


def test_a_large_json_body_is_a_413(http: httpx.Client) -> None:
    kind = {"content-type": "application/json"}
    _assert_envelope(http.post("/v1/batches", content=b"x" * 1_100_000, headers=kind), 413)
    chunks = (b"x" * 100_000 for _ in range(12))
    _assert_envelope(http.post("/v1/batches", content=chunks, headers=kind), 413)


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"host": "evil.example"}, "host_not_allowed"),
        ({"host": "127.0.0.1.evil.example:8484"}, "host_not_allowed"),
        ({"origin": "https://evil.example"}, "cross_site"),
        ({"origin": "null"}, "cross_site"),
        ({"origin": "http://localhost:3000"}, "cross_site"),
        ({"sec-fetch-site": "cross-site"}, "cross_site"),
    ],
)
def test_without_keys_a_web_page_can_neither_read_nor_submit(
    http: httpx.Client, headers: dict[str, str], code: str
) -> None:
    for method, path in (("GET", "/v1/files"), ("POST", "/v1/batches"), ("GET", "/metrics"), ("POST", "/v1/files")):
        assert _assert_envelope(http.request(method, path, headers=headers), 403)["code"] == code


def test_without_keys_loopback_names_and_the_own_docs_page_work(api: RunningApi, http: httpx.Client) -> None:
    port = api.url.rpartition(":")[2]
    for host in (f"localhost:{port}", f"127.0.0.1:{port}", f"[::1]:{port}"):
        assert http.get("/v1/files", headers={"host": host, "origin": f"http://{host}"}).status_code == 200
    assert http.get("/docs").status_code == 200
    assert http.get("/openapi.json").json()["info"]["title"] == "Batchmill"


def test_health_readiness_and_metrics(http: httpx.Client) -> None:
    assert http.get("/healthz").json() == {"status": "ok"}
    ready = http.get("/readyz")
    assert ready.status_code == 503 and ready.json()["broker"].startswith("does not answer")
    assert (ready.json()["database"], ready.json()["files"]) == ("ok", "ok")
    assert 'batchmill_http_requests_total{method="GET",route="/healthz",status="200"}' in http.get("/metrics").text


def test_readiness_with_a_broker(tmp_path: Path, valkey_url: str) -> None:
    with running_api(tmp_path, BATCHMILL_REDIS_URL=valkey_url) as api, api.http() as http:
        ready = {"status": "ok", "database": "ok", "broker": "ok", "files": "ok", "disk": "ok"}
        assert http.get("/readyz").json() == ready


def test_a_cut_upload_leaves_nothing_behind(api: RunningApi, http: httpx.Client) -> None:
    before = {name for name, _size, _at in api.world.blobs.list()}
    with socket.create_connection(("127.0.0.1", int(api.url.rpartition(":")[2]))) as raw:
        raw.sendall(
            b"POST /v1/files HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: multipart/form-data; boundary=XX\r\n"
            b"content-length: 9000000\r\n\r\n--XX\r\n"
            b'Content-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n' + b'{"a":1}\n' * 10_000
        )
    assert http.get("/healthz").status_code == 200
    assert {name for name, _size, _at in api.world.blobs.list()} == before


def test_the_table_of_statuses_is_total() -> None:
    """Every error class has a status of its own, none is reached by accident."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, BatchmillError)]
    assert set(kinds) == set(STATUS)


def test_conflicts_tell_the_sdk_not_to_retry() -> None:
    from batch.api.errors import respond_to

    answer = respond_to(errors.Conflict("Cannot cancel a batch with status 'completed'."))
    assert answer.status_code == 409 and answer.headers["x-should-retry"] == "false"
    assert b'"code":null' in answer.body and b'"type":"invalid_request_error"' in answer.body
    assert status_of(errors.Unavailable("x")) == 503
    limited = respond_to(errors.RateLimited("x", retry_after_s=1.5))
    assert (limited.headers["retry-after"], limited.headers["retry-after-ms"]) == ("2", "1500")


def test_an_unexpected_fault_says_nothing_of_itself() -> None:
    from batch.api.errors import respond_to

    answer = respond_to(RuntimeError("secret sk-123"))
    assert answer.status_code == 500 and b"secret" not in answer.body
    assert answer.headers["x-should-retry"] == "false"


def test_a_client_that_stops_sending_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """The frame gives up on a silent body instead of holding the connection for ever."""
    from batch.api import frame
    from batch.clock import SYSTEM_CLOCK

    class Bare:
        clock = SYSTEM_CLOCK

    async def never() -> dict[str, object]:
        return await asyncio.Event().wait()  # type: ignore[return-value]

    async def run() -> None:
        scope = {"type": "http", "method": "POST", "path": "/v1/batches", "headers": []}
        exchange = frame._Exchange(Bare(), scope, never, never)  # type: ignore[arg-type]
        with pytest.raises(frame.ClientStalled):
            await exchange.receive()

    monkeypatch.setattr(frame, "STALL_S", 0.01)
    asyncio.run(run())
