"""Bytes on their way out: Range, ETag, gzip.

Owns: how a stored file is answered. Memory is constant; a client may be slow. A range is of the file's
own bytes and is never compressed. gzip is used where the network is slower than the compressor: for
clients beyond loopback that accept it, or that refuse anything else.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from batch.api.errors import error_response
from batch.domain.loopback import is_loopback
from batch.operations.world import World
from batch.storage.files import FileRow

CHUNK_BYTES = 512 * 1024  # two of them wait in memory for each slow client
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
_WORTH_COMPRESSING = 1024


def send_file(world: World, request: Request, file: FileRow) -> Response:
    """200, 206, 304 or 416."""
    tag = f'"{(file.sha256 or file.public_id)[:40]}"'
    headers = {
        "accept-ranges": "bytes",
        "content-disposition": content_disposition(file.filename),
        "etag": tag,
        "vary": "Accept-Encoding",
        "cache-control": "private, no-cache",
    }
    if _matches(request.headers.get("if-none-match"), tag):
        return Response(status_code=304, headers=headers)
    if request.headers.get("if-range", tag) == tag and request.headers.get("range"):
        span = parse_range(request.headers["range"], file.size_bytes)
        if span == (0, 0):
            sent = {"content-range": f"bytes */{file.size_bytes}"}
            return error_response(416, f"The file has {file.size_bytes} bytes.", param="range", headers=sent)
        if span is not None:
            start, end = span
            headers["content-range"] = f"bytes {start}-{end - 1}/{file.size_bytes}"
            return _stream(world.blobs.read(file.blob, start, end, CHUNK_BYTES), 206, headers, end - start)
    body = world.blobs.read(file.blob, 0, file.size_bytes, CHUNK_BYTES)
    if _wants_gzip(request) and file.encoding is None and file.size_bytes >= _WORTH_COMPRESSING:
        headers |= {"content-encoding": "gzip", "etag": tag[:-1] + '-gzip"'}
        return _stream(_compressed(body), 200, headers, None)
    return _stream(body, 200, headers, file.size_bytes)


def parse_range(text: str, size: int) -> tuple[int, int] | None:
    """[start, end) of one range; (0, 0) when it cannot be satisfied; None where the whole file is the answer."""
    found = _RANGE.fullmatch(text.replace(" ", ""))
    if found is None or found.groups() == ("", ""):
        return None
    first, last = found.groups()
    if not first:
        start, end = max(0, size - int(last)), size
    else:
        start, end = int(first), min(int(last) + 1, size) if last else size
        if last and int(last) < int(first):
            return None
    return (start, end) if start < end else (0, 0)


def content_disposition(filename: str) -> str:
    """A file name can hold anything; the header holds no quote, no line break, no other character raw."""
    plain = re.sub(r'[^\x20-\x7e]|["\\]', "_", filename)
    value = f'attachment; filename="{plain}"'
    return value if plain == filename else f"{value}; filename*=UTF-8''{quote(filename, safe='')}"


def _stream(body: Iterator[bytes], status: int, headers: dict[str, str], length: int | None) -> Response:
    sent = headers | ({"content-length": str(length)} if length is not None else {})
    return StreamingResponse(body, status, sent, media_type="application/octet-stream")


def _compressed(blocks: Iterator[bytes]) -> Iterator[bytes]:
    packer = zlib.compressobj(1, wbits=31)
    for block in blocks:
        packed = packer.compress(block)
        if packed:
            yield packed
    yield packer.flush()


def _wants_gzip(request: Request) -> bool:
    weights: dict[str, float] = {}
    for item in request.headers.get("accept-encoding", "").lower().split(","):
        name, _, weight = item.partition(";")
        value = weight.strip().removeprefix("q=")
        weights[name.strip()] = float(value) if re.fullmatch(r"[01](\.\d{0,3})?", value) else 1.0
    if weights.get("gzip", 0.0) <= 0:
        return False
    is_near = request.client is None or is_loopback(request.client.host)
    return not is_near or weights.get("identity", 1.0) == 0


def _matches(header: str | None, tag: str) -> bool:
    if header is None:
        return False
    known = {item.strip().removeprefix("W/") for item in header.split(",")}
    return "*" in known or tag in known or tag[:-1] + '-gzip"' in known
