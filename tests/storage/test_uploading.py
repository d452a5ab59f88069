"""Uploads: what is accepted, in one piece and in parts."""

from __future__ import annotations

import gzip
import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from batch.domain.errors import Conflict, InvalidRequest, NotFound, TooLarge
from batch.operations.keys import set_project_limits
from batch.operations.read_files import get_downloadable, list_files
from batch.operations.retention import delete_file, remove_deleted_bytes
from batch.operations.upload import FileUpload
from batch.operations.upload_parts import begin_part, cancel_upload, complete_upload, get_upload, open_upload
from batch.operations.world import World
from tests.harness.worlds import default_project, jsonl, make_world, request_line

INPUT = jsonl([request_line("a"), request_line("b")])


def blobs_left(world: World) -> int:
    assert world.blobs.root is not None
    return sum(path.is_file() for path in world.blobs.root.rglob("*"))


def send(world: World, content: bytes, *, filename: str = "upload", purpose: str = "batch") -> str:
    with FileUpload(world, default_project(world).id) as upload:
        for start in range(0, len(content), 100):
            upload.append(content[start : start + 100])
        return upload.finish(purpose=purpose, filename=filename).public_id


def test_a_file_is_hashed_and_measured_on_its_way(world: World) -> None:
    """Purpose batch expires after 30 days, others never."""
    with FileUpload(world, default_project(world).id) as upload:
        upload.append(INPUT)
        file = upload.finish(purpose="batch", filename="upload")
    assert (file.size_bytes, file.sha256) == (len(INPUT), hashlib.sha256(INPUT).hexdigest())
    assert (file.status, file.encoding) == ("processed", None)
    assert file.expires_at == file.created_at + 30 * 86_400_000
    with FileUpload(world, default_project(world).id) as upload:
        upload.append(b"any bytes")
        assert upload.finish(purpose="user_data", filename="x.bin").expires_at is None


@pytest.mark.parametrize(
    ("filename", "content"),
    [
        ("notes.txt", INPUT),
        ("in.jsonl", b""),
        ("in.jsonl", b"\n\n"),
        ("in.jsonl", b"not json\n"),
        ("in.jsonl", b"[1]\n"),
        ("in.jsonl.gz", gzip.compress(b"nothing\n", mtime=0)),
        ("in.jsonl.gz", b"\x1f\x8bgarbage"),
    ],
)
def test_what_is_no_jsonl_is_refused_at_once(sqlite_world: World, filename: str, content: bytes) -> None:
    """By name or first line; nothing is kept."""
    with pytest.raises(InvalidRequest, match=r"Invalid file format for Batch API. Must be .jsonl"):
        send(sqlite_world, content, filename=filename)
    assert blobs_left(sqlite_world) == 0


@pytest.mark.parametrize(
    ("filename", "content"),
    [
        ("upload", INPUT),
        ("in.jsonl", b"\xef\xbb\xbf" + INPUT),
        ("in.jsonl", INPUT + b"a later line that is no JSON\n"),
        ("in.jsonl.gz", gzip.compress(INPUT, mtime=0)),
        ("in.jsonl", b'{"a": "' + b"x" * 3_000_000 + b'"}\n'),
    ],
    ids=["no suffix", "BOM", "bad later line", "gzip", "long first line"],
)
def test_what_may_be_jsonl_is_accepted(sqlite_world: World, filename: str, content: bytes) -> None:
    """Later lines are ingest's business."""
    assert send(sqlite_world, content, filename=filename).startswith("file-")


def test_a_file_over_the_limit_stops_at_the_first_byte_too_many(sqlite_url: str, tmp_path: Path) -> None:
    """OpenAI's words, and nothing is kept."""
    world = make_world(sqlite_url, tmp_path, max_file_bytes=1000)
    with pytest.raises(InvalidRequest, match=r"File is too large\."):
        send(world, INPUT * 20)
    assert blobs_left(world) == 0


def test_a_projects_storage_limit_holds(sqlite_world: World) -> None:
    """Deleting files makes room."""
    default_project(sqlite_world)
    set_project_limits(sqlite_world, "default", limits={"storage_bytes": len(INPUT) + 10})
    send(sqlite_world, INPUT)
    with pytest.raises(TooLarge, match="storage limit"):
        send(sqlite_world, INPUT)


def test_parts_become_one_file_in_the_order_named(world: World) -> None:
    """Whatever the order of arrival; the md5 is checked; the parts' bytes go afterwards."""
    project = default_project(world)
    upload = open_upload(
        world, project.id, filename="big.jsonl", purpose="batch", mime_type="application/jsonl", size_bytes=len(INPUT)
    )
    assert (upload.status, upload.expires_at - upload.created_at) == ("pending", 3_600_000)
    ids = []
    for content in (INPUT[50:], INPUT[:50]):
        with begin_part(world, project.id, upload.public_id) as part:
            part.append(content)
            ids.append(part.finish().public_id)
    md5 = hashlib.md5(INPUT).hexdigest()
    with pytest.raises(InvalidRequest, match="md5"):
        complete_upload(world, project.id, upload.public_id, ids[::-1], md5="0" * 32)
    done, file = complete_upload(world, project.id, upload.public_id, ids[::-1], md5=md5)
    assert (done.status, done.file) == ("completed", file.public_id)
    assert b"".join(world.blobs.read(get_downloadable(world, project.id, file.public_id).blob)) == INPUT
    assert remove_deleted_bytes(world) == 2


def test_a_completion_sent_again_gives_the_same_file(world: World) -> None:
    """Also when the parts are gone; other parts, another order or another md5 do not."""
    project = default_project(world)
    upload = open_upload(world, project.id, filename="x", purpose="batch", mime_type="t", size_bytes=len(INPUT))
    ids = []
    for content in (INPUT[:50], INPUT[50:]):
        with begin_part(world, project.id, upload.public_id) as part:
            part.append(content)
            ids.append(part.finish().public_id)
    md5 = hashlib.md5(INPUT).hexdigest()
    first = complete_upload(world, project.id, upload.public_id, ids)
    for _ in range(2):
        assert complete_upload(world, project.id, upload.public_id, ids) == first
        assert complete_upload(world, project.id, upload.public_id, ids, md5=md5.upper()) == first
        remove_deleted_bytes(world)
    for other, given in ((ids[::-1], None), (ids[:1], None), ([], None), (ids, "0" * 32)):
        with pytest.raises(Conflict, match="completed"):
            complete_upload(world, project.id, upload.public_id, other, md5=given)
    assert [file.public_id for file in list_files(world, project.id)[0]] == [first[1].public_id]
    delete_file(world, project.id, first[1].public_id)
    with pytest.raises(NotFound):
        complete_upload(world, project.id, upload.public_id, ids)


def test_parts_must_sum_up_to_the_size_announced(sqlite_world: World) -> None:
    """Unknown parts are named."""
    project = default_project(sqlite_world)
    upload = open_upload(
        sqlite_world, project.id, filename="x", purpose="batch", mime_type="text/plain", size_bytes=999
    )
    with begin_part(sqlite_world, project.id, upload.public_id) as part:
        part.append(INPUT)
        part_id = part.finish().public_id
    with pytest.raises(InvalidRequest, match="was opened for 999"):
        complete_upload(sqlite_world, project.id, upload.public_id, [part_id])
    with pytest.raises(InvalidRequest, match="part_none"):
        complete_upload(sqlite_world, project.id, upload.public_id, ["part_none"])


def test_a_cancelled_upload_takes_no_more_parts(sqlite_world: World) -> None:
    """Cancelling twice is one cancel; a part on its way is refused and removed."""
    project = default_project(sqlite_world)
    upload = open_upload(sqlite_world, project.id, filename="x", purpose="batch", mime_type="t", size_bytes=5)
    with begin_part(sqlite_world, project.id, upload.public_id) as part:
        part.append(b"12345")
        assert cancel_upload(sqlite_world, project.id, upload.public_id).status == "cancelled"
        with pytest.raises(Conflict):
            part.finish()
    assert cancel_upload(sqlite_world, project.id, upload.public_id).status == "cancelled"
    assert blobs_left(sqlite_world) == 0
    with pytest.raises(NotFound):
        get_upload(sqlite_world, project.id, "upload_none")


def test_two_completions_at_once_make_one_file(world: World) -> None:
    """The other one gets the same, and no copy of it is ever listed."""
    project = default_project(world)
    upload = open_upload(
        world, project.id, filename="x", purpose="batch", mime_type="t", size_bytes=len(INPUT)
    )
    with begin_part(world, project.id, upload.public_id) as part:
        part.append(INPUT)
        ids = [part.finish().public_id]
    start = threading.Barrier(2)

    def complete(_: int) -> str:
        start.wait()
        return complete_upload(world, project.id, upload.public_id, ids)[1].public_id

    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(complete, range(2)))
    [listed] = list_files(world, project.id)[0]
    assert answers == [listed.public_id] * 2
