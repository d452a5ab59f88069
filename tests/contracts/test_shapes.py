"""Answers against the SDK's own types, strictly: the SDK itself validates nothing at run time."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types import Batch, FileObject, Model, Upload
from openai.types.uploads import UploadPart
from openai.types.webhooks import WebhookEndpoint
from pydantic import BaseModel

from tests.harness.api import RunningApi, line, running_api

INPUT = json.dumps(line("a")).encode() + b"\n"
CREATE = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}


@pytest.fixture(scope="module")
def answers(api: RunningApi) -> dict[str, Any]:
    with api.http() as http:
        file = http.post("/v1/files", data={"purpose": "batch"}, files={"file": INPUT}).json()
        upload = http.post(
            "/v1/uploads",
            json={"filename": "a.jsonl", "purpose": "batch", "bytes": len(INPUT), "mime_type": "application/jsonl"},
        ).json()
        part = http.post(f"/v1/uploads/{upload['id']}/parts", files={"data": INPUT}).json()
        hook = {"name": "n", "url": "https://example.com/", "event_types": ["batch.completed"]}
        return {
            "file": file,
            "upload": upload,
            "part": part,
            "completed upload": http.post(
                f"/v1/uploads/{upload['id']}/complete", json={"part_ids": [part["id"]]}
            ).json(),
            "batch": http.post("/v1/batches", json={**CREATE, "input_file_id": file["id"]}).json(),
            "endpoint": http.post("/v1/webhook_endpoints", json=hook).json(),
            "files": http.get("/v1/files").json(),
            "batches": http.get("/v1/batches").json(),
            "endpoints": http.get("/v1/webhook_endpoints").json(),
            "no files": http.get("/v1/files?purpose=none").json(),
        }


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("file", FileObject),
        ("upload", Upload),
        ("completed upload", Upload),
        ("part", UploadPart),
        ("batch", Batch),
        ("endpoint", WebhookEndpoint),
    ],
)
def test_an_object_is_what_the_sdk_says(answers: dict[str, Any], name: str, model: type[BaseModel]) -> None:
    """Every required key, every type; and no key that the SDK knows is left out."""
    model.model_validate_json(json.dumps(answers[name]), strict=True)
    optional = {"signing_secret_hint", "file"} if name in {"endpoint", "upload"} else set()
    assert set(model.model_fields) - set(answers[name]) <= optional


@pytest.mark.parametrize(("name", "model"), [("files", FileObject), ("batches", Batch), ("endpoints", WebhookEndpoint)])
def test_a_list_has_all_five_keys(answers: dict[str, Any], name: str, model: type[BaseModel]) -> None:
    page = answers[name]
    assert set(page) == {"object", "data", "first_id", "last_id", "has_more"} and page["object"] == "list"
    assert (page["first_id"], page["last_id"]) == (page["data"][0]["id"], page["data"][-1]["id"])
    for item in page["data"]:
        model.model_validate_json(json.dumps(item), strict=True)


def test_an_empty_list_has_null_ends(answers: dict[str, Any]) -> None:
    assert answers["no files"] == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}


def test_models_with_slashes_are_found_by_the_sdk(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The SDK quotes the slash; the server decodes it."""
    directory = tmp_path_factory.mktemp("models")
    (directory / "batchmill.toml").write_text(
        '[providers.local]\nengine = "vllm"\nbase_url = "http://127.0.0.1:9/v1"\nmodels = ["Qwen/Qwen3-30B"]\n'
    )
    with running_api(directory) as api:
        client = api.sdk()
        assert [model.id for model in client.models.list()] == ["Qwen/Qwen3-30B"]
        found = client.models.retrieve("Qwen/Qwen3-30B")
        Model.model_validate_json(found.to_json(), strict=True)
        assert found.id == "Qwen/Qwen3-30B"
        [provider] = api.http().get("/v1/providers").json()["data"]
        assert (provider["id"], provider["engine"], provider["missing_key"]) == ("local", "vllm", None)
        assert provider["base_urls"] == ["http://127.0.0.1:9/v1"]
