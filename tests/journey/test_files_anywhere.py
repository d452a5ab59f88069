"""One journey, files on disk and in S3: upload, run, finalize, download, delete, sweep.

S3 is a server process that speaks its protocol; nothing in the service knows that it is not Amazon's.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import orjson
import pytest

from batch.files.blobs import new_blob_name
from batch.operations import retention
from batch.operations.world import World, open_world
from batch.settings import Settings
from tests.harness.databases import free_port
from tests.harness.servers import Child, clean_environment, python
from tests.harness.service import Service, chat, running_service
from tests.harness.waiting import eventually

LINES = [chat(f"r{number}", "sim-1", f"Say {number}.") for number in range(60)]
CONTENT = b"".join(orjson.dumps(line) + b"\n" for line in LINES)
PART_BYTES = 6 * 1024 * 1024


@dataclass
class Place:
    """A service and the test's own view of its database and files."""

    service: Service
    world: World

    def blobs(self) -> dict[str, int]:
        return {name: size for name, size, _ in self.world.blobs.list()}


@pytest.fixture(scope="module", params=["disk", "s3"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    directory = tmp_path_factory.mktemp(request.param)
    port, env, url = free_port(), {}, None
    children = [_child(directory, "simulator", "batch.simulator", "--port", str(port))]
    patch = pytest.MonkeyPatch()
    if request.param == "s3":
        store = free_port()
        children.append(_child(directory, "s3", "moto.server", "-H", "127.0.0.1", "-p", str(store)))
        env = {
            "AWS_ENDPOINT": f"http://127.0.0.1:{store}", "AWS_ALLOW_HTTP": "true", "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
        }  # fmt: skip
        url = "s3://mill/files"
        eventually(lambda: _makes_bucket(env["AWS_ENDPOINT"]), 30, 0.2, "the bucket")
        for name, value in env.items():
            patch.setenv(name, value)
    config = f'{f"files_url = {chr(34)}{url}{chr(34)}" if url else ""}\n[providers.sim]\n' + (
        f'base_url = "http://127.0.0.1:{port}/v1"\nmodels = ["sim-1"]\n'
    )
    try:
        with running_service(config, **env) as service:
            world = open_world(Settings(data_dir=service.directory / "data", files_url=url))
            yield Place(service, world)
            world.close()
    finally:
        patch.undo()
        for child in children:
            child.kill()


def test_a_file_goes_through_and_its_answers_come_back_in_ranges(place: Place) -> None:
    """Whole, by Range from the middle, and refused outside; the input can be downloaded too."""
    finished = place.service.run(LINES)
    assert finished.batch["status"] == "completed" and len(finished.lines) == len(LINES)
    path = f"/v1/files/{finished.batch['output_file_id']}/content"
    whole = place.service.client.get(path).content
    part = place.service.client.get(path, headers={"range": "bytes=100-299"})
    assert (part.status_code, part.content) == (206, whole[100:300])
    assert place.service.client.get(path, headers={"range": "bytes=-50"}).content == whole[-50:]
    assert place.service.client.get(path, headers={"range": f"bytes={len(whole)}-"}).status_code == 416
    sent = place.service.client.get(f"/v1/files/{finished.batch['input_file_id']}/content").content
    assert sent == CONTENT


def test_gzip_input_is_recognised_by_its_bytes(place: Place) -> None:
    """Whatever it is called."""
    made = place.service.client.post(
        "/v1/files", data={"purpose": "batch"}, files={"file": ("in.jsonl", gzip.compress(CONTENT))}
    ).json()
    body = {"input_file_id": made["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    batch = place.service.client.post("/v1/batches", json=body).json()
    finished = place.service.wait(batch["id"])
    assert finished.batch["request_counts"] == {"total": 60, "completed": 60, "failed": 0}


def test_an_upload_in_parts_becomes_one_file(place: Place) -> None:
    """Parts beyond the size from which stores are written in several pieces; completing removes them soon."""
    filler = orjson.dumps(chat("big", "sim-1", "x" * 200_000)) + b"\n"
    content = filler * 80
    client = place.service.client
    opened = client.post(
        "/v1/uploads",
        json={"filename": "b.jsonl", "purpose": "batch", "bytes": len(content), "mime_type": "application/jsonl"},
    ).json()
    parts = [
        client.post(f"/v1/uploads/{opened['id']}/parts", files={"data": content[at : at + PART_BYTES]}).json()["id"]
        for at in range(0, len(content), PART_BYTES)
    ]
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    done = client.post(f"/v1/uploads/{opened['id']}/complete", json={"part_ids": parts, "md5": md5}).json()
    assert done["status"] == "completed" and done["file"]["bytes"] == len(content)
    sent = client.get(f"/v1/files/{done['file']['id']}/content").content
    assert hashlib.sha256(sent).digest() == hashlib.sha256(content).digest()
    retention.remove_deleted_bytes(place.world)
    assert not [name for name in place.blobs() if name.startswith("parts/")]


def test_deleted_files_lose_their_bytes_and_orphans_are_swept(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files with a row stay; a blob that nobody names goes once it is old."""
    client = place.service.client
    kept = client.post("/v1/files", data={"purpose": "batch"}, files={"file": ("a.jsonl", CONTENT)}).json()["id"]
    gone = client.post("/v1/files", data={"purpose": "batch"}, files={"file": ("b.jsonl", CONTENT)}).json()["id"]
    before = place.blobs()
    assert client.delete(f"/v1/files/{gone}").json()["deleted"] is True
    assert client.get(f"/v1/files/{gone}/content").status_code == 404
    eventually(lambda: retention.remove_deleted_bytes(place.world) or len(place.blobs()) < len(before), what="removal")
    orphan = new_blob_name("inputs")
    writer = place.world.blobs.writer(orphan)
    writer.write(b"x" * 10)
    writer.commit()
    retention.sweep_orphan_blobs(place.world)
    assert orphan in place.blobs(), "too young: its row may be on the way"
    monkeypatch.setattr(retention, "ORPHAN_AFTER_S", -3600)
    assert retention.sweep_orphan_blobs(place.world) == 1
    assert orphan not in place.blobs()
    assert client.get(f"/v1/files/{kept}/content").content == CONTENT


def _makes_bucket(address: str) -> bool:
    try:
        return httpx.put(f"{address}/mill", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def _child(directory: Path, name: str, module: str, *arguments: str) -> Child:
    return Child(
        python("-m", module, *arguments), env=clean_environment(), cwd=directory, log=directory / f"{name}.log"
    )
