"""One connection's bounds before a request exists: slow and endless headers, too many connections.

Owns: the protocol class that uvicorn is given and the number of connections that this process takes.
From the first byte of the body on, api.frame watches. May not touch: requests.
"""

from __future__ import annotations

import asyncio
import resource
from typing import Any

from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from batch.api.errors import error_response
from batch.clock import SYSTEM_CLOCK
from batch.domain.ids import new_id

HEADERS_S = 20.0  # from the connection, or a request's first byte, to the end of its headers
HEADERS_BYTES = 64 * 1024
MAX_CONNECTIONS = 8_192


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol; a connection that does not come to the end of its headers is closed."""

    max_connections = MAX_CONNECTIONS
    _header_bytes = 0
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._expect_headers()

    def data_received(self, data: bytes) -> None:
        if self._deadline is not None:
            self._header_bytes += len(data)
        super().data_received(data)
        if self._deadline is not None and self._header_bytes > HEADERS_BYTES:
            self._end()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._expect_headers()

    def on_headers_complete(self) -> None:
        self._stop_waiting()
        if len(self.connections) >= self.max_connections:
            self.app = _refuse
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _expect_headers(self) -> None:
        self._stop_waiting()
        self._header_bytes = 0
        self._deadline = self.loop.call_later(HEADERS_S, self._end)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _end(self) -> None:
        self._stop_waiting()
        self.transport.close()


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    """In place of the application, and the last word on this connection."""
    headers = {"retry-after": "1", "connection": "close", "x-request-id": new_id("req_", SYSTEM_CLOCK)}
    response = error_response(503, "Too many connections; try again.", code="unavailable", headers=headers)
    await response(scope, receive, send)


def allow_connections() -> int:
    """How many connections may be open at once: half of the file descriptors, which are raised as far as allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4 * MAX_CONNECTIONS if hard == resource.RLIM_INFINITY else min(hard, 4 * MAX_CONNECTIONS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    return min(MAX_CONNECTIONS, soft // 2 if soft > 0 else MAX_CONNECTIONS)
