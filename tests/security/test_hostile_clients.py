"""Clients that are slow, endless or crafty cost the server little and reach nothing."""

from __future__ import annotations

import gzip
import socket
import struct
import time
from collections.abc import Iterator

import httpx
import pytest

from batch.api import connections, frame
from batch.api.connections import allow_connections
from batch.api.download import content_disposition
from batch.api.multipart import clean_filename
from tests.harness.api import RunningApi, line, running_api
from tests.harness.databases import free_port
from tests.harness.servers import ROOT
from tests.harness.waiting import eventually

SHORT = "from batch.api import connections, frame\nconnections.HEADERS_S = frame.STALL_S = 1.0\n"


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApi]:
    """A server with the times for slow clients cut to one second, in an otherwise ordinary process."""
    directory = tmp_path_factory.mktemp("hostile")
    site = directory / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(SHORT)
    with running_api(directory, PYTHONPATH=f"{site}:{ROOT}") as running:
        yield running


def connect(api: RunningApi) -> socket.socket:
    host, _, port = api.url.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), timeout=15)


def closes_within(held: socket.socket, seconds: float) -> bool:
    """True when the server ends the connection by itself, whatever it says before."""
    held.settimeout(seconds)
    try:
        while held.recv(65_536):
            pass
    except TimeoutError:
        return False
    except ConnectionError:
        pass
    return True


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: "])
def test_a_connection_without_whole_headers_is_closed(api: RunningApi, sent: bytes) -> None:
    with connect(api) as held:
        held.sendall(sent)
        assert closes_within(held, 8)


def test_a_second_request_must_send_its_headers_in_time_too(api: RunningApi) -> None:
    with connect(api) as held:
        held.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert b"200 OK" in held.recv(65_536)
        held.sendall(b"GET /healthz HTTP/1.1\r\nHost:")
        assert closes_within(held, 8)


def test_headers_without_end_are_cut_off(api: RunningApi) -> None:
    """At 64 kB, however fast they come."""
    with connect(api) as held:
        held.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n")
        with pytest.raises(ConnectionError):
            for number in range(10_000):
                held.sendall(f"X-{number}: {'a' * 1000}\r\n".encode())
        assert closes_within(held, 5)


@pytest.mark.parametrize("path", ["/v1/batches", "/v1/files"])
def test_a_body_that_stops_is_given_up(api: RunningApi, path: str) -> None:
    """Small JSON bodies as a whole, streamed ones when nothing comes any more."""
    with connect(api) as held:
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 5000\r\n"
        held.sendall(head.encode() + b"Content-Type: multipart/form-data; boundary=x\r\n\r\n--x")
        assert closes_within(held, 8)
    assert api.http().get("/healthz").status_code == 200


def test_a_body_that_drips_is_given_up(api: RunningApi) -> None:
    """A byte now and then does not keep a JSON request alive."""
    with connect(api) as held:
        held.sendall(b"POST /v1/batches HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 5000\r\n\r\n")
        began = time.monotonic()
        held.settimeout(0.3)

        def ended() -> bool:
            try:
                held.sendall(b" ")
                return held.recv(1024) == b""
            except TimeoutError:
                return False
            except ConnectionError:
                return True

        eventually(ended, 10, 0.1, "the connection ends")
        assert time.monotonic() - began < 8


def test_a_client_that_takes_nothing_is_dropped(api: RunningApi) -> None:
    """A download whose reader stopped reading ends; the server goes on."""
    content = b"\n".join([b'{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {}}'] * 400_000)
    made = api.http().post("/v1/files", data={"purpose": "batch"}, files={"file": ("a.jsonl", content)}).json()
    with connect(api) as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        held.sendall(f"GET /v1/files/{made['id']}/content HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        log = lambda: api.child.text()  # noqa: E731
        eventually(lambda: "ClientStalled" in log(), 15, 0.2, "the stalled client is noticed")


def test_the_times_that_ship_are_those_of_patient_servers() -> None:
    assert connections.HEADERS_S == 20.0 and frame.STALL_S == 60.0
    assert 64 <= allow_connections() <= connections.MAX_CONNECTIONS


def test_too_large_json_bodies_are_refused_before_they_are_read(api: RunningApi) -> None:
    with connect(api) as held:
        head = b"POST /v1/batches HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        held.sendall(head + b"Content-Length: 99999999999\r\n\r\n")
        assert b" 413 " in held.recv(65_536).split(b"\r\n")[0]


def test_a_zip_bomb_fails_its_batch_and_nothing_else(tmp_path) -> None:
    """20 MB of zeros in 20 kB, against a limit of 1 MB; and a member that lies about its size."""
    from batch.operations.world import open_world
    from batch.settings import Settings
    from batch.storage.engine import Database
    from batch.storage.migrate import migrate
    from tests.harness.worlds import RungBells, ingest

    settings = Settings(data_dir=tmp_path, max_file_bytes=1_000_000, providers={"a": {"base_url": "http://127.0.0.1:9/v1"}})
    database = Database(settings.resolved_database_url)
    migrate(database)
    database.close()
    world = open_world(settings, bells=RungBells())
    first = (str(line("a")).replace("'", '"') + "\n").encode()
    bomb = gzip.compress(first + b"\0" * 20_000_000)
    liar = bomb[:-4] + struct.pack("<I", 10)
    for content in (bomb, liar):
        assert ingest(world, content).status == "failed"
    world.close()


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("../../etc/passwd", "passwd"), ("..\\..\\boot.ini", "boot.ini"), ("/abs/a.jsonl", "a.jsonl"), ("..", "upload"),
        ("a\r\nSet-Cookie: x=1.jsonl", "aSet-Cookie: x=1.jsonl"), ("\0a", "a"), ("", "upload"), ("a" * 999, "a" * 255),
        ("\u202egnp.exe", "gnp.exe"),
    ],
)  # fmt: skip
def test_file_names_cannot_leave_their_place(sent: str, kept: str) -> None:
    assert clean_filename(sent) == kept


@pytest.mark.parametrize("name", ['a".jsonl', "a\r\nX: y", "ü.jsonl", 'a"; filename="b', "日本.jsonl"])
def test_no_file_name_breaks_out_of_the_header(name: str) -> None:
    """One header line in printable ASCII, two quotes around the plain form."""
    value = content_disposition(name)
    assert value.isascii() and value.isprintable()
    assert value.count('"') == 2


def test_uploaded_names_come_back_harmless(api: RunningApi) -> None:
    """Over the wire: a quote, a line break and a path in the name of the part."""
    body = (
        b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="../e\xc3\xbc\\"v.jsonl"\r\n\r\n'
        b'{"custom_id": "a"}\n\r\n--x--\r\n'
    )
    with api.http() as http:
        made = http.post(
            "/v1/files", content=body, headers={"content-type": "multipart/form-data; boundary=x"}
        ).json()
        sent = http.get(f"/v1/files/{made['id']}/content")
    assert "/" not in made["filename"] and "\\" not in made["filename"]
    assert sent.headers["content-disposition"].startswith('attachment; filename="')
    assert sent.headers["x-content-type-options"] == "nosniff"


def test_connections_above_the_limit_are_told_to_come_again(tmp_path) -> None:
    """With few file descriptors the limit is low, and the server stays up."""
    import resource
    import subprocess

    from batch.settings import Settings
    from batch.storage.engine import Database
    from batch.storage.migrate import migrate
    from tests.harness.servers import clean_environment, python

    database = Database(Settings(data_dir=tmp_path).resolved_database_url)
    migrate(database)
    database.close()
    port = free_port()
    child = subprocess.Popen(
        python("-m", "batch.api.serve"), cwd=tmp_path, stderr=subprocess.DEVNULL,
        env=clean_environment(BATCHMILL_DATA_DIR=str(tmp_path), BATCHMILL_PORT=str(port)),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128)),
    )  # fmt: skip
    try:
        url = f"http://127.0.0.1:{port}/healthz"
        eventually(lambda: _status(url) == 200, 30, what="the API starts")
        held = [socket.create_connection(("127.0.0.1", port)) for _ in range(70)]
        assert eventually(lambda: _status(url) == 503, 10)
        refused = httpx.get(url, timeout=5)
        assert refused.json()["error"]["code"] == "unavailable" and refused.headers["x-request-id"]
        for one in held:
            one.close()
        assert eventually(lambda: _status(url) == 200, 10)
    finally:
        child.terminate()
        child.wait(30)


def _status(url: str) -> int:
    try:
        return httpx.get(url, timeout=5).status_code
    except httpx.HTTPError:
        return 0
