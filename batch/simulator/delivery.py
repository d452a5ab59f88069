"""How an answer travels: whole, compressed, as a stream, or broken on the way.

Owns: turning a completion into a Reply, and what each transport fault does to it.
May not touch: what the completion says.
"""

from __future__ import annotations

import gzip
from typing import Any

import orjson

from batch.simulator.checks import Asked
from batch.simulator.config import Fault
from batch.simulator.protocol import Reply
from batch.simulator.streaming import stream_pieces

_SLOW_PIECES = 10
_HUGE_BYTES = 80 * 1024 * 1024
_SSE = "text/event-stream"


def completion_reply(data: dict[str, Any], asked: Asked, *, streamed: bool, seconds: float, zips: bool) -> Reply:
    """`seconds` is the time of generating: before a whole answer, throughout a stream."""
    if streamed:
        pieces = stream_pieces(data, with_usage=asked.stream_usage, seconds=seconds)
        return Reply(200, pieces=pieces, chunked=True, content_type=_SSE)
    body = orjson.dumps(data)
    if zips:
        return Reply(200, gzip.compress(body, 1), [("content-encoding", "gzip")], delay_s=seconds)
    return Reply(200, body, delay_s=seconds)


def broken_reply(fault: Fault, data: dict[str, Any], *, stream: bool) -> Reply:
    """What `fault` makes of a good answer. In a stream, cuts end it in the middle without [DONE]."""
    if fault.kind == "hang":
        return Reply(200, ending="hang")
    if fault.kind == "reset":
        return Reply(0, ending="abort")  # not a byte
    if fault.kind == "redirect":
        return Reply(302, b"", [("location", "http://127.0.0.1:9/v1/chat/completions")])
    if stream and fault.kind in {"reset_mid_body", "truncated_json", "slow_body"}:
        return _broken_stream(fault, data)
    body = orjson.dumps(data)
    if fault.kind == "close":
        return Reply(200, body, ending="close")
    if fault.kind == "slow_body":
        size = max(1, len(body) // _SLOW_PIECES)
        cuts = [body[at : at + size] for at in range(0, len(body), size)]
        return Reply(200, pieces=[(fault.seconds * i / len(cuts), cut) for i, cut in enumerate(cuts)])
    if fault.kind == "reset_mid_body":
        return Reply(200, pieces=[(0.0, body[: len(body) // 2])], claimed_length=len(body), ending="abort")
    if fault.kind == "truncated_json":
        return Reply(200, body[: len(body) // 2])
    if fault.kind == "html":
        return Reply(200, b"<html><body>Gateway</body></html>", content_type="text/html")
    if fault.kind == "huge_body":
        return Reply(200, body[:-1] + b',"padding":"' + b"x" * _HUGE_BYTES + b'"}')
    return Reply(200, b"")  # empty_body


def _broken_stream(fault: Fault, data: dict[str, Any]) -> Reply:
    if fault.kind == "slow_body":
        pieces = stream_pieces(data, with_usage=True, seconds=fault.seconds)
        return Reply(200, pieces=pieces, chunked=True, content_type=_SSE)
    pieces = stream_pieces(data, with_usage=False, seconds=0.0, mistake="cut")
    ending = "abort" if fault.kind == "reset_mid_body" else "keep"
    return Reply(200, pieces=pieces, chunked=True, content_type=_SSE, ending=ending)  # type: ignore[arg-type]
