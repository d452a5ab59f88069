"""Lines and gzip, whatever the blocks in which bytes arrive."""

from __future__ import annotations

import gzip
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch.domain.errors import InvalidRequest, TooLarge
from batch.files.jsonl import RawLine, inflate, iter_lines


def blocks(data: bytes, size: int) -> Iterator[bytes]:
    return (data[i : i + size] for i in range(0, len(data), size))


def lines(data: bytes, size: int = 7, limit: int = 1000) -> list[RawLine]:
    return list(iter_lines(blocks(data, size), max_line_bytes=limit))


@given(
    texts=st.lists(st.binary(max_size=20).map(lambda b: b.replace(b"\n", b"").replace(b"\r", b"")), max_size=20),
    size=st.integers(1, 50),
    ending=st.sampled_from([b"\n", b"\r\n"]),
    has_bom=st.booleans(),
    has_last=st.booleans(),
)
def test_each_line_comes_out_once_with_its_number_and_place(
    texts: list[bytes], size: int, ending: bytes, has_bom: bool, has_last: bool
) -> None:
    """Law: data[offset : offset + length] is the line; blank lines count and make none."""
    data = (b"\xef\xbb\xbf" if has_bom else b"") + ending.join(texts) + (ending if has_last else b"")
    if texts and texts[0].startswith(b"\xef\xbb\xbf"):
        return  # a BOM of its own would be taken for the file's
    found = lines(data, size)
    expected = [(number, text) for number, text in enumerate(texts, 1) if text.strip()]
    assert [(line.number, line.data) for line in found] == expected
    assert all(data[line.offset : line.offset + line.length] == line.data for line in found)


@given(st.lists(st.binary(min_size=1, max_size=30), max_size=20), st.integers(0, 20), st.integers(1, 40))
def test_reading_on_from_any_line_gives_the_same_rest(texts: list[bytes], at: int, size: int) -> None:
    """What a resumed ingest relies on."""
    data = b"\n".join(text.replace(b"\n", b".") for text in texts)
    if data.startswith(b"\xef\xbb\xbf"):
        return
    whole = lines(data, size)
    for line in whole[at : at + 1]:
        rest = iter_lines(
            blocks(data[line.offset :], size),
            max_line_bytes=1000,
            start_line=line.number - 1,
            start_offset=line.offset,
        )
        assert [(r.number, r.offset, r.data) for r in rest] == [(r.number, r.offset, r.data) for r in whole[at:]]


def test_a_line_that_is_too_long_is_named_and_passed_over() -> None:
    """With its full length; the lines after it keep their places."""
    data = b"a\n" + b"x" * 5000 + b"\nb\n" + b"y" * 5000
    assert [(line.number, line.offset, line.length, line.data) for line in lines(data, 64, 100)] == [
        (1, 0, 1, b"a"),
        (2, 2, 5000, None),
        (3, 5003, 1, b"b"),
        (4, 5005, 5000, None),
    ]


def test_a_hundred_megabyte_line_is_not_kept_in_memory() -> None:
    """Memory stays near the limit of a line."""
    block = b"x" * (1 << 20)
    tracemalloc.start()
    found = list(iter_lines((block for _ in range(100)), max_line_bytes=1 << 20))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [(line.length, line.data) for line in found] == [(100 << 20, None)]
    assert peak < 10 << 20


@given(st.lists(st.binary(max_size=200), max_size=5), st.integers(1, 100))
def test_gzip_members_one_after_another_are_one_stream(parts: list[bytes], size: int) -> None:
    """As `cat a.gz b.gz` makes them; padding with NULs is ignored."""
    packed = b"".join(gzip.compress(part) for part in parts)
    assert b"".join(inflate(blocks(packed, size), max_bytes=10_000)) == b"".join(parts)


def test_a_gzip_bomb_stops_at_the_bound() -> None:
    """Without expanding it first."""
    bomb = gzip.compress(b"\0" * 50_000_000)
    total = 0
    with pytest.raises(TooLarge):
        for block in inflate([bomb], max_bytes=3_000_000):
            total += len(block)
    assert total <= 3_000_000


@pytest.mark.parametrize("data", [gzip.compress(b"abc" * 1000, mtime=0)[:-9], b"\x1f\x8b\x08garbage" * 3])
def test_a_broken_gzip_is_an_error_and_not_a_short_file(data: bytes) -> None:
    """Cut off, or no gzip at all."""
    with pytest.raises(InvalidRequest) as caught:
        list(inflate([data], max_bytes=10_000))
    assert caught.value.code == "invalid_gzip"
