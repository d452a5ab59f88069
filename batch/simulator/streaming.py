"""A chat.completion as an SSE stream of chat.completion.chunk events.

Owns: cutting the answer into deltas and giving each its time.
May not touch: the sockets; it returns (seconds, bytes) pieces.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

Piece = tuple[float, bytes]


def stream_pieces(data: dict[str, Any], *, with_usage: bool, seconds: float, is_cut: bool = False) -> list[Piece]:
    """Events over `seconds`; cut ones end half-way, without [DONE]."""
    events = list(_events(data, with_usage=with_usage))
    events = events[: max(1, len(events) // 2)] if is_cut else [*events, b"data: [DONE]\n\n"]
    step = seconds / len(events)
    return [(index * step, event) for index, event in enumerate(events)]


def _events(data: dict[str, Any], *, with_usage: bool) -> Iterator[bytes]:
    """Choices interleave, as they do when a server samples them together."""
    yield b": keep-alive\n\n"
    running = [_deltas(choice) for choice in data["choices"]]
    indices = [choice["index"] for choice in data["choices"]]
    while running:
        still, left = [], []
        for index, deltas in zip(indices, running, strict=True):
            delta = next(deltas, None)
            if delta is not None:
                yield _chunk(data, [{"index": index, **delta}], with_usage=with_usage)
                still.append(deltas)
                left.append(index)
        running, indices = still, left
    if with_usage and "usage" in data:
        yield _event({**_frame(data), "choices": [], "usage": data["usage"]})


def _deltas(choice: dict[str, Any]) -> Iterator[dict[str, Any]]:
    message, logprobs = choice["message"], choice["logprobs"]
    yield {"delta": {"role": message["role"], "content": ""}, "logprobs": None, "finish_reason": None}
    words = _split(message.get("content"))
    entries = logprobs["content"] if logprobs else []
    for position, word in enumerate(words):
        told = {"content": entries[position : position + 1], "refusal": []} if entries else None
        yield {"delta": {"content": word}, "logprobs": told, "finish_reason": None}
    for word in _split(message.get("refusal")):
        yield {"delta": {"refusal": word}, "logprobs": None, "finish_reason": None}
    for index, call in enumerate(message.get("tool_calls", ())):
        function = call["function"]
        opening = {**call, "index": index, "function": {"name": function["name"], "arguments": ""}}
        yield {"delta": {"tool_calls": [opening]}, "logprobs": None, "finish_reason": None}
        for part in _split(function["arguments"]):
            piece = {"index": index, "function": {"arguments": part}}
            yield {"delta": {"tool_calls": [piece]}, "logprobs": None, "finish_reason": None}
    yield {"delta": {}, "logprobs": None, "finish_reason": choice["finish_reason"]}


def _split(text: str | None) -> list[str]:
    """Words, each but the first with its space before it, as tokens are."""
    if not text:
        return []
    first, *rest = text.split(" ")
    return [first, *(" " + word for word in rest)]


def _frame(data: dict[str, Any]) -> dict[str, Any]:
    kept = {name: data[name] for name in ("id", "created", "model", "system_fingerprint")}
    return {"object": "chat.completion.chunk", **kept}


def _chunk(data: dict[str, Any], choices: list[dict[str, Any]], *, with_usage: bool) -> bytes:
    frame = {**_frame(data), "choices": choices}
    return _event({**frame, "usage": None} if with_usage else frame)


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"
