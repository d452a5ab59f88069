"""The seam to the network: bytes in; status, headers and bytes out.

Owns: one HTTP exchange in two ways — "direct" (pyreqwest) and "httpx" (httpx objects over pyreqwest, or
over any httpx transport that a test brings) — with time and size limits, proxies, private CAs, mutual TLS.
May not touch: what the bytes mean; retries. Every fault leaves as TransportFault.
A cancelled call is hung up at once while its answer streams; before its head has come, pyreqwest lets it run on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, NamedTuple, Protocol

import httpx
from pyreqwest.bytes import Bytes
from pyreqwest.client import Client, ClientBuilder
from pyreqwest.compatibility.httpx import HttpxTransport
from pyreqwest.request import RequestBuilder
from pyreqwest.response import ResponseBodyReader

from batch.clock import SYSTEM_CLOCK, Clock
from batch.domain.errors import InvalidConfiguration
from batch.domain.outcome import FailureKind
from batch.providers.faults import FOREIGN, TransportFault, translate
from batch.providers.provider import Provider
from batch.settings import Settings, TlsConfig

CONNECT_TIMEOUT_S = 10.0
FIRST_TOKEN_S = 300.0     # of a stream: until the first event with data
BETWEEN_CHUNKS_S = 90.0   # of a stream: any bytes count, keep-alive comments too
IDLE_S = 30.0             # a kept connection that waited longer is not used again
ENGINE_IDLE_S = 4.0       # engines' servers close theirs after 5 s
COPIED_BYTES = 65_536     # of a body: more is not held twice while its call is in flight
USER_AGENT = "batchmill"
_DONE = b"data: [DONE]"

NextChunk = Callable[[], Awaitable[bytes | Bytes | None]]


class UpstreamRequest(NamedTuple):
    """One call. `timeout_s` is from connect to the last byte; `stream` adds the limits of SSE."""

    url: str
    headers: Mapping[str, str]
    body: bytes
    timeout_s: float
    stream: bool = False
    method: str = "POST"


@dataclass(slots=True)
class UpstreamResponse:
    """`headers` have lower-case names; `body` is decompressed."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Transport(Protocol):
    async def send(self, request: UpstreamRequest) -> UpstreamResponse: ...
    async def close(self) -> None: ...


def make_transport(
    kind: Literal["direct", "httpx"], provider: Provider, settings: Settings, clock: Clock = SYSTEM_CLOCK
) -> Transport:
    """One per provider and event loop. Raises InvalidConfiguration for certificates that cannot be used."""
    client = _build_client(provider.config.tls, ENGINE_IDLE_S if provider.engine else IDLE_S)
    if kind == "direct":
        return DirectTransport(client, settings.response_max_bytes, clock)
    return HttpxSeam(_Unbuffering(client), settings.response_max_bytes, clock)


class DirectTransport:
    """pyreqwest without httpx objects: about half the CPU per call (docs/benchmarks.md)."""

    def __init__(self, client: Client, max_bytes: int, clock: Clock = SYSTEM_CLOCK) -> None:
        self._client = client
        self._max_bytes = max_bytes
        self._clock = clock

    async def send(self, request: UpstreamRequest) -> UpstreamResponse:
        started = self._clock.monotonic()
        try:
            builder = self._client.request(request.method, request.url).headers(request.headers)
            builder = _with_body(builder.timeout(timedelta(seconds=request.timeout_s)), request.body)
            if request.stream:
                builder = builder.streamed_read_buffer_limit(0)  # else pieces are held back until 64 kB came
            exchange = builder.build_streamed()
            response = await exchange.__aenter__()
            headers = dict(response.headers)
            reading = _Reading(self._clock, started, request.stream and _is_sse(headers), self._max_bytes)
            try:
                body = await reading.whole(response.body_reader, headers)
            finally:
                if not reading.is_whole:  # else nothing is left to close, and closing costs another turn
                    await exchange.__aexit__(None, None, None)
            return UpstreamResponse(response.status, headers, body)
        except FOREIGN as error:
            raise translate(error) from None

    async def close(self) -> None:
        await self._client.close()


class HttpxSeam:
    """Any httpx transport: pyreqwest's in production; MockTransport, ASGITransport and others in tests."""

    def __init__(self, transport: httpx.AsyncBaseTransport, max_bytes: int, clock: Clock = SYSTEM_CLOCK) -> None:
        self._transport = transport
        self._max_bytes = max_bytes
        self._clock = clock
        self._urls: dict[str, httpx.URL] = {}  # parsing one costs as much as a third of a call

    async def send(self, request: UpstreamRequest) -> UpstreamResponse:
        started = self._clock.monotonic()
        try:
            url = self._urls.get(request.url) or self._urls.setdefault(request.url, httpx.URL(request.url))
            outgoing = httpx.Request(
                request.method,
                url,
                headers=request.headers,
                content=request.body,
                extensions={"timeout": {"read": request.timeout_s}, "unbuffered": request.stream},
            )
            response = await self._transport.handle_async_request(outgoing)
            inner = response.extensions.get("pyreqwest_response")
            headers: dict[str, str] = dict(response.headers if inner is None else inner.headers)
            reading = _Reading(self._clock, started, request.stream and _is_sse(headers), self._max_bytes)
            try:
                if inner is None:
                    body = await reading.all_of(_chunks(response))
                else:
                    body = await reading.whole(inner.body_reader, headers)
            finally:
                if not reading.is_whole:
                    await response.aclose()
            return UpstreamResponse(response.status_code, headers, body)
        except FOREIGN as error:
            raise translate(error) from None

    async def close(self) -> None:
        await self._transport.aclose()


class _Unbuffering(HttpxTransport):
    """pyreqwest's own, except that streams are handed on as they come instead of in pieces of 64 kB."""

    def _map_body(self, builder: RequestBuilder, request: httpx.Request) -> RequestBuilder:
        mapped = _with_body(builder, request.content)
        return mapped.streamed_read_buffer_limit(0) if request.extensions.get("unbuffered") else mapped


class _Reading:
    """Collects a body within its limits of size and, for SSE, of time between the pieces."""

    def __init__(self, clock: Clock, started: float, is_sse: bool, max_bytes: int) -> None:
        self._clock = clock
        self._started = started
        self._is_sse = is_sse
        self._max_bytes = max_bytes
        self.is_whole = False  # pyreqwest has handed on everything there was

    async def whole(self, reader: ResponseBodyReader, headers: Mapping[str, str]) -> bytes:
        """pyreqwest's body; at once where its length is known: each piece costs a turn of the interpreter's lock.

        A body that is decompressed has no content-length any more, and comes in pieces that are counted.
        """
        length = headers.get("content-length", "")
        if not self._is_sse and length.isdecimal() and int(length) <= self._max_bytes:
            body = bytes(await reader.bytes())
            self.is_whole = True
            return body
        return await self.all_of(reader.read_chunk)

    async def all_of(self, next_chunk: NextChunk) -> bytes:
        if self._is_sse:
            return await self._events(next_chunk)
        parts: list[bytes] = []
        size = 0
        while (chunk := await next_chunk()) is not None:
            self._check_size(size := size + len(chunk))
            parts.append(bytes(chunk))
        return b"".join(parts)

    async def _events(self, next_chunk: NextChunk) -> bytes:
        parts: list[bytes] = []
        size, has_data = 0, False
        while True:
            waited_s = self._clock.monotonic() - self._started
            limit_s = BETWEEN_CHUNKS_S if has_data else FIRST_TOKEN_S - waited_s
            try:
                async with asyncio.timeout(max(0.0, limit_s)):
                    chunk = await next_chunk()
            except TimeoutError as error:
                if type(error) is not TimeoutError:
                    raise  # the client's own limit on the whole call
                text = "silence between two pieces of the stream" if has_data else "no first token in time"
                raise TransportFault(FailureKind.TIMEOUT, text, sent=True) from None
            if chunk is None:
                return b"".join(parts)
            piece = bytes(chunk)
            parts.append(piece)
            self._check_size(size := size + len(piece))
            if not has_data and b"data:" in piece:
                has_data = True
            if _DONE in b"".join(parts[-2:])[-64:]:
                return b"".join(parts)

    def _check_size(self, size: int) -> None:
        if size > self._max_bytes:
            message = f"the answer is larger than response_max_bytes ({self._max_bytes})"
            raise TransportFault(FailureKind.BAD_ANSWER, message, sent=True)


def _chunks(response: httpx.Response) -> NextChunk:
    """The reader of any other httpx transport; pyreqwest has its own, which hands on pieces as they come."""
    iterator: AsyncIterator[bytes] = response.aiter_bytes()

    async def next_chunk() -> bytes | None:
        return await anext(iterator, None)

    return next_chunk


def _with_body(builder: RequestBuilder, body: bytes) -> RequestBuilder:
    """Text is copied; bytes are lent, and to end the loan takes pyreqwest one more turn of the interpreter's lock."""
    return builder.body_text(body.decode()) if len(body) <= COPIED_BYTES else builder.body_bytes(body)


def _is_sse(headers: Mapping[str, str]) -> bool:
    return headers.get("content-type", "").startswith("text/event-stream")


def _build_client(tls: TlsConfig, idle_s: float) -> Client:
    """Proxies come from HTTPS_PROXY, HTTP_PROXY and NO_PROXY. Redirects would carry the key elsewhere: off."""
    builder = (
        ClientBuilder()
        .user_agent(USER_AGENT)
        .follow_redirects(False)
        .referer(False)
        .tcp_nodelay(True)
        .tcp_keepalive(timedelta(seconds=60))
        .connect_timeout(timedelta(seconds=CONNECT_TIMEOUT_S))
        .pool_idle_timeout(timedelta(seconds=idle_s))
        .max_connections(None)
    )
    try:
        if tls.ca is not None:
            builder = builder.add_root_certificate_pem(tls.ca.read_bytes())
        if tls.cert is not None:
            key = tls.key.read_bytes() if tls.key is not None else b""
            builder = builder.identity_pem(tls.cert.read_bytes() + b"\n" + key)
        return builder.build()
    except OSError as error:
        raise InvalidConfiguration(f"tls: {error.filename}: {error.strerror}", param="tls") from None
    except FOREIGN:
        raise InvalidConfiguration("tls: the certificate or key is not usable PEM", param="tls") from None
