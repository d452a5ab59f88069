"""HTTP/1.1 on a bare asyncio protocol: the hot path, so that the simulator is never the bottleneck.

Owns: reading requests, writing replies at their time, endings (close, reset, hang).
May not touch: what an answer says. One request at a time per connection; pipelined ones wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from batch.simulator.queueing import Slots

_REASONS = {
    200: "OK", 202: "Accepted", 302: "Found", 400: "Bad Request", 401: "Unauthorized", 402: "Payment Required",
    403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed", 413: "Payload Too Large",
    411: "Length Required",
    422: "Unprocessable Entity", 429: "Too Many Requests", 500: "Internal Server Error", 503: "Service Unavailable",
}  # fmt: skip
_MAX_HEAD = 64 * 1024
_MAX_BODY = 64 * 1024 * 1024
_HEADS_REMEMBERED = 4096


@dataclass(slots=True)
class Head:
    """A parsed request head; header names are lower-case."""

    method: str
    path: str
    headers: dict[str, str]
    length: int
    keeps_alive: bool


@dataclass(slots=True)
class Reply:
    """What to send, and when; status 0 sends nothing. `pieces` are (seconds after the start, bytes), instead of `body`.

    `delay_s` runs before the first byte. `chunked` sends pieces in chunked encoding; otherwise content-length
    is the pieces' sum, or `claimed_length`. `ending` is what happens after the last byte. `on_end` is called
    once, with True when everything was sent. `takes_slot` waits for a free slot of the engine first.
    """

    status: int
    body: bytes = b""
    headers: list[tuple[str, str]] = field(default_factory=list)
    delay_s: float = 0.0
    pieces: list[tuple[float, bytes]] | None = None
    chunked: bool = False
    claimed_length: int | None = None
    ending: Literal["keep", "close", "abort", "hang"] = "keep"
    content_type: str = "application/json"
    takes_slot: bool = False
    on_end: Callable[[bool], None] | None = None


Answer = Callable[[Head, bytes, "Connection"], Reply]


class Connection(asyncio.Protocol):
    """One client connection."""

    __slots__ = (
        "_answer", "_buffer", "_busy", "_head", "_heads", "_holds_slot", "_loop", "_on_end",
        "_peers", "_slots", "_timer", "transport",
    )  # fmt: skip

    def __init__(self, answer: Answer, slots: Slots, peers: set[Connection], heads: dict[bytes, Head]) -> None:
        self._answer = answer
        self._slots = slots
        self._holds_slot = False
        self._peers = peers
        self._heads = heads
        self._loop = asyncio.get_running_loop()
        self._buffer = b""
        self._head: Head | None = None
        self._busy = False
        self._timer: asyncio.TimerHandle | None = None
        self._on_end: Callable[[bool], None] | None = None
        self.transport: asyncio.Transport | None = None

    @property
    def peer(self) -> str:
        address = self.transport.get_extra_info("peername") if self.transport else None
        return str(address[0]) if isinstance(address, tuple) else ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # a stream server gives stream transports
        self._peers.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._peers.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        self.transport = None
        self._finish(False)

    def data_received(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        if not self._busy:
            self._next()

    def _next(self) -> None:
        """Answer the request at the front of the buffer, if it is whole."""
        head = self._head
        if head is None:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                if len(self._buffer) > _MAX_HEAD:
                    self._refuse(431)
                return
            raw, self._buffer = self._buffer[:end], self._buffer[end + 4 :]
            head = self._heads.get(raw) or self._read_head(raw)
            if head is None:
                return
            self._head = head
            if head.headers.get("expect") == "100-continue" and self.transport is not None:
                self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = self._take_body(head)
        if body is not None:
            self._head = None
            self._busy = True
            self._send(self._answer(head, body, self), head.keeps_alive)

    def _take_body(self, head: Head) -> bytes | None:
        """The body, removed from the buffer; None while it is not all there."""
        if head.length > _MAX_BODY:
            self._refuse(413)
            return None
        if len(self._buffer) < head.length:
            return None
        if len(self._buffer) == head.length:
            body, self._buffer = self._buffer, b""
        else:
            body, self._buffer = self._buffer[: head.length], self._buffer[head.length :]
        return body

    def _read_head(self, raw: bytes) -> Head | None:
        head = parse_head(raw)
        if head is None or "transfer-encoding" in head.headers:
            self._refuse(400 if head is None else 411)
            return None
        if len(self._heads) >= _HEADS_REMEMBERED:
            self._heads.clear()
        self._heads[raw] = head
        return head

    def _refuse(self, status: int) -> None:
        self._buffer = b""
        self._busy = True
        self._send(Reply(status, b'{"error":{"message":"bad request"}}', ending="close"), False)

    def _send(self, reply: Reply, keeps_alive: bool) -> None:
        self._on_end = reply.on_end
        if reply.ending == "keep" and not keeps_alive:
            reply.ending = "close"
        if reply.takes_slot:
            self._slots.enter(lambda: self._start_in_slot(reply))
        else:
            self._start(reply)

    def _start_in_slot(self, reply: Reply) -> bool:
        if self.transport is None:
            return False
        self._holds_slot = True
        self._start(reply)
        return True

    def _start(self, reply: Reply) -> None:
        if reply.ending == "hang":
            return  # the caller's time limit ends it
        if reply.delay_s > 0:
            self._timer = self._loop.call_later(reply.delay_s, self._deliver, reply)
        else:
            self._deliver(reply)

    def _deliver(self, reply: Reply) -> None:
        if self.transport is None:
            return
        if reply.status == 0:
            self._end(reply)
            return
        if reply.pieces is None:
            self.transport.write(encode_head(reply, len(reply.body)) + reply.body)
            self._end(reply)
            return
        total = sum(len(piece) for _, piece in reply.pieces)
        self.transport.write(encode_head(reply, total if reply.claimed_length is None else reply.claimed_length))
        self._piece(reply, 0, self._loop.time())

    def _piece(self, reply: Reply, index: int, started: float) -> None:
        """Write the pieces that are due, then wait for the next."""
        pieces = reply.pieces or []
        while index < len(pieces):
            if self.transport is None:
                return
            due = started + pieces[index][0]
            if due > self._loop.time():
                self._timer = self._loop.call_at(due, self._piece, reply, index, started)
                return
            data = pieces[index][1]
            self.transport.write(b"%x\r\n%b\r\n" % (len(data), data) if reply.chunked else data)
            index += 1
        if self.transport is None:
            return
        if reply.chunked and reply.ending != "abort":
            self.transport.write(b"0\r\n\r\n")
        self._end(reply)

    def _end(self, reply: Reply) -> None:
        self._finish(reply.ending != "abort")
        if self.transport is None:
            return
        if reply.ending == "abort":
            self.transport.abort()
        elif reply.ending == "close":
            self.transport.close()
        elif self._buffer:
            self._loop.call_soon(self._resume)

    def _resume(self) -> None:
        if not self._busy and self.transport is not None:
            self._next()

    def _finish(self, was_sent: bool) -> None:
        self._busy = False
        if self._holds_slot:
            self._holds_slot = False
            self._slots.leave()
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            on_end(was_sent)


def parse_head(raw: bytes) -> Head | None:
    """The request line and headers; None when they are not HTTP/1.x."""
    try:
        first, *rest = raw.decode("latin-1").split("\r\n")
        method, target, version = first.split(" ")
        headers = {}
        for line in rest:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        length = int(headers.get("content-length", "0"))
    except ValueError:
        return None
    if not version.startswith("HTTP/1.") or length < 0:
        return None
    connection = headers.get("connection", "").lower()
    keeps = connection != "close" if version == "HTTP/1.1" else connection == "keep-alive"
    return Head(method, target.partition("?")[0], headers, length, keeps)


def encode_head(reply: Reply, length: int) -> bytes:
    lines = [
        f"HTTP/1.1 {reply.status} {_REASONS.get(reply.status, 'Status')}",
        f"content-type: {reply.content_type}",
        "transfer-encoding: chunked" if reply.chunked else f"content-length: {length}",
    ]
    lines += [f"{name}: {value}" for name, value in reply.headers]
    if reply.ending == "close":
        lines.append("connection: close")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")
