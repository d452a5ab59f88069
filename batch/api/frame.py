"""The frame around every request: the one ASGI middleware.

Owns: x-request-id, the caller, the order of refusals (place, key, rate, size, type), slow clients, the
wall for unexpected faults, and the event that ends in the log and the metrics.
May not touch: what a route means. Bodies and keys never reach the log.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from batch.api.access import Access
from batch.api.errors import respond_to
from batch.api.security import check_is_local
from batch.domain.errors import BatchmillError, InvalidRequest, TooLarge
from batch.domain.ids import new_id
from batch.operations.world import World
from batch.telemetry import emit

STALL_S = 60.0  # a client that sends or takes nothing for so long is dropped
_OPEN_PATHS = {"/healthz", "/readyz", "/metrics", "/docs", "/openapi.json", "/docs/oauth2-redirect"}
_STREAMED = re.compile(r"/v1/files/?|/v1/uploads/[^/]+/parts/?")
_WITH_BODY = {"POST", "PUT", "PATCH", "DELETE"}


class ClientStalled(Exception):
    """The client stopped sending or taking."""


class Frame:
    """Wraps the application; made once."""

    def __init__(self, app: ASGIApp, *, world: World, access: Access) -> None:
        self._app = app
        self._world = world
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(self._world, scope, receive, send)
        with structlog.contextvars.bound_contextvars(request_id=exchange.request_id):
            await self._answer(exchange)
            exchange.report()

    async def _answer(self, exchange: _Exchange) -> None:
        """Admit, run, and turn whatever goes wrong into an answer."""
        try:
            await self._admit(exchange)
            await exchange.read_small_body(self._world.settings.max_json_body_bytes)
            await self._app(exchange.scope, exchange.receive, exchange.send)
        except (ClientDisconnect, ClientStalled, OSError) as gone:
            exchange.gone = type(gone).__name__
        except Exception as error:  # the wall of one HTTP request
            response = respond_to(error)
            if response.status_code >= 500:
                unknown = None if isinstance(error, BatchmillError) else error  # ours says all; others need their trace
                emit("http_failed", path=exchange.route(), error=type(error).__name__, exc_info=unknown)
            if not exchange.started:
                await response(exchange.scope, exchange.receive, exchange.send)
            else:
                exchange.gone = type(error).__name__
                raise  # cut the connection: a half answer must not look whole

    async def _admit(self, exchange: _Exchange) -> None:
        if not await self._access.needs_key():
            check_is_local(exchange.headers)
        if "\0" in exchange.scope["path"] or b"%00" in exchange.scope["query_string"]:
            raise InvalidRequest("The URL holds a NUL character.")
        if exchange.scope["path"] in _OPEN_PATHS:
            return
        caller = await self._access.caller(exchange.headers.get("authorization"))
        exchange.scope["caller"] = caller
        exchange.rate = self._access.count_request(caller)


class _Exchange:
    """One request and its answer, with what has to be known at the end."""

    def __init__(self, world: World, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self.headers = Headers(scope=scope)
        self.request_id = new_id("req_", world.clock)
        self.rate: dict[str, str] = {}
        self.started = False
        self.status = 0
        self.gone: str | None = None
        self._clock = world.clock
        self._begun = world.clock.monotonic()
        self._receive = receive
        self._send = send
        self._body: bytes | None = None
        self._more = True
        scope["request_id"] = self.request_id

    async def read_small_body(self, max_bytes: int) -> None:
        """Take a whole JSON body before any route runs. Raises TooLarge, InvalidRequest."""
        scope = self.scope
        if scope["method"] not in _WITH_BODY or (scope["method"] == "POST" and _STREAMED.fullmatch(scope["path"])):
            return
        declared = self.headers.get("content-length", "0")
        blocks, received, size = [], 0, int(declared) if declared.isdecimal() else 0
        async with _patience():
            while size <= max_bytes and self._more:
                blocks.append((await self.receive()).get("body", b""))
                received += len(blocks[-1])
                size = max(size, received)
        if size > max_bytes:
            raise TooLarge(f"The request body is larger than {max_bytes} bytes.")
        self._body = b"".join(blocks)
        kind = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        if self._body and kind != "application/json":
            raise InvalidRequest("Send a JSON body with Content-Type: application/json.", code="unsupported_media_type")
        if self._body:
            _check_json(self._body)

    async def receive(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        if not self._more:
            return await self._receive()  # waits for the disconnect, as long as the answer takes
        async with _patience():
            message = await self._receive()
        if message["type"] == "http.disconnect":
            self._more = False
            raise ClientDisconnect
        self._more = message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            self.status = message["status"]
            self._add_headers(MutableHeaders(scope=message))
        async with _patience():
            await self._send(message)

    def _add_headers(self, headers: MutableHeaders) -> None:
        headers["x-request-id"] = self.request_id
        headers["x-content-type-options"] = "nosniff"
        headers["openai-version"] = "2020-10-01"
        headers["openai-processing-ms"] = str(int((self._clock.monotonic() - self._begun) * 1000))
        headers.update(self.rate)

    def route(self) -> str:
        """The path's template, so that ids stay out of labels."""
        return str(getattr(self.scope.get("route"), "path", "unmatched"))

    def report(self) -> None:
        fields: dict[str, Any] = {
            "method": self.scope["method"] if self.scope["method"] in _METHODS else "other",
            "route": self.route(),
            "status": self.status or 499,
            "seconds": round(self._clock.monotonic() - self._begun, 4),
        }
        if self.gone:
            fields["gone"] = self.gone
        caller = self.scope.get("caller")
        if caller is not None:
            fields["project"] = caller.project.public_id
        emit("http_answered" if 0 < self.status < 400 else "http_refused", **fields)


@asynccontextmanager
async def _patience() -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(STALL_S):
            yield
    except TimeoutError:
        raise ClientStalled from None


def _check_json(body: bytes) -> None:
    """Stricter than the framework's parser: no NaN, no lone surrogates, no NUL; databases refuse those."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise InvalidRequest("We could not parse the JSON body of your request.") from None
    if b"\\u0000" in body and b"\\u0000" in orjson.dumps(value):
        raise InvalidRequest("The JSON body holds a NUL character.")


_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
