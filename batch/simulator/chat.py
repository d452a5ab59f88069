"""What the simulated model says: a chat.completion with its choices, usage and content faults.

Owns: the object before it is sent, words, the simulator's own token count, logprobs, truncation, stop strings.
May not touch: HTTP, limits. Everything is drawn from (messages, seed, choice index), so it repeats. One word of
prose is one token; JSON and prompts count 4 bytes a token.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import orjson

from batch.simulator.checks import Asked
from batch.simulator.config import CONTENT_FAULTS, SimulatorConfig
from batch.simulator.personalities import Personality
from batch.simulator.schemas import schema_value

_SYLLABLES = ("ba", "ce", "di", "fo", "gu", "ha", "ke", "li", "mo", "nu", "pa", "re", "si", "to", "vu", "za")
WORDS = tuple(first + second for first in _SYLLABLES for second in _SYLLABLES)


@dataclass(slots=True)
class Completion:
    """The object and its token counts (`output_tokens` over all choices, reasoning included)."""

    data: dict[str, Any]
    input_tokens: int
    output_tokens: int


class Speaker:
    """Answers as one personality under one configuration."""

    def __init__(self, config: SimulatorConfig, person: Personality) -> None:
        self._config = config
        self._person = person
        self._cache: set[bytes] = set()

    def complete(self, asked: Asked, number: int, created: int, fault: str | None) -> Completion:
        """The answer to `asked`; `number` names it and makes unseeded answers differ where told to."""
        input_tokens = prompt_tokens(asked.prompt_bytes)
        count = asked.n
        if fault == "wrong_n":
            count = max(1, asked.n - 1) if asked.n > 1 else 2
        choices, output_tokens = [], 0
        for index in range(0 if fault == "no_choices" else count):
            choice, tokens = self._choice(asked, index, number, fault)
            choices.append(choice)
            output_tokens += tokens
        usage = self._usage(asked, input_tokens, output_tokens)
        data: dict[str, Any] = {
            "id": f"chatcmpl-sim{number:x}",
            "object": "chat.completion",
            "created": created,
            "model": asked.model + self._person.served_suffix,
            "choices": choices,
            "usage": usage,
            "system_fingerprint": "fp_simulator",
        }
        return Completion(data, input_tokens, usage["total_tokens"] - input_tokens)

    def was_cached(self, asked: Asked) -> bool:
        """For vendors with an answer cache: True when these messages were answered before."""
        if not self._person.cached_answers or _skips_cache(asked.body):
            return False
        if asked.content in self._cache:
            return True
        self._cache.add(asked.content)
        return False

    def _choice(self, asked: Asked, index: int, number: int, fault: str | None) -> tuple[dict[str, Any], int]:
        key = self._key(asked, index, number)
        tool = self._tool(asked)
        if tool is not None and fault not in CONTENT_FAULTS:
            return self._tool_choice(tool, key, index)
        text, tokens, finish = self._text(asked, key, fault)
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if fault == "refusal":
            message, finish = message | {"content": None, "refusal": "I'm sorry, I can't help with that."}, "stop"
        elif fault == "null_content":
            message["content"] = None
        elif fault == "content_filter":
            finish = "content_filter"
        logprobs = None
        if text and (asked.logprobs or asked.top_logprobs is not None):
            logprobs = _logprobs_of(text, asked.top_logprobs or 0)
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish}, tokens

    def _key(self, asked: Asked, index: int, number: int) -> bytes:
        if self._person.cached_answers and not _skips_cache(asked.body):
            return _choice_key(asked.content, None, 0)
        seed = asked.seed
        if seed is None:
            salt = number if self._config.unseeded == "fresh" and asked.temperature > 0 else 0
            return _choice_key(asked.content, None, 0 if asked.temperature == 0 else index, salt)
        way = self._person.seed_per_choice
        if way == "plus_index":
            return _choice_key(asked.content, seed + index, 0)
        return _choice_key(asked.content, seed, 0 if way == "same" else index)

    def _text(self, asked: Asked, key: bytes, fault: str | None) -> tuple[str, int, str]:
        is_json = asked.schema is not None
        text = _json_text(asked.schema, key, fault) if is_json else _prose(key, self._config.answer_tokens)
        finish = "stop"
        if asked.stops:
            text = _cut_at_stop(text, asked.stops)
        tokens = _tokens_in(text, is_json=is_json)
        allowed = asked.max_tokens
        if fault == "length":
            allowed = max(1, tokens // 2)
        if allowed is not None and tokens > allowed:
            text, tokens, finish = _cut_to(text, allowed, is_json=is_json), allowed, "length"
        return text, tokens, finish

    def _tool(self, asked: Asked) -> dict[str, Any] | None:
        """The tool to call, if one is called."""
        choice = asked.tool_choice
        if not asked.tools or choice == "none":
            return None
        if isinstance(choice, dict):
            wanted = choice.get("function", {}).get("name")
            named = [tool for tool in asked.tools if tool.get("function", {}).get("name") == wanted]
            return named[0] if named else None
        return asked.tools[0] if choice in {"required", "any"} else None

    def _tool_choice(self, tool: dict[str, Any], key: bytes, index: int) -> tuple[dict[str, Any], int]:
        function = tool.get("function", {})
        arguments = orjson.dumps(schema_value(function.get("parameters") or {"type": "object"}, key)).decode()
        call = {"id": f"call_{key[:8].hex()}", "type": "function",
                "function": {"name": function.get("name", "tool"), "arguments": arguments}}  # fmt: skip
        message = {"role": "assistant", "content": None, "refusal": None, "tool_calls": [call]}
        finish = "" if self._person.empty_finish_on_tools else "tool_calls"
        choice = {"index": index, "message": message, "logprobs": None, "finish_reason": finish}
        return choice, _tokens_in(arguments, is_json=True)

    def _usage(self, asked: Asked, input_tokens: int, output_tokens: int) -> dict[str, Any]:
        usage: dict[str, Any] = {
            "prompt_tokens": input_tokens,
            "completion_tokens": output_tokens,
            "total_tokens": input_tokens + output_tokens,
        }
        if self._person.cost_in_ticks:
            usage["cost_in_usd_ticks"] = (input_tokens + 4 * output_tokens) * 2000
        if self._person.reasons(asked.model):
            reasoning = 16 * asked.n
            usage["completion_tokens_details"] = {"reasoning_tokens": reasoning}
            usage["total_tokens"] += reasoning
            if not self._person.reasoning_outside_completion:
                usage["completion_tokens"] += reasoning
        return usage


def _json_text(schema: Any, key: bytes, fault: str | None) -> str:
    if fault == "schema_violation":
        return '{"not_what_was_asked":1}'
    value = {"answer": _prose(key, 8)} if schema is True else schema_value(schema, key)
    text = orjson.dumps(value).decode()
    return text[: max(1, len(text) - 1)] + "," if fault == "invalid_json" else text


def _skips_cache(body: dict[str, Any]) -> bool:
    told = body.get("mlx:cache")
    return isinstance(told, dict) and bool(told.get("skip"))


def _choice_key(content: bytes, seed: int | None, index: int, salt: int = 0) -> bytes:
    """The source of everything that one choice says."""
    return hashlib.blake2b(b"%s|%d|%d|%d" % (content, -1 if seed is None else seed, index, salt)).digest()


def _prose(key: bytes, tokens: int) -> str:
    """`tokens` words."""
    drawn = hashlib.shake_128(key).digest(tokens)
    return " ".join([WORDS[byte] for byte in drawn])


def _tokens_in(text: str, *, is_json: bool) -> int:
    return (len(text) + 3) // 4 if is_json else text.count(" ") + 1 if text else 0


def _cut_to(text: str, tokens: int, *, is_json: bool) -> str:
    """The first `tokens` of `text`."""
    return text[: tokens * 4] if is_json else " ".join(text.split(" ")[:tokens])


def _cut_at_stop(text: str, stops: list[str]) -> str:
    """Everything before the first stop string; the same text where none occurs."""
    places = [place for stop in stops if stop and (place := text.find(stop)) >= 0]
    return text[: min(places)] if places else text


def prompt_tokens(messages_bytes: int) -> int:
    return 3 + messages_bytes // 4


def _logprobs_of(text: str, top: int) -> dict[str, Any]:
    """OpenAI's shape: an entry per word, with `top` alternatives."""
    content = []
    for position, word in enumerate(text.split(" ") if text else ()):
        token = word if position == 0 else " " + word
        logprob = -0.01 * (1 + len(word))
        alternatives = [{"token": token, "logprob": logprob, "bytes": list(token.encode())}]
        alternatives += [
            {"token": f" alt{i}", "logprob": logprob - i, "bytes": list(f" alt{i}".encode())} for i in range(1, top)
        ]
        content.append({
            "token": token, "logprob": logprob, "bytes": list(token.encode()), "top_logprobs": alternatives[:top],
        })  # fmt: skip
    return {"content": content, "refusal": None}
