"""The simulator's ceiling: how many 1.6 kB posts it answers on one core, so that it is never what is measured.

Owns: a raw client (bytes out, bytes in, no HTTP parsing) and the row.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator

import uvloop

from benchmarks.measure import Row, Scale, program, timed
from benchmarks.stack import upstream

CONNECTIONS = 64
SECONDS = 4.0


def run(scale: Scale) -> Iterator[Row]:
    row = Row("simulator ceiling, raw client, 1.6 kB posts", "requests/s", [], least=15_000)
    with upstream() as server:
        for _ in range(scale.repeats):
            with timed([server.process]) as spent:
                done = uvloop.run(_hammer(server.base_url, max(0.5, SECONDS * min(1.0, scale.size))))
            row.values.append(done / spent.seconds)
            row.cpu_us.append(spent.cpu_s / done * 1e6)
    yield row


class _Raw(asyncio.Protocol):
    """Sends the next request when something arrived: one segment is one answer at this size."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._transport: asyncio.Transport | None = None
        self.answers = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self._transport = transport  # type: ignore[assignment]
        transport.write(self._request)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self.answers += 1
        if self._transport is not None:
            self._transport.write(self._request)


async def _hammer(base_url: str, seconds: float) -> int:
    loop = asyncio.get_running_loop()
    host, _, port = base_url.removeprefix("http://").removesuffix("/v1").partition(":")
    body = b'{"model":"bench-model","messages":[{"role":"user","content":"%b"}],"seed":1}' % (b"x" * 1500)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer bench\r\n"
    request = f"{head}content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body
    made = [await loop.create_connection(lambda: _Raw(request), host, int(port)) for _ in range(CONNECTIONS)]
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        await asyncio.sleep(0.05)
    answers = sum(protocol.answers for _, protocol in made)
    for transport, _ in made:
        transport.abort()
    return answers


if __name__ == "__main__":
    sys.exit(program(run))
