"""HTTP/1.1 on a bare asyncio protocol: the hot path, so that the simulator is never the bottleneck.

Owns: reading requests, writing replies at their time, endings (close, reset, hang).
May not touch: what an answer says. One request at a time per connection; pipelined ones wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from http.client import responses
from typing import Literal

from batch.simulator.queueing import Slots

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

    transport: asyncio.Transport

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
        self._is_lost = False
        self._timer: asyncio.TimerHandle | None = None
        self._on_end: Callable[[bool], None] | None = None

    @property
    def peer(self) -> str:
        address = self.transport.get_extra_info("peername")
        return str(address[0]) if isinstance(address, tuple) else ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # a stream server gives stream transports
        self._peers.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._peers.discard(self)
        self._is_lost = True
        if self._timer is not None:
            self._timer.cancel()
        self._finish(False)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._next()

    def _next(self) -> None:
        """Answer the request at the front of the buffer, if it is whole and its turn."""
        if self._busy or self._is_lost:
            return
        head = self._head
        if head is None:
            raw, end, rest = self._buffer.partition(b"\r\n\r\n")
            if not end:
                if len(raw) > _MAX_HEAD:
                    self._refuse(431)
                return
            head = self._heads.get(raw) or self._read_head(raw)
            if head is None:
                return
            self._buffer, self._head = rest, head
            if head.headers.get("expect") == "100-continue":
                self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if head.length > _MAX_BODY:
            self._refuse(413)
        elif len(self._buffer) >= head.length:
            body, self._buffer = self._buffer[: head.length], self._buffer[head.length :]
            self._head = None
            self._send(self._answer(head, body, self), head.keeps_alive)

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
        self._send(Reply(status, b'{"error":{"message":"bad request"}}'), False)

    def _send(self, reply: Reply, keeps_alive: bool) -> None:
        self._busy = True
        self._on_end = reply.on_end
        if reply.ending == "keep" and not keeps_alive:
            reply.ending = "close"
        if reply.takes_slot:
            self._slots.enter(lambda: self._start_in_slot(reply))
        else:
            self._start(reply)

    def _start_in_slot(self, reply: Reply) -> bool:
        if self._is_lost:
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
        if reply.status == 0:
            self._end(reply)
        elif reply.pieces is None:
            self.transport.write(encode_head(reply, len(reply.body)) + reply.body)
            self._end(reply)
        else:
            total = sum(len(piece) for _, piece in reply.pieces)
            self.transport.write(encode_head(reply, total if reply.claimed_length is None else reply.claimed_length))
            self._write_due(reply, reply.pieces, self._loop.time())

    def _write_due(self, reply: Reply, pieces: list[tuple[float, bytes]], started: float) -> None:
        """Write the pieces that are due, then wait for the next."""
        for index, (after_s, data) in enumerate(pieces):
            if started + after_s > self._loop.time():
                self._timer = self._loop.call_at(started + after_s, self._write_due, reply, pieces[index:], started)
                return
            self.transport.write(b"%x\r\n%b\r\n" % (len(data), data) if reply.chunked else data)
        if reply.chunked and reply.ending != "abort":
            self.transport.write(b"0\r\n\r\n")
        self._end(reply)

    def _end(self, reply: Reply) -> None:
        self._finish(reply.ending != "abort")
        if reply.ending == "abort":
            self.transport.abort()
        elif reply.ending == "close":
            self.transport.close()
        elif self._buffer:
            self._loop.call_soon(self._next)

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
        f"HTTP/1.1 {reply.status} {responses.get(reply.status, 'Status')}",
        f"content-type: {reply.content_type}",
        "transfer-encoding: chunked" if reply.chunked else f"content-length: {length}",
    ]
    lines += [f"{name}: {value}" for name, value in reply.headers]
    if reply.ending == "close":
        lines.append("connection: close")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")
