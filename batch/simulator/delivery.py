"""How an answer travels: whole, as a stream, or broken on the way.

Owns: turning a completion into a Reply, and what each transport fault does to it.
May not touch: what the completion says.
"""

from __future__ import annotations

from typing import Any

import orjson

from batch.simulator.checks import Asked
from batch.simulator.config import Fault
from batch.simulator.protocol import Reply
from batch.simulator.streaming import stream_pieces

_SLOW_PIECES = 10
_SSE = "text/event-stream"


def completion_reply(data: dict[str, Any], asked: Asked, *, streamed: bool, seconds: float) -> Reply:
    """`seconds` is the time of generating: before a whole answer, throughout a stream."""
    if streamed:
        pieces = stream_pieces(data, with_usage=asked.stream_usage, seconds=seconds)
        return Reply(200, pieces=pieces, chunked=True, content_type=_SSE)
    return Reply(200, orjson.dumps(data), delay_s=seconds)


def error_event(reply: Reply) -> Reply:
    """An error body as the only event of a stream that began well."""
    return Reply(200, pieces=[(0.0, b"data: " + reply.body + b"\n\n")], chunked=True, content_type=_SSE)


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
    return Reply(200, b"")  # empty_body


def _broken_stream(fault: Fault, data: dict[str, Any]) -> Reply:
    if fault.kind == "slow_body":
        pieces = stream_pieces(data, with_usage=True, seconds=fault.seconds)
        return Reply(200, pieces=pieces, chunked=True, content_type=_SSE)
    pieces = stream_pieces(data, with_usage=False, seconds=0.0, is_cut=True)
    ending = "abort" if fault.kind == "reset_mid_body" else "keep"
    return Reply(200, pieces=pieces, chunked=True, content_type=_SSE, ending=ending)  # type: ignore[arg-type]
