"""JSONL as bytes: splitting a stream into numbered lines, and seeing through gzip.

Owns: where a line begins and ends (LF or CRLF, the last one may be open), the BOM, the longest line
that is kept, the bound on what gzip may expand to. A line's offset counts decompressed bytes.
May not touch: what a line means (domain.line), where its bytes come from (files.blobs).
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from batch.domain.errors import InvalidRequest, TooLarge

GZIP_MAGIC = b"\x1f\x8b"
_BOM = b"\xef\xbb\xbf"
_INFLATE_BYTES = 1 << 20


class RawLine(NamedTuple):
    """One line without its ending. `data` is None when it was longer than allowed. Blank lines make none."""

    number: int  # 1-based; blank lines count
    offset: int  # of the line's first byte (after a BOM)
    length: int
    data: bytes | None


def iter_lines(
    chunks: Iterable[bytes], *, max_line_bytes: int, start_line: int = 0, start_offset: int = 0
) -> Iterator[RawLine]:
    """Each line that is not blank. `start_line` lines and `start_offset` bytes lie before the first chunk.

    Memory: one chunk and at most `max_line_bytes`; a longer line is passed over without being kept.
    """
    number = start_line
    had_bom, chunks = _without_bom(chunks) if start_offset == 0 else (False, chunks)
    offset = start_offset + len(_BOM) * had_bom
    tail = bytearray()  # the open line's bytes so far
    lost = 0  # bytes of an open line that is too long and was let go
    for chunk in chunks:
        pieces = chunk.split(b"\n")
        last = pieces.pop()
        if pieces and tail:
            pieces[0] = bytes(tail) + pieces[0]
            tail.clear()
        for piece in pieces:
            number += 1
            length = len(piece) + lost
            if length > max_line_bytes:
                yield RawLine(number, offset, length, None)
            elif piece and not piece.isspace():
                yield _line(number, offset, piece)
            offset += length + 1
            lost = 0
        if lost or len(tail) + len(last) > max_line_bytes:
            lost += len(tail) + len(last)
            tail.clear()
        else:
            tail += last
    if lost:
        yield RawLine(number + 1, offset, lost, None)
    elif tail and not tail.isspace():
        yield _line(number + 1, offset, bytes(tail))


def _line(number: int, offset: int, piece: bytes) -> RawLine:
    if piece.endswith(b"\r"):
        piece = piece[:-1]
    return RawLine(number, offset, len(piece), piece)


def _without_bom(chunks: Iterable[bytes]) -> tuple[bool, Iterator[bytes]]:
    iterator = iter(chunks)
    head = b""
    for chunk in iterator:
        head += chunk
        if len(head) >= len(_BOM):
            break
    had_bom = head.startswith(_BOM)
    return had_bom, itertools.chain([head.removeprefix(_BOM)], iterator)


def inflate(chunks: Iterable[bytes], *, max_bytes: int) -> Iterator[bytes]:
    """The decompressed bytes of one or more gzip members, in blocks of at most 1 MB.

    Raises TooLarge when more than `max_bytes` come out (a zip bomb), InvalidRequest when it is no gzip or is cut off.
    """
    total = 0
    stream = zlib.decompressobj(wbits=31)
    fed = False
    for chunk in chunks:
        data = chunk
        while data:
            if stream.eof:  # another member follows
                if not data.strip(b"\0"):  # or only the padding that tape tools write
                    break
                stream, fed = zlib.decompressobj(wbits=31), False
            try:
                block, data = stream.decompress(data, _INFLATE_BYTES), stream.unconsumed_tail
            except zlib.error:
                raise InvalidRequest("The input is not valid gzip.", code="invalid_gzip") from None
            fed = True
            total += len(block)
            if total > max_bytes:
                raise TooLarge(f"The decompressed file is larger than {max_bytes:,} bytes.")
            if block:
                yield block
            if stream.eof:
                data = stream.unused_data
    if fed and not stream.eof:
        raise InvalidRequest("The gzip input ends in the middle.", code="invalid_gzip")
