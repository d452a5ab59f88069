"""Reading a chat-completion body as the played vendor would: what it takes, drops and refuses.

Owns: Asked (a request after the personality had its say) and the refusals with the vendor's status.
May not touch: limits, faults, answers.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from batch.simulator.answers import digest_of
from batch.simulator.config import Behaviour, SimulatorConfig
from batch.simulator.errors import Problem, invalid
from batch.simulator.personalities import Personality


@dataclass(slots=True)
class Asked:
    """What will be answered. `seed` and `n` are those that take effect; `body` is as received."""

    body: dict[str, Any]
    model: str
    content: bytes
    prompt_bytes: int
    n: int = 1
    seed: int | None = None
    max_tokens: int | None = None
    stops: list[str] = field(default_factory=list)
    stream: bool = False
    stream_usage: bool = False
    schema: Any = None  # a JSON Schema to satisfy; True for any object
    schema_kind: str | None = None
    tools: list[dict[str, Any]] = field(default_factory=list)
    tool_choice: Any = None
    top_logprobs: int | None = None
    temperature: float = 1.0


class Checker:
    """One personality with its overrides; remembers each model's features."""

    def __init__(self, config: SimulatorConfig, person: Personality) -> None:
        self._person = person
        self._overrides = dict(config.features)
        self._known: dict[tuple[str, str], Behaviour] = {}

    def read(self, body: Any) -> Asked | Problem:
        """The request as it will be answered, or the refusal."""
        if not isinstance(body, dict):
            return invalid("We could not parse the JSON body of your request.")
        model, messages = body.get("model"), body.get("messages")
        if not isinstance(model, str) or not model:
            return self._refused("you must provide a model parameter", "model")
        if not isinstance(messages, list) or not messages:
            return self._refused("Invalid 'messages': expected an array with minimum length 1.", "messages")
        encoded = orjson.dumps(messages)
        asked = Asked(body, model, digest_of(encoded), len(encoded))
        for name in body:
            if name not in _ALWAYS and (problem := self._take(asked, name, body[name])):
                return problem
        if not isinstance(asked.schema, dict) and b"JSON" in encoded:
            asked.schema = _prompted_schema(messages) or asked.schema
        return self._combinations(asked) or asked

    def behaviour(self, feature: str, model: str) -> Behaviour:
        known = self._known.get((feature, model))
        if known is None:
            if len(self._known) > 10_000:
                self._known.clear()
            known = self._overrides.get(feature) or self._person.behaviour(feature, model)
            self._known[feature, model] = known
        return known

    def _take(self, asked: Asked, name: str, value: Any) -> Problem | None:
        if value is None:
            return None
        renamed = name == self._person.seed_field != "seed"
        behaviour: Behaviour = "native" if renamed else self.behaviour(name, asked.model)
        if behaviour == "rejected" and not (name == "n" and value == 1):
            return self._unsupported(name)
        if behaviour == "ignored" and name != "response_format":  # its kinds have rows of their own
            return None
        if name == "response_format":
            return self._read_response_format(asked, value)
        is_valid = _VALID.get("seed" if renamed else name)
        if is_valid is not None and not is_valid(value, self._person):
            return self._refused(f"Invalid value for '{name}'.", name, "invalid_value")
        if reader := _READERS.get("seed" if renamed else name):
            reader(asked, value)
        if name == "stream_options":
            asked.stream_usage = asked.stream_usage and self.behaviour("stream_usage", asked.model) == "native"
        return None

    def _unsupported(self, name: str) -> Problem:
        text = f"Unsupported parameter: '{name}' is not supported with this model."
        if name == "n" and self._person.n_max == 1:
            text = "'n' : number must be at most 1"
        elif self._person.validation_status == 422:
            text = f"Unexpected fields: {{'{name}'}}"
        return self._refused(text, name, "unsupported_parameter")

    def _refused(self, text: str, param: str, code: str | None = None) -> Problem:
        return invalid(text, param, status=self._person.validation_status, code=code)

    def _read_response_format(self, asked: Asked, value: Any) -> Problem | None:
        kind = value.get("type") if isinstance(value, dict) else None
        if kind == "text":
            return None
        if kind not in {"json_object", "json_schema"}:
            return self._refused("Invalid value for 'response_format.type'.", "response_format", "invalid_value")
        behaviour = self.behaviour(kind, asked.model)
        if behaviour == "rejected":
            return self._refused(f"response_format type '{kind}' is not supported by this model", "response_format")
        if behaviour == "native":
            asked.schema_kind = kind
            given = value.get("json_schema")
            asked.schema = given.get("schema", True) if isinstance(given, dict) else True
        return None

    def _combinations(self, asked: Asked) -> Problem | None:
        person = self._person
        asked.temperature = min(asked.temperature, person.temperature_max)
        if asked.n > 1 and asked.temperature == 0 and person.n_with_temperature_0 == "rejected":
            return self._refused(f"n must be 1 when using greedy sampling, got {asked.n}.", "n")
        if person.no_combine == "json+tools" and asked.tools and asked.schema is not None:
            return self._refused("response_format can not be combined with tools", "response_format")
        if self.behaviour("vision", asked.model) == "rejected" and _has_images(asked.body["messages"]):
            return self._refused("image parts are not supported by this model", "messages")
        return None


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _stops(value: Any) -> list[Any]:
    return [value] if isinstance(value, str) else value


_ALWAYS = frozenset({"model", "messages"})
_VALID: Mapping[str, Callable[[Any, Personality], bool]] = {
    "n": lambda value, person: _is_int(value) and 1 <= value <= person.n_max,
    "seed": lambda value, person: _is_int(value),
    "max_tokens": lambda value, person: _is_int(value) and value >= 1,
    "max_completion_tokens": lambda value, person: _is_int(value) and value >= 1,
    "stop": lambda value, person: (
        isinstance(_stops(value), list) and len(_stops(value)) <= 4 and all(isinstance(x, str) for x in _stops(value))
    ),
    "temperature": lambda value, person: (
        (_is_int(value) or isinstance(value, float)) and 0 <= value <= max(person.temperature_max, 2.0)
    ),
    "top_logprobs": lambda value, person: _is_int(value) and 0 <= value <= person.top_logprobs_max,
    "tools": lambda value, person: isinstance(value, list),
}


def _setter(name: str, read: Callable[[Any], Any] = lambda value: value) -> Callable[[Asked, Any], None]:
    return lambda asked, value: setattr(asked, name, read(value))


def _read_logprobs(asked: Asked, value: Any) -> None:
    if value and asked.top_logprobs is None:
        asked.top_logprobs = 0


_READERS: Mapping[str, Callable[[Asked, Any], None]] = {
    "n": _setter("n"),
    "seed": _setter("seed"),
    "max_tokens": _setter("max_tokens"),
    "max_completion_tokens": _setter("max_tokens"),
    "stop": _setter("stops", _stops),
    "temperature": _setter("temperature", float),
    "stream": _setter("stream", bool),
    "stream_options": _setter("stream_usage", lambda v: isinstance(v, dict) and bool(v.get("include_usage"))),
    "logprobs": _read_logprobs,
    "top_logprobs": _setter("top_logprobs"),
    "tools": _setter("tools", lambda value: [tool for tool in value if isinstance(tool, dict)]),
    "tool_choice": _setter("tool_choice"),
}


def _prompted_schema(messages: list[Any]) -> Any:
    """The schema (or True for any object) that a message asks for in words, as a model would obey; else None."""
    for text in _texts(messages):
        _, asked, rest = text.partition("JSON Schema:\n")
        if asked:
            with contextlib.suppress(json.JSONDecodeError):
                return json.JSONDecoder().raw_decode(rest)[0]
        elif "one JSON object" in text:
            return True
    return None


def _texts(messages: list[Any]) -> Iterator[str]:
    """What the messages say: plain contents, and the text parts of others."""
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else [content]:
            text = part.get("text") if isinstance(part, dict) else part
            if isinstance(text, str):
                yield text


def _has_images(messages: list[Any]) -> bool:
    contents = [message.get("content") for message in messages if isinstance(message, dict)]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    return any(isinstance(part, dict) and part.get("type") == "image_url" for part in parts)
