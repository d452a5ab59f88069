"""Keys and projects: nothing reaches across, revoked keys stop, limits are honest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from batch.domain.errors import InvalidConfiguration
from batch.domain.loopback import check_listen_address
from batch.operations.keys import create_key, list_keys, revoke_key, set_project_limits
from tests.harness.api import RunningApi, running_api
from tests.harness.waiting import eventually

INPUT = b'{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {}}\n'


@dataclass
class Keyed:
    api: RunningApi
    own: str
    other: str
    revoked: str
    ids: dict[str, str]


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    """A server with two projects; `ids` are things of the first."""
    with running_api(tmp_path_factory.mktemp("keyed")) as api:
        own = create_key(api.world, project="one")
        other = create_key(api.world, project="two")
        revoked = create_key(api.world, project="one")
        revoke_key(api.world, revoked.public_id)
        eventually(lambda: api.http().get("/v1/files").status_code == 401, what="keys are required")
        yield Keyed(api, own.key, other.key, revoked.key, _make_things(api, own.key))


def _make_things(api: RunningApi, key: str) -> dict[str, str]:
    with api.http(key) as http:
        file_id = http.post("/v1/files", data={"purpose": "batch"}, files={"file": INPUT}).json()["id"]
        create = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        upload = {"filename": "a.jsonl", "purpose": "batch", "bytes": 8, "mime_type": "application/jsonl"}
        hook = {"name": "h", "url": "https://example.com/h", "event_types": ["batch.completed"]}
        return {
            "file": file_id,
            "batch": http.post("/v1/batches", json=create).json()["id"],
            "upload": http.post("/v1/uploads", json=upload).json()["id"],
            "endpoint": http.post("/v1/webhook_endpoints", json=hook).json()["id"],
        }


MATRIX = [
    ("GET", "/v1/files/{file}"),
    ("GET", "/v1/files/{file}/content"),
    ("GET", "/v1/files?after={file}"),
    ("GET", "/v1/batches/{batch}"),
    ("GET", "/v1/batches/{batch}/results"),
    ("GET", "/v1/batches/{batch}/explanation"),
    ("GET", "/v1/batches/{batch}/family"),
    ("GET", "/v1/batches?after={batch}"),
    ("GET", "/v1/webhook_endpoints/{endpoint}"),
    ("GET", "/v1/webhook_endpoints?after={endpoint}"),
    ("POST", "/v1/webhook_endpoints/{endpoint}"),
    ("POST", "/v1/webhook_endpoints/{endpoint}/rotate_secret"),
    ("POST", "/v1/batches/{batch}/pause"),
    ("POST", "/v1/batches/{batch}/resume"),
    ("POST", "/v1/batches/{batch}/cancel"),
    ("POST", "/v1/uploads/{upload}/cancel"),
    ("DELETE", "/v1/webhook_endpoints/{endpoint}"),
    ("DELETE", "/v1/files/{file}"),
]


@pytest.mark.parametrize(("method", "path"), MATRIX)
def test_things_are_reached_by_their_project_only(keyed: Keyed, method: str, path: str) -> None:
    """Another project's key finds nothing, revoked and missing keys are refused, the own key works last."""
    url = path.format(**keyed.ids)
    body = {"json": {}} if method == "POST" else {}
    statuses = {}
    for who, key in (("other", keyed.other), ("revoked", keyed.revoked), ("none", None), ("wrong", "bm_" + "x" * 43)):
        with keyed.api.http(key) as http:
            statuses[who] = http.request(method, url, **body).status_code
    assert statuses["other"] in {404, 400}, "another project's thing must look absent"
    assert (statuses["revoked"], statuses["none"], statuses["wrong"]) == (401, 401, 401)
    with keyed.api.http(keyed.own) as http:
        assert http.request(method, url, **body).status_code == 200


@pytest.mark.parametrize(
    ("path", "send"),
    [
        ("/v1/uploads/{upload}/parts", {"files": {"data": b"12345678"}}),
        ("/v1/uploads/{upload}/complete", {"json": {"part_ids": []}}),
        ("/v1/batches/{batch}/retry", {"json": {}}),
        ("/v1/webhook_endpoints/{endpoint}/test", {"json": {"event_type": "batch.completed"}}),
    ],
)
def test_writes_that_end_things_are_reached_by_their_project_only(keyed: Keyed, path: str, send: Any) -> None:
    """The own key is told of the thing's state, which another project's key never learns."""
    made = _make_things(keyed.api, keyed.own)
    answers = {}
    for who, key in (("other", keyed.other), ("revoked", keyed.revoked), ("none", None), ("own", keyed.own)):
        with keyed.api.http(key) as http:
            answers[who] = http.post(path.format(**made), **send)
    assert (answers["revoked"].status_code, answers["none"].status_code) == (401, 401)
    assert answers["other"].status_code == 404 and answers["own"].status_code != 404
    assert "pending" not in answers["other"].text and "validating" not in answers["other"].text


@pytest.mark.parametrize("path", ["/v1/files", "/v1/batches", "/v1/models", "/v1/providers", "/v1/webhook_endpoints"])
def test_lists_show_the_own_project_only(keyed: Keyed, path: str) -> None:
    with keyed.api.http(keyed.other) as http:
        assert http.get(path).json()["data"] == []
    with keyed.api.http() as http:
        assert http.get(path).status_code == 401


def test_an_other_projects_file_fails_the_batch_as_if_it_did_not_exist(keyed: Keyed) -> None:
    with keyed.api.http(keyed.other) as http:
        body = {"input_file_id": keyed.ids["file"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        made = http.post("/v1/batches", json=body)
        assert made.status_code == 200 and made.json()["status"] == "validating"


def test_the_sdk_raises_authentication_errors(keyed: Keyed) -> None:
    with pytest.raises(openai.AuthenticationError) as caught:
        keyed.api.sdk("sk-" + "a" * 40).files.list()
    assert caught.value.code == "invalid_api_key" and "aaaaaaaa" not in str(caught.value)


def test_a_revoked_key_stops_within_seconds(keyed: Keyed) -> None:
    made = create_key(keyed.api.world, project="one", name="short-lived")
    with keyed.api.http(made.key) as http:
        assert http.get("/v1/files").status_code == 200
        assert revoke_key(keyed.api.world, made.public_id)
        eventually(lambda: http.get("/v1/files").status_code == 401, timeout_s=5)


def test_keys_are_stored_as_hashes(keyed: Keyed) -> None:
    rows = list_keys(keyed.api.world, project="one")
    assert keyed.own not in repr(rows) and rows[0].hint == keyed.own[-4:]
    database = keyed.api.world.settings.resolved_data_dir / "batchmill.db"
    stored = b"".join(path.read_bytes() for path in database.parent.glob("batchmill.db*"))
    assert keyed.own.encode() not in stored
    assert keyed.own not in keyed.api.child.text()


def test_the_request_rate_is_limited_with_honest_headers(keyed: Keyed) -> None:
    made = create_key(keyed.api.world, project="slow")
    set_project_limits(keyed.api.world, "slow", limits={"requests_per_minute": 3})
    with keyed.api.http(made.key) as http:
        first = http.get("/v1/files")
        assert first.headers["x-ratelimit-limit-requests"] == "3"
        assert first.headers["x-ratelimit-remaining-requests"] == "2"
        statuses = [http.get("/v1/files").status_code for _ in range(3)]
        assert statuses == [200, 200, 429]
        refused = http.get("/v1/files")
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert 0 < float(refused.headers["retry-after-ms"]) <= 20_000


def test_storage_is_limited(keyed: Keyed) -> None:
    made = create_key(keyed.api.world, project="small")
    set_project_limits(keyed.api.world, "small", limits={"storage_bytes": 100})
    with keyed.api.http(made.key) as http:
        form = {"data": {"purpose": "batch"}, "files": {"file": INPUT}}
        assert http.post("/v1/files", **form).status_code == 200
        assert http.post("/v1/files", **form).status_code == 413


def test_priority_above_the_projects_maximum_is_refused(keyed: Keyed) -> None:
    made = create_key(keyed.api.world, project="modest")
    set_project_limits(keyed.api.world, "modest", max_priority="normal")
    body = {
        "input_file_id": "file-x",
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
        "options": {"priority": "high"},
    }
    with keyed.api.http(made.key) as http:
        assert http.post("/v1/batches", json=body).status_code == 403


def test_without_keys_only_loopback_is_listened_on(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfiguration, match="listens on loopback only"):
        check_listen_address("0.0.0.0", has_keys=False)
    check_listen_address("0.0.0.0", has_keys=True)
    check_listen_address("127.0.0.1", has_keys=False)
    with pytest.raises(AssertionError, match="make a key first"), running_api(tmp_path, BATCHMILL_HOST="0.0.0.0"):
        pass


def test_revoking_the_last_key_opens_nothing(tmp_path: Path) -> None:
    with running_api(tmp_path) as api:
        made = create_key(api.world)
        revoke_key(api.world, made.public_id)
        with api.http() as http:
            eventually(lambda: http.get("/v1/files").status_code == 401, timeout_s=5)


def test_health_needs_no_key(keyed: Keyed) -> None:
    assert httpx.get(f"{keyed.api.url}/healthz").status_code == 200
