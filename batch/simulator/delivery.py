"""How an answer travels: whole, as an SSE stream of chat.completion.chunk events, or broken on the way.

Owns: turning a completion into a Reply, cutting it into timed deltas, and what each transport fault does to it.
May not touch: what the completion says.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

import orjson

from batch.simulator.checks import Asked
from batch.simulator.config import Fault
from batch.simulator.protocol import Reply

_SLOW_PIECES = 10


def completion_reply(data: dict[str, Any], asked: Asked, *, streamed: bool, seconds: float) -> Reply:
    """`seconds` is the time of generating: before a whole answer, throughout a stream."""
    if streamed:
        return _stream([*_events(data, with_usage=asked.stream_usage), b"data: [DONE]\n\n"], seconds)
    return Reply(200, orjson.dumps(data), delay_s=seconds)


def error_event(reply: Reply) -> Reply:
    """An error body as the only event of a stream that began well."""
    return _stream([b"data: " + reply.body + b"\n\n"])


def broken_reply(fault: Fault, data: dict[str, Any], *, stream: bool) -> Reply:
    """What `fault` makes of a good answer. In a stream, cuts end it in the middle without [DONE]."""
    if fault.kind == "hang":
        return Reply(200, ending="hang")
    if fault.kind == "reset":
        return Reply(0, ending="abort")  # not a byte
    if fault.kind == "redirect":
        return Reply(302, b"", [("location", "http://127.0.0.1:9/v1/chat/completions")])
    if fault.kind == "html":
        return Reply(200, b"<html><body>Gateway</body></html>", content_type="text/html")
    if fault.kind == "empty_body":
        return Reply(200, b"")
    if stream:
        return _broken_stream(fault, data)
    body = orjson.dumps(data)
    if fault.kind == "slow_body":
        size = max(1, len(body) // _SLOW_PIECES)
        return Reply(200, pieces=_spread([body[at : at + size] for at in range(0, len(body), size)], fault.seconds))
    if fault.kind == "reset_mid_body":
        return Reply(200, pieces=[(0.0, body[: len(body) // 2])], claimed_length=len(body), ending="abort")
    return Reply(200, body[: len(body) // 2])  # truncated_json


def _broken_stream(fault: Fault, data: dict[str, Any]) -> Reply:
    if fault.kind == "slow_body":
        return _stream([*_events(data, with_usage=True), b"data: [DONE]\n\n"], fault.seconds)
    events = list(_events(data, with_usage=False))
    reply = _stream(events[: max(1, len(events) // 2)])
    if fault.kind == "reset_mid_body":
        reply.ending = "abort"
    return reply


def _stream(events: list[bytes], seconds: float = 0.0) -> Reply:
    return Reply(200, pieces=_spread(events, seconds), chunked=True, content_type="text/event-stream")


def _spread(pieces: list[bytes], seconds: float) -> list[tuple[float, bytes]]:
    return [(index * seconds / len(pieces), piece) for index, piece in enumerate(pieces)]


def _events(data: dict[str, Any], *, with_usage: bool) -> Iterator[bytes]:
    """Choices interleave, as they do when a server samples them together."""
    frame = {name: data[name] for name in ("id", "created", "model", "system_fingerprint")}
    frame = {"object": "chat.completion.chunk", **frame} | ({"usage": None} if with_usage else {})
    yield b": keep-alive\n\n"
    for deltas in zip_longest(*map(_deltas, data["choices"])):
        for choice, delta in zip(data["choices"], deltas, strict=True):
            if delta is not None:
                chunk = {**frame, "choices": [{"index": choice["index"], **delta}]}
                yield b"data: " + orjson.dumps(chunk) + b"\n\n"
    if with_usage:
        yield b"data: " + orjson.dumps({**frame, "choices": [], "usage": data["usage"]}) + b"\n\n"


def _deltas(choice: dict[str, Any]) -> Iterator[dict[str, Any]]:
    message, logprobs = choice["message"], choice["logprobs"]
    yield _delta({"role": message["role"], "content": ""})
    for position, word in enumerate(_split(message.get("content"))):
        told = {"content": logprobs["content"][position : position + 1], "refusal": []} if logprobs else None
        yield _delta({"content": word}, told)
    for word in _split(message.get("refusal")):
        yield _delta({"refusal": word})
    for index, call in enumerate(message.get("tool_calls", ())):
        function = call["function"]
        opening = {**call, "index": index, "function": {"name": function["name"], "arguments": ""}}
        yield _delta({"tool_calls": [opening]})
        for part in _split(function["arguments"]):
            yield _delta({"tool_calls": [{"index": index, "function": {"arguments": part}}]})
    yield {**_delta({}), "finish_reason": choice["finish_reason"]}


def _delta(delta: dict[str, Any], logprobs: Any = None) -> dict[str, Any]:
    return {"delta": delta, "logprobs": logprobs, "finish_reason": None}


def _split(text: str | None) -> list[str]:
    """Words, each but the first with its space before it, as tokens are."""
    if not text:
        return []
    first, *rest = text.split(" ")
    return [first, *(" " + word for word in rest)]
