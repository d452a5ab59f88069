"""A small real HTTP server whose every answer a test scripts, down to the bytes and the silence."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field


@dataclass
class Received:
    """One request as it came; `connection` numbers the sockets."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    connection: int


Script = Callable[[Received, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Upstream:
    """`url` has no path. `requests` grows as they come; `hang_ups` counts sockets that clients closed."""

    url: str
    requests: list[Received] = field(default_factory=list)
    connections: int = 0
    hang_ups: int = 0


@contextlib.asynccontextmanager
async def running_upstream(script: Script, tls: ssl.SSLContext | None = None) -> AsyncIterator[Upstream]:
    """Serve `script` on a free port of 127.0.0.1; it may close the writer to end a connection."""
    upstream = Upstream("")

    serving: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(serve(reader, writer))
        serving.add(task)
        task.add_done_callback(serving.discard)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream.connections += 1
        number = upstream.connections
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            while not writer.is_closing():
                received = await _read(reader, number)
                upstream.requests.append(received)
                await script(received, writer)
                await writer.drain()
        upstream.hang_ups += 1
        with contextlib.suppress(Exception):
            writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=tls, backlog=4096)
    scheme = "https" if tls else "http"
    upstream.url = f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield upstream
    finally:
        server.close()
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)


async def _read(reader: asyncio.StreamReader, connection: int) -> Received:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    start, *lines = head.rstrip("\r\n").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    method, path, _ = start.split(" ")
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Received(method, path, headers, body, connection)


def answer(body: bytes, status: int = 200, **headers: str) -> bytes:
    """A whole HTTP answer; header names are written with _ for -."""
    fields = {"content-type": "application/json", "content-length": str(len(body))}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {status} X\r\n{lines}\r\n".encode() + body


def always(response: bytes) -> Script:
    async def script(received: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(response)

    return script
