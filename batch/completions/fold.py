"""A streamed chat completion, folded to the one object that it would have been.

Owns: reading server-sent events, and the folding rules: choices by index, strings joined, roles, ids and
names set once, tool calls by index, the last usage. Pure; time limits are the transport's.
An error event, an unreadable chunk or an end before every choice has finished raises FoldError.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b
from typing import Any

import orjson

_JOINED = frozenset({"content", "refusal", "reasoning_content", "reasoning"})
_FIRST = ("id", "created", "model", "system_fingerprint", "service_tier")
_DROPPED = frozenset({"choices", "usage", "object", "obfuscation", *_FIRST})
_CHUNKS = (None, "chat.completion.chunk", "chat.completion")


class FoldError(ValueError):
    """The stream gave no completion; `error` is the provider's own error object, if it sent one."""

    def __init__(self, message: str, error: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.error = error


def fold_stream(data: bytes) -> dict[str, Any]:
    """The chat.completion of a whole stream."""
    head: dict[str, Any] = {"id": None, "object": "chat.completion"}
    extra: dict[str, Any] = {}
    usage: dict[str, Any] = {}
    choices: dict[int, _Choice] = {}
    is_done = False
    for event in _events(data):
        if is_done := event == b"[DONE]":
            break
        chunk = _read_chunk(event)
        for key in _FIRST:
            if head.get(key) is None and chunk.get(key) is not None:
                head[key] = chunk[key]
        if isinstance(chunk.get("usage"), dict):
            usage = {"usage": chunk["usage"]}
        extra |= {key: value for key, value in chunk.items() if key not in _DROPPED and value is not None}
        for position, part in enumerate(chunk.get("choices") or ()):
            if isinstance(part, dict):
                index = part["index"] if type(part.get("index")) is int else position
                choices.setdefault(index, _Choice()).add(part)
    if not choices:
        raise FoldError("the stream held no choices")
    if not is_done and any(choice.finish_reason is None for choice in choices.values()):
        raise FoldError("the stream ended before every choice was finished")
    folded = [choices[index].close(index, str(head["id"])) for index in sorted(choices)]
    return {**head, "choices": folded, **usage, **extra}


def _events(data: bytes) -> Iterator[bytes]:
    """The `data` of each event; comments, ids and names are skipped. The last may lack its blank line: servers
    often end so."""
    lines: list[bytes] = []
    text = data.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    for line in (*text.split(b"\n"), b""):
        if line.startswith(b"data:"):
            lines.append(line[5:])
        elif not line and lines:
            if event := b"\n".join(lines).strip():
                yield event
            lines = []


def _read_chunk(event: bytes) -> dict[str, Any]:
    """{} for an object of another kind."""
    try:
        chunk = orjson.loads(event)
    except orjson.JSONDecodeError:
        raise FoldError(f"a chunk of {len(event)} bytes is not JSON") from None
    if not isinstance(chunk, dict):
        return {}
    error = chunk.get("error")
    if error:
        inner = error if isinstance(error, dict) else {"message": str(error)}
        raise FoldError(str(inner.get("message", "error in the stream")), inner)
    return chunk if chunk.get("object") in _CHUNKS else {}


class _Choice:
    """One choice so far."""

    def __init__(self) -> None:
        self.finish_reason: str | None = None
        self._message: dict[str, Any] = {}
        self._pieces: dict[str, list[str]] = {}
        self._tool_calls: dict[int, dict[str, Any]] = {}
        self._function: dict[str, Any] | None = None
        self._logprobs: dict[str, Any] | None = None
        self._extra: dict[str, Any] = {}

    def add(self, part: dict[str, Any]) -> None:
        if part.get("finish_reason") is not None:
            self.finish_reason = part["finish_reason"]
        delta = part.get("delta")
        if delta is None and not self._pieces:
            delta = part.get("message")
        if isinstance(delta, dict):
            for key, value in delta.items():
                if value is not None:
                    self._add_member(key, value)
        if isinstance(part.get("logprobs"), dict):
            self._add_logprobs(part["logprobs"])
        for key, value in part.items():
            if key not in ("index", "delta", "message", "finish_reason", "logprobs") and value is not None:
                self._extra[key] = value

    def close(self, index: int, completion_id: str) -> dict[str, Any]:
        message = {"role": self._message.pop("role", "assistant"), "content": None, "refusal": None}
        message |= {key: "".join(pieces) for key, pieces in self._pieces.items()}
        message |= self._message
        if self._tool_calls:
            message["tool_calls"] = [
                _with_id(self._tool_calls[place], f"{completion_id}:{index}:{place}")
                for place in sorted(self._tool_calls)
            ]
        if self._function is not None:
            message["function_call"] = _joined(self._function)
        return {
            "index": index,
            "message": message,
            "logprobs": self._logprobs,
            "finish_reason": self.finish_reason,
            **self._extra,
        }

    def _add_member(self, key: str, value: Any) -> None:
        if key in _JOINED and isinstance(value, str):
            self._pieces.setdefault(key, []).append(value)
        elif key == "role":
            self._message.setdefault("role", value)
        elif key == "tool_calls" and isinstance(value, list):
            for position, call in enumerate(value):
                if isinstance(call, dict):
                    self._add_tool_call(position, call)
        elif key == "function_call" and isinstance(value, dict):
            self._function = self._function or {"name": "", "arguments": []}
            _add_named(self._function, value, "arguments")
        elif isinstance(value, list):
            self._message.setdefault(key, []).extend(value)
        else:
            self._message[key] = value

    def _add_tool_call(self, position: int, given: dict[str, Any]) -> None:
        call = self._tool_calls.setdefault(self._place_of(position, given), {})
        for key in ("id", "type"):
            if given.get(key) and not call.get(key):
                call[key] = given[key]
        for kind, text_key in (("function", "arguments"), ("custom", "input")):
            if isinstance(given.get(kind), dict):
                member = call.setdefault(kind, {"name": "", text_key: []})
                _add_named(member, given[kind], text_key)
        call.setdefault("type", "custom" if "custom" in call and "function" not in call else "function")

    def _place_of(self, position: int, given: dict[str, Any]) -> int:
        if type(given.get("index")) is int:
            return int(given["index"])
        for place, call in self._tool_calls.items():
            if given.get("id") and call.get("id") == given["id"]:
                return place
        if given.get("id") and position in self._tool_calls and self._tool_calls[position].get("id"):
            return max(self._tool_calls) + 1  # another id without an index is another call
        return position

    def _add_logprobs(self, given: dict[str, Any]) -> None:
        self._logprobs = self._logprobs or {"content": None, "refusal": None}
        for key, entries in given.items():
            if isinstance(entries, list):
                if self._logprobs.get(key) is None:
                    self._logprobs[key] = []
                self._logprobs[key].extend(entries)


def _add_named(member: dict[str, Any], given: dict[str, Any], text_key: str) -> None:
    """The name is set once, from the first that is not empty; the text grows."""
    if given.get("name") and not member["name"]:
        member["name"] = given["name"]
    if isinstance(given.get(text_key), str):
        member[text_key].append(given[text_key])


def _joined(member: dict[str, Any]) -> dict[str, Any]:
    return {key: "".join(value) if isinstance(value, list) else value for key, value in member.items()}


def _with_id(call: dict[str, Any], origin: str) -> dict[str, Any]:
    identifier = call.get("id") or "call_" + blake2b(origin.encode(), digest_size=12).hexdigest()
    members: dict[str, Any] = {kind: _joined(call[kind]) for kind in ("function", "custom") if kind in call}
    return {"id": identifier, "type": call["type"], **members}
