"""Upload and download through the API on loopback: MB/s, and the API's memory meanwhile.

Owns: those rows, with a client of plain sockets (multipart written and bodies read in 1 MB blocks), so that
the client is not what is measured.
"""

from __future__ import annotations

import json
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from benchmarks.inputs import chat_file
from benchmarks.measure import Row, Scale, program, rss_mb, timed
from benchmarks.stack import service, upstream

BYTES = 1_000_000_000
_BLOCK = 1 << 20
_BOUNDARY = b"----bench"


def run(scale: Scale) -> Iterator[Row]:
    size = scale.lines(BYTES, 20_000_000)
    up = Row(f"upload, {size / 1e6:,.0f} MB", "MB/s", [], least=300)
    down = Row(f"download, {size / 1e6:,.0f} MB", "MB/s", [], least=500)
    memory = Row("memory of the API while uploading and downloading", "MB RSS", [], most=250)
    with tempfile.TemporaryDirectory(prefix="bm-upload-") as directory, upstream() as server:
        path = chat_file(Path(directory) / "in.jsonl", size // 2_000, 2_000)
        with service(server.base_url, only="api") as running:
            port = running.client.base_url.port or 80
            api = running.named("batch.api")
            for _ in range(scale.repeats):
                peak = _Peak(api)
                with timed(api) as spent:
                    file_id = _upload(port, path)
                up.values.append(path.stat().st_size / 1e6 / spent.seconds)
                with timed(api) as spent:
                    got = _download(port, file_id)
                down.values.append(got / 1e6 / spent.seconds)
                memory.values.append(peak.stop())
                running.client.delete(f"/v1/files/{file_id}")
    yield up
    yield down
    yield memory


def _upload(port: int, path: Path) -> str:
    head = (
        b"--%b\r\ncontent-disposition: form-data; name=\"purpose\"\r\n\r\nbatch\r\n--%b\r\n"
        b'content-disposition: form-data; name="file"; filename="in.jsonl"\r\n\r\n' % (_BOUNDARY, _BOUNDARY)
    )
    tail = b"\r\n--%b--\r\n" % _BOUNDARY
    length = len(head) + path.stat().st_size + len(tail)
    with socket.create_connection(("127.0.0.1", port), timeout=300) as connection, path.open("rb") as source:
        connection.sendall(
            b"POST /v1/files HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n"
            b"content-type: multipart/form-data; boundary=%b\r\ncontent-length: %d\r\n\r\n" % (_BOUNDARY, length)
        )
        connection.sendall(head)
        connection.sendfile(source)
        connection.sendall(tail)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    status, body = answer.split(b"\r\n", 1)[0], answer.split(b"\r\n\r\n", 1)[1]
    if b" 200 " not in status:
        raise RuntimeError(f"upload: {status!r} {body[:300]!r}")
    return str(json.loads(body)["id"])


def _download(port: int, file_id: str) -> int:
    """Bytes received, headers included."""
    buffer, total = bytearray(_BLOCK), 0
    with socket.create_connection(("127.0.0.1", port), timeout=300) as connection:
        connection.sendall(
            f"GET /v1/files/{file_id}/content HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n".encode()
        )
        while got := connection.recv_into(buffer):
            total += got
    return total


class _Peak:
    """The largest resident size of the processes until `stop`."""

    def __init__(self, processes: list[psutil.Process]) -> None:
        self._processes = processes
        self._peak = 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> float:
        self._done.set()
        self._thread.join()
        return self._peak

    def _watch(self) -> None:
        while not self._done.is_set():
            self._peak = max(self._peak, rss_mb(self._processes))
            time.sleep(0.05)


if __name__ == "__main__":
    sys.exit(program(run))
