"""Reading a chat-completion body as the played vendor would: what it takes, drops and refuses.

Owns: Asked (a request after the personality had its say) and the refusals with the vendor's status.
May not touch: limits, faults, answers.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
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
    dropped: tuple[str, ...] = ()


class Checker:
    """One personality with its overrides; remembers each model's features."""

    def __init__(self, config: SimulatorConfig, person: Personality) -> None:
        self._person = person
        self._config = config
        self._overrides = dict(config.features)
        self._models = {*config.models, *person.models}
        self._known: dict[tuple[str, str], Behaviour] = {}

    def read(self, body: Any) -> Asked | Problem:
        """The request as it will be answered, or the refusal."""
        if not isinstance(body, dict):
            return invalid("We could not parse the JSON body of your request.")
        model, messages = body.get("model"), body.get("messages")
        if not isinstance(model, str) or not model:
            return self._refused("you must provide a model parameter", "model")
        if not isinstance(messages, list) or not messages:
            return self._refused(
                "Invalid 'messages': empty array. Expected an array with minimum length 1.", "messages"
            )
        if problem := self.model_problem(model):
            return problem
        encoded = orjson.dumps(messages)
        asked = Asked(body, model, digest_of(encoded), len(encoded))
        for name in body:
            if name not in _ALWAYS and (problem := self._take(asked, name, body[name])):
                return problem
        if not isinstance(asked.schema, dict) and b"JSON" in encoded:
            asked.schema = _prompted_schema(messages) or asked.schema
        return self._combinations(asked) or asked

    def model_problem(self, model: str) -> Problem | None:
        """404 for a model that is not served; None when any is."""
        if self._config.any_model or model in self._models:
            return None
        if self._person.any_prefix and model.startswith(self._person.any_prefix):
            return None
        text = f"The model '{model}' does not exist or you do not have access to it."
        return invalid(text, "model", status=404, code="model_not_found")

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
            return self._unsupported(name, asked.model)
        if behaviour == "ignored" and name != "response_format":  # its kinds have rows of their own
            asked.dropped = (*asked.dropped, name)
            return None
        reader = _READERS.get("seed" if renamed else name)
        return reader(self, asked, value) if reader else None

    def _unsupported(self, name: str, model: str) -> Problem:
        if name in {"n"} and self._person.n_max == 1:
            text = "'n' : number must be at most 1"
        elif self._person.validation_status == 422:
            text = f"Unexpected fields: {{'{name}'}}"
        else:
            text = f"Unsupported parameter: '{name}' is not supported with this model."
        return invalid(text, name, status=self._person.validation_status, code="unsupported_parameter")

    def _refused(self, text: str, param: str, code: str | None = None) -> Problem:
        return invalid(text, param, status=self._person.validation_status, code=code)

    def _read_n(self, asked: Asked, value: Any) -> Problem | None:
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= self._person.n_max:
            return self._refused(
                f"Invalid 'n': integer out of range, expected 1 to {self._person.n_max}.", "n", "invalid_value"
            )
        asked.n = value
        return None

    def _read_seed(self, asked: Asked, value: Any) -> Problem | None:
        if not isinstance(value, int) or isinstance(value, bool):
            return self._refused("Invalid type for 'seed': expected an integer.", "seed", "invalid_type")
        asked.seed = value
        return None

    def _read_max_tokens(self, asked: Asked, value: Any) -> Problem | None:
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            return self._refused(
                "Invalid 'max_tokens': integer below minimum value.", "max_tokens", "integer_below_min_value"
            )
        asked.max_tokens = value
        return None

    def _read_stop(self, asked: Asked, value: Any) -> Problem | None:
        stops = [value] if isinstance(value, str) else value
        if not isinstance(stops, list) or len(stops) > 4 or not all(isinstance(stop, str) for stop in stops):
            return self._refused(
                "Invalid 'stop': expected a string or an array of at most 4 strings.", "stop", "invalid_type"
            )
        asked.stops = stops
        return None

    def _read_temperature(self, asked: Asked, value: Any) -> Problem | None:
        top = self._person.temperature_max
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= max(top, 2.0):
            return self._refused("Invalid 'temperature': decimal out of range.", "temperature", "invalid_value")
        asked.temperature = min(float(value), top)
        return None

    def _read_stream(self, asked: Asked, value: Any) -> Problem | None:
        asked.stream = bool(value)
        return None

    def _read_stream_options(self, asked: Asked, value: Any) -> Problem | None:
        wanted = isinstance(value, dict) and bool(value.get("include_usage"))
        asked.stream_usage = wanted and self.behaviour("stream_usage", asked.model) == "native"
        return None

    def _read_logprobs(self, asked: Asked, value: Any) -> Problem | None:
        if value and asked.top_logprobs is None:
            asked.top_logprobs = 0
        return None

    def _read_top_logprobs(self, asked: Asked, value: Any) -> Problem | None:
        if not isinstance(value, int) or not 0 <= value <= self._person.top_logprobs_max:
            text = f"Invalid 'top_logprobs': expected 0 to {self._person.top_logprobs_max}."
            return self._refused(text, "top_logprobs", "invalid_value")
        asked.top_logprobs = value
        return None

    def _read_tools(self, asked: Asked, value: Any) -> Problem | None:
        if not isinstance(value, list):
            return self._refused("Invalid type for 'tools': expected an array.", "tools", "invalid_type")
        asked.tools = [tool for tool in value if isinstance(tool, dict)]
        return None

    def _read_tool_choice(self, asked: Asked, value: Any) -> Problem | None:
        asked.tool_choice = value
        return None

    def _read_response_format(self, asked: Asked, value: Any) -> Problem | None:
        kind = value.get("type") if isinstance(value, dict) else None
        if kind == "text":
            return None
        if kind not in {"json_object", "json_schema"}:
            return self._refused("Invalid value for 'response_format.type'.", "response_format", "invalid_value")
        behaviour = self.behaviour(kind, asked.model)
        if behaviour == "rejected":
            text = f"response_format type '{kind}' is not supported by this model"
            return invalid(text, "response_format", status=self._person.validation_status)
        if behaviour == "ignored":
            asked.dropped = (*asked.dropped, "response_format")
            return None
        asked.schema_kind = kind
        given = value.get("json_schema")
        asked.schema = given.get("schema", True) if isinstance(given, dict) else True
        return None

    def _combinations(self, asked: Asked) -> Problem | None:
        if asked.n > 1 and asked.temperature == 0 and self._person.n_with_temperature_0 == "rejected":
            return self._refused(f"n must be 1 when using greedy sampling, got {asked.n}.", "n")
        if self._person.no_combine == "json+tools" and asked.tools and asked.schema is not None:
            return self._refused("response_format can not be combined with tools", "response_format")
        if not _has_images(asked.body["messages"]):
            return None
        if self.behaviour("vision", asked.model) == "rejected":
            return self._refused("image parts are not supported by this model", "messages")
        return None


_ALWAYS = frozenset({"model", "messages"})
_READERS: Mapping[str, Any] = {
    "n": Checker._read_n,
    "seed": Checker._read_seed,
    "max_tokens": Checker._read_max_tokens,
    "max_completion_tokens": Checker._read_max_tokens,
    "stop": Checker._read_stop,
    "temperature": Checker._read_temperature,
    "stream": Checker._read_stream,
    "stream_options": Checker._read_stream_options,
    "logprobs": Checker._read_logprobs,
    "top_logprobs": Checker._read_top_logprobs,
    "tools": Checker._read_tools,
    "tool_choice": Checker._read_tool_choice,
    "response_format": Checker._read_response_format,
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
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, list) and any(
            isinstance(part, dict) and part.get("type") == "image_url" for part in content
        ):
            return True
    return False
