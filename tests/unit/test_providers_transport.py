"""Both transports against a real server: what they carry, what they limit, and how each fault is named."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal

import httpx
import pytest
from pyreqwest import exceptions as px

from batch.clock import SYSTEM_CLOCK
from batch.domain.outcome import FailureKind
from batch.providers import faults, transport
from batch.providers.catalog import Catalog
from batch.providers.faults import TransportFault
from batch.providers.transport import Transport, UpstreamRequest, UpstreamResponse, make_transport
from batch.settings import Settings
from tests.harness.upstream import Received, Script, Upstream, always, answer, running_upstream

Kind = Literal["direct", "httpx"]
OK = answer(b'{"ok":true}', x_request_id="req_1")
SSE_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.fixture(params=["direct", "httpx"])
def kind(request: pytest.FixtureRequest) -> Kind:
    chosen: Kind = request.param
    return chosen


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def with_server(
    kind: Kind, script: Script, use: Callable[[Transport, Upstream], Awaitable[Any]], **settings: Any
) -> Any:
    """Run `use` with a transport of this kind and a server of this script."""

    async def run() -> Any:
        async with running_upstream(script) as upstream:
            provider = {"base_url": f"{upstream.url}/v1"}
            configured = Settings(providers={"local": provider}, **settings)  # type: ignore[arg-type]
            catalog = Catalog.from_settings(configured, environ={})
            sender = make_transport(kind, catalog.providers["local"], configured, SYSTEM_CLOCK)
            try:
                return await use(sender, upstream)
            finally:
                await sender.close()

    return asyncio.run(run())


async def post(
    sender: Transport, url: str, body: bytes = b"{}", timeout_s: float = 5.0, stream: bool = False
) -> UpstreamResponse:
    headers = {"content-type": "application/json", "authorization": "Bearer k"}
    return await sender.send(UpstreamRequest(url, headers, body, timeout_s, stream))


def fault_of(
    kind: Kind, script: Script, timeout_s: float = 5.0, stream: bool = False, **settings: Any
) -> TransportFault:
    async def use(sender: Transport, upstream: Upstream) -> TransportFault:
        with pytest.raises(TransportFault) as caught:
            await post(sender, upstream.url, timeout_s=timeout_s, stream=stream)
        return caught.value

    found: TransportFault = with_server(kind, script, use, **settings)
    return found


def test_a_call_carries_its_bytes_and_headers_and_brings_the_answer(kind: Kind) -> None:
    """Nothing is added to the body, and answer headers have lower-case names."""

    async def use(sender: Transport, upstream: Upstream) -> None:
        body = '{"text":"مرحبا\u2028"}'.encode()
        response = await post(sender, f"{upstream.url}/v1/chat/completions?x=1", body)
        assert (response.status, response.body, response.headers["x-request-id"]) == (200, b'{"ok":true}', "req_1")
        received = upstream.requests[0]
        assert (received.method, received.path, received.body) == ("POST", "/v1/chat/completions?x=1", body)
        assert received.headers["authorization"] == "Bearer k"
        assert received.headers["content-type"] == "application/json"

    with_server(kind, always(OK), use)


def test_one_connection_serves_calls_in_turn(kind: Kind) -> None:
    async def use(sender: Transport, upstream: Upstream) -> int:
        for _ in range(20):
            await post(sender, upstream.url)
        return upstream.connections

    assert with_server(kind, always(OK), use) == 1


def test_hundreds_of_calls_are_in_flight_at_once(kind: Kind) -> None:
    """The server answers nobody before all have come: a hidden cap on connections would never end."""
    waiting = 400

    async def use(sender: Transport, upstream: Upstream) -> int:
        answers = await asyncio.gather(*[post(sender, upstream.url, timeout_s=20) for _ in range(waiting)])
        return len([a for a in answers if a.status == 200])

    together = asyncio.Barrier(waiting)

    async def script(received: Received, writer: asyncio.StreamWriter) -> None:
        await together.wait()
        writer.write(OK)

    assert with_server(kind, script, use) == waiting


def test_compressed_answers_are_opened(kind: Kind) -> None:
    body = gzip.compress(b'{"ok":true}')

    async def use(sender: Transport, upstream: Upstream) -> bytes:
        return (await post(sender, upstream.url)).body

    assert with_server(kind, always(answer(body, content_encoding="gzip")), use) == b'{"ok":true}'


def test_an_answer_that_unpacks_beyond_the_limit_is_refused(kind: Kind) -> None:
    """response_max_bytes counts after decompression: 20 kB on the wire, 20 MB in memory."""
    bomb = gzip.compress(b" " * 20_000_000)
    fault = fault_of(kind, always(answer(bomb, content_encoding="gzip")), response_max_bytes=1_000_000)
    assert fault.kind is FailureKind.BAD_ANSWER
    assert "response_max_bytes" in fault.message


def test_a_redirect_is_an_answer_and_is_not_followed(kind: Kind) -> None:
    """The key must not travel to another address."""

    async def use(sender: Transport, upstream: Upstream) -> tuple[int, int]:
        response = await post(sender, upstream.url)
        return response.status, len(upstream.requests)

    assert with_server(kind, always(answer(b"", 307, location="/elsewhere")), use) == (307, 1)


def test_a_refused_connection_sent_nothing(kind: Kind) -> None:
    async def use(sender: Transport, upstream: Upstream) -> TransportFault:
        with pytest.raises(TransportFault) as caught:
            await post(sender, "http://127.0.0.1:1/v1")
        return caught.value

    fault = with_server(kind, always(OK), use)
    assert (fault.kind, fault.sent) == (FailureKind.CONNECT, False)
    assert "127.0.0.1" not in fault.message


@pytest.mark.parametrize(("url", "headers"), [("nonsense", {}), ("http://127.0.0.1:1/", {"x-key": "secret\nsecret"})])
def test_a_request_that_cannot_be_built_is_a_fault_that_shows_no_header(
    kind: Kind, url: str, headers: dict[str, str]
) -> None:
    async def use(sender: Transport, upstream: Upstream) -> TransportFault:
        with pytest.raises(TransportFault) as caught:
            await sender.send(UpstreamRequest(url, headers, b"{}", 1.0))
        return caught.value

    fault = with_server(kind, always(OK), use)
    assert (fault.kind, fault.sent) == (FailureKind.CONNECT, False)
    assert "secret" not in fault.message


def test_a_server_that_closes_without_an_answer_is_a_disconnect(kind: Kind) -> None:
    async def script(received: Received, writer: asyncio.StreamWriter) -> None:
        writer.close()

    fault = fault_of(kind, script)
    assert (fault.kind, fault.sent) == (FailureKind.DISCONNECT, True)


def test_half_a_body_is_no_answer(kind: Kind) -> None:
    async def script(received: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n" + b'{"half":')
        await writer.drain()
        writer.close()

    fault = fault_of(kind, script)
    assert (fault.kind, fault.sent) == (FailureKind.DISCONNECT, True)


def test_bytes_that_are_no_http_are_a_fault(kind: Kind) -> None:
    async def script(received: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")
        await writer.drain()
        writer.close()

    assert fault_of(kind, script).kind in (FailureKind.DISCONNECT, FailureKind.BAD_ANSWER)


async def never(received: Received, writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


def test_silence_ends_with_the_calls_own_time_limit(kind: Kind) -> None:
    fault = fault_of(kind, never, timeout_s=0.2)
    assert (fault.kind, fault.sent) == (FailureKind.TIMEOUT, True)


def test_a_cancelled_stream_hangs_up(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines stop generating when the client goes away."""
    head_read, is_sse = asyncio.Event(), transport._is_sse

    def look(headers: Mapping[str, str]) -> bool:
        head_read.set()
        return is_sse(headers)

    monkeypatch.setattr(transport, "_is_sse", look)

    async def script(received: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(SSE_HEAD)
        while True:  # writing is how a server notices
            writer.write(chunk(b'data: {"a":1}\n\n'))
            await writer.drain()
            await asyncio.sleep(0.01)

    async def use(sender: Transport, upstream: Upstream) -> None:
        call = asyncio.create_task(post(sender, upstream.url, stream=True, timeout_s=30))
        async with asyncio.timeout(10):
            await head_read.wait()
            call.cancel()
            while not upstream.hang_ups:
                await asyncio.sleep(0.01)

    with_server(kind, script, use)


def test_a_stream_ends_at_done_though_the_server_stays(kind: Kind) -> None:
    """Some servers forget to close."""

    async def script(received: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(SSE_HEAD + chunk(b": hello\n\n") + chunk(b'data: {"a":1}\n\n') + chunk(b"data: [DO"))
        writer.write(chunk(b"NE]\n\n"))
        await writer.drain()
        await asyncio.Event().wait()

    async def use(sender: Transport, upstream: Upstream) -> bytes:
        return (await post(sender, upstream.url, stream=True)).body

    assert with_server(kind, script, use).endswith(b"data: [DONE]\n\n")


def test_a_stream_without_a_first_token_times_out(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep-alive comments are no tokens."""
    monkeypatch.setattr(transport, "FIRST_TOKEN_S", 0.3)

    async def script(received: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(SSE_HEAD)
        while True:
            writer.write(chunk(b": keep-alive\n\n"))
            await writer.drain()
            await asyncio.sleep(0.05)

    fault = fault_of(kind, script, stream=True)
    assert fault.kind is FailureKind.TIMEOUT
    assert "first token" in fault.message


def test_a_stream_that_falls_silent_times_out(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "BETWEEN_CHUNKS_S", 0.2)

    async def script(received: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(SSE_HEAD + chunk(b'data: {"a":1}\n\n'))
        await writer.drain()
        await asyncio.Event().wait()

    fault = fault_of(kind, script, stream=True)
    assert fault.kind is FailureKind.TIMEOUT
    assert "silence between" in fault.message


def all_subclasses(root: type[BaseException]) -> set[type[BaseException]]:
    return {root} | {deeper for child in root.__subclasses__() for deeper in all_subclasses(child)}


@pytest.mark.parametrize("root", [px.PyreqwestError, httpx.HTTPError, httpx.StreamError])
def test_the_fault_table_is_total(root: type[BaseException]) -> None:
    """Every exception of both libraries has a row, and no row is shadowed by a base above it."""
    rows = [known for row in faults.FAULTS for known in row[0]]
    for foreign in all_subclasses(root) - {httpx.HTTPStatusError}:
        assert any(issubclass(foreign, row) for row in rows), foreign
    for place, row in enumerate(rows):
        assert not any(issubclass(row, above) for above in rows[:place]), f"{row} is never reached"


def test_a_fault_shows_its_root_cause_and_no_address() -> None:
    causes = [
        {"message": "error sending request for url (http://u:p@h/)"},
        {"message": "client error (Connect)"},
        {"message": "Connection refused"},
    ]
    fault = faults.translate(px.ConnectError("x", {"causes": causes}))
    assert fault.message == "could not connect (Connection refused)"
    assert "h/" not in faults.translate(px.ConnectError("http://h/", {"causes": causes[:1]})).message
