"""Reading a chat-completion body as the played vendor would: what it takes, drops and refuses.

Owns: Asked (a request after the personality had its say) and the refusals with the vendor's status.
May not touch: limits, faults, answers.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

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
    tools: list[dict[str, Any]] = field(default_factory=list)
    tool_choice: Any = None
    logprobs: bool = False
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
        asked = Asked(body, model, hashlib.sha256(encoded).digest(), len(encoded))
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
        if name == "response_format":  # its kinds have rows of their own
            return self._read_response_format(asked, value)
        known = _KEYS.get("seed" if renamed else name)
        if behaviour == "ignored" or known is None:
            return None
        field_name, read = known
        try:
            setattr(asked, field_name, read(value, self._person))
        except ValueError:
            return self._refused(f"Invalid value for '{name}'.", name, "invalid_value")
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
        return None


def _number(value: Any, least: float, most: float = math.inf, *, is_whole: bool = True) -> Any:
    if type(value) is not int and (is_whole or type(value) is not float):
        raise ValueError
    if not least <= value <= most:
        raise ValueError
    return value


def _stops(value: Any) -> list[str]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > 4 or not all(isinstance(stop, str) for stop in stops):
        raise ValueError
    return stops


def _tools(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise ValueError
    return [tool for tool in value if isinstance(tool, dict)]


_ALWAYS = frozenset({"model", "messages"})
# the field of Asked that a key sets, and to what; ValueError for what is not valid there
_KEYS: Mapping[str, tuple[str, Callable[[Any, Personality], Any]]] = {
    "n": ("n", lambda value, person: _number(value, 1, person.n_max)),
    "seed": ("seed", lambda value, person: _number(value, -math.inf)),
    "max_tokens": ("max_tokens", lambda value, person: _number(value, 1)),
    "max_completion_tokens": ("max_tokens", lambda value, person: _number(value, 1)),
    "stop": ("stops", lambda value, person: _stops(value)),
    "temperature": (
        "temperature", lambda value, person: _number(value, 0, max(person.temperature_max, 2.0), is_whole=False)
    ),
    "stream": ("stream", lambda value, person: bool(value)),
    "stream_options": ("stream_usage", lambda value, person: isinstance(value, dict) and value.get("include_usage")),
    "logprobs": ("logprobs", lambda value, person: bool(value)),
    "top_logprobs": ("top_logprobs", lambda value, person: _number(value, 0, person.top_logprobs_max)),
    "tools": ("tools", lambda value, person: _tools(value)),
    "tool_choice": ("tool_choice", lambda value, person: value),
}  # fmt: skip


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
