"""A multipart body, read as it streams: fields kept, the one file handed on in blocks.

Owns: the bounds of a form (fields, headers, sizes), the file name's cleaning, the hand-over of 2 MB
blocks to a thread while the next ones arrive. Field order is free; no Content-Length is needed.
Constant memory at any size. May not touch: what becomes of the bytes.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from batch.domain.errors import InvalidRequest

BLOCK_BYTES = 2 * 1024 * 1024
MAX_PARTS = 64
MAX_FIELD_BYTES = 64 * 1024
_MAX_NAME = 255


class Sink(Protocol):
    """Where the file's bytes go; called from one thread at a time."""

    def append(self, block: bytes) -> None: ...
    def abort(self) -> None: ...


@dataclass(slots=True)
class Form:
    """`sink` is None when no file part came; `filename` and `fields` are as sent, cleaned and decoded."""

    fields: dict[str, str] = field(default_factory=dict)
    filename: str = "upload"
    sink: Sink | None = None


@asynccontextmanager
async def received_form(request: Request, file_field: str, open_sink: Callable[[], Sink]) -> AsyncIterator[Form]:
    """Read the whole body, then run the block; the sink is aborted unless the block finished it.

    Raises InvalidRequest for what is no such form, and whatever `append` raises.
    """
    reader = _Reader(_boundary(request), file_field)
    form = reader.form
    hand_over = _HandOver()
    try:
        async for chunk in request.stream():
            reader.feed(chunk)
            if reader.waiting_bytes >= BLOCK_BYTES or (reader.file_began and form.sink is None):
                await _pass_on(reader, hand_over, open_sink)
        reader.close()
        if reader.file_began:
            await _pass_on(reader, hand_over, open_sink)
        await hand_over.settle()
        yield form
    finally:
        await hand_over.drain()
        if form.sink is not None:
            await run_in_threadpool(form.sink.abort)


async def _pass_on(reader: _Reader, hand_over: _HandOver, open_sink: Callable[[], Sink]) -> None:
    if reader.form.sink is None:
        reader.form.sink = await run_in_threadpool(open_sink)
    block = reader.take_block()
    if block:
        await hand_over.append(reader.form.sink, block)


class _HandOver:
    """At most one block is being written while the next is gathered."""

    def __init__(self) -> None:
        self._writing: asyncio.Future[None] | None = None

    async def append(self, sink: Sink, block: bytes) -> None:
        await self.settle()
        self._writing = asyncio.get_running_loop().run_in_executor(None, sink.append, block)

    async def settle(self) -> None:
        """Wait for the block under way; raises what its writing raised."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            await writing

    async def drain(self) -> None:
        """Wait, whatever came of it: a sink may not be aborted under its writer."""
        if self._writing is not None:
            await asyncio.wait([self._writing])
            self._writing.exception()


class _Reader:
    """The push parser's callbacks, gathered into a Form and a list of file pieces."""

    def __init__(self, boundary: bytes, file_field: str) -> None:
        self.form = Form()
        self.file_began = False
        self.waiting_bytes = 0
        self._file_field = file_field
        self._pieces: list[memoryview] = []
        self._parts = 0
        self._ended = False
        self._in_file = False
        self._name = ""
        self._value = bytearray()
        self._header_name = bytearray()
        self._header_value = bytearray()
        self._headers: dict[bytes, bytes] = {}
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin_part,
                "on_header_field": lambda data, start, end: self._header_name.extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._header_value.extend(data[start:end]),
                "on_header_end": self._end_header,
                "on_headers_finished": self._begin_data,
                "on_part_data": self._take_data,
                "on_part_end": self._end_part,
                "on_end": self._end,
            },
        )

    def feed(self, chunk: bytes) -> None:
        try:
            self._parser.write(chunk)
        except MultipartParseError:
            raise InvalidRequest("The multipart body could not be parsed.") from None

    def close(self) -> None:
        """Raises InvalidRequest for a body that stopped before its last boundary."""
        if not self._ended:
            raise InvalidRequest("The multipart body ended before its last boundary.")

    def take_block(self) -> bytes:
        block = b"".join(self._pieces)
        self._pieces.clear()
        self.waiting_bytes = 0
        return block

    def _begin_part(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise InvalidRequest(f"The form has more than {MAX_PARTS} parts.")
        self._headers.clear()

    def _end_header(self) -> None:
        self._headers[bytes(self._header_name).lower()] = bytes(self._header_value)
        self._header_name.clear()
        self._header_value.clear()

    def _begin_data(self) -> None:
        _kind, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        self._name = _text(options.get(b"name", b""))
        self._in_file = self._name == self._file_field
        self._value.clear()
        if self._in_file:
            if self.file_began:
                raise InvalidRequest(f"The form has two parts named '{self._file_field}'.", param=self._file_field)
            self.file_began = True
            self.form.filename = clean_filename(_text(options.get(b"filename", b"")))

    def _take_data(self, data: bytes, start: int, end: int) -> None:
        if self._in_file:
            self._pieces.append(memoryview(data)[start:end])
            self.waiting_bytes += end - start
            return
        self._value += data[start:end]
        if len(self._value) > MAX_FIELD_BYTES:
            raise InvalidRequest(f"The form field is larger than {MAX_FIELD_BYTES} bytes.", param=self._name[:100])

    def _end_part(self) -> None:
        if not self._in_file and self._name:
            self.form.fields[self._name] = _text(bytes(self._value))

    def _end(self) -> None:
        self._ended = True


def clean_filename(name: str) -> str:
    """The last component without control characters, at most 255 characters; `upload` when nothing is left."""
    last = re.split(r"[/\\]", name)[-1]
    kept = "".join(char for char in last if char.isprintable())[:_MAX_NAME].strip()
    return kept if kept.strip(".") else "upload"


def _boundary(request: Request) -> bytes:
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not 1 <= len(boundary) <= 70:
        raise InvalidRequest("Send multipart/form-data with a boundary of 1 to 70 characters.")
    return boundary


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")
