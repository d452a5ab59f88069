"""From a request and a card to a plan: what is sent as it is, what is emulated, what cannot be served.

Owns: plan_line and Plan. Renames, strips and injections of the card; support of each OpenAI key (native
and unlisted ones are sent, rejected ones emulated, refused or dropped as `on_unsupported` says); how n is
cut into calls. What a call then looks like is calls.py's. May not touch: answers, I/O. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from batch.completions.cards import Card, SchemaMode, Support
from batch.completions.ladder import Shape, is_emulated, keeps_as_given, next_rung, read_shape
from batch.completions.parameters import OPENAI_KEYS, is_neutral, part_features
from batch.completions.rules import CHAT
from batch.completions.stripping import without
from batch.domain.errors import InvalidRequest

SEED_MODULUS = 2**63
_SENT = (Support.NATIVE, Support.UNLISTED)
_ALWAYS = frozenset({"model", "messages"})
_COMPOSED = ("n", "seed", "response_format")  # calls.py writes these into each call


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """The batch's options that shape a plan."""

    on_unsupported: Literal["emulate", "reject", "drop"] = "emulate"
    schema_retries: int = 2
    grow_max_tokens: bool = False


_NOTHING: Mapping[str, Any] = MappingProxyType({})


class Plan(NamedTuple):
    """What will be asked of one provider for one line.

    `group` choices are asked for per call. `seed` is the caller's; `seed_field` where it goes, None when it
    is not sent. `shape` and `rung`: the structured output that was asked for and how it is asked for.
    `tool_schemas`: parameters of strict tools, by name. `stops` are cut locally. `base` is the body without
    n, seed and response_format. `verbatim`: the caller's own bytes may be sent.
    """

    card: Card
    options: PlanOptions
    endpoint: str = CHAT
    n: int = 1
    group: int = 1
    seed: int | None = None
    seed_field: str | None = None
    shape: Shape | None = None
    rung: SchemaMode | None = None
    tool_schemas: Mapping[str, Any] = _NOTHING
    has_tools: bool = False
    stops: tuple[str, ...] = ()
    base: Mapping[str, Any] = _NOTHING
    verbatim: bool = True
    emulated: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()

    @property
    def fans_out(self) -> bool:
        return self.group < self.n


_DEFAULT_OPTIONS = PlanOptions()


def plan_line(
    body: dict[str, Any], card: Card, options: PlanOptions = _DEFAULT_OPTIONS, *, endpoint: str = CHAT
) -> Plan:
    """Raises InvalidRequest (message, param "body.…") when this provider cannot serve the body."""
    draft = _Draft(body, card, options)
    if endpoint != CHAT:
        draft.set_model()
        draft.inject()
        return Plan(card, options, endpoint, base=draft.base, verbatim=not draft.changed)
    draft.read_keys()
    draft.set_model()
    draft.check_parts()
    draft.strip()
    draft.inject()
    return draft.plan()


def demote(card: Card, key: str) -> Card | None:
    """The card after a 400 that named the body key `key`; None when nothing is learned (it was known)."""
    feature = "seed" if key == card.seed_field else key
    if card.support.get(feature) is Support.REJECTED:
        return None
    demoted = card.with_support({feature: Support.REJECTED})
    stands = key in ("max_tokens", "max_completion_tokens") and demoted.max_tokens_field == card.max_tokens_field
    return None if stands else demoted


class _Draft:
    """The body being made, and what has to be said about it."""

    def __init__(self, body: dict[str, Any], card: Card, options: PlanOptions) -> None:
        self.body = body
        self.card = card
        self.options = options
        self.base = dict(body)
        self.changed = False
        self.emulated: list[str] = []
        self.dropped: list[str] = []
        self.ignored: list[str] = []
        self.stops: tuple[str, ...] = ()

    def read_keys(self) -> None:
        support, default = self.card.support, self.card.default
        for key, value in self.body.items():
            if key in _ALWAYS or key in _COMPOSED:
                continue
            if key in _SPECIAL:
                _SPECIAL[key](self, key, value)
            elif key in OPENAI_KEYS:
                self._judge(key, value, support.get(key, default))
            elif self.card.unknown_keys == "drop" or support.get(key) is Support.REJECTED:
                self._unserved(key, value)

    def _judge(self, key: str, value: Any, support: Support) -> None:
        if support in _SENT or (support is Support.IGNORED and is_neutral(key, value)):
            return
        if support is Support.REJECTED or self.options.on_unsupported == "reject":
            self._unserved(key, value)
        else:
            self.ignored.append(key)  # sent all the same: harmless, and the line says so

    def _unserved(self, key: str, value: Any) -> None:
        """A key that the provider answers with 4xx, and that nothing can stand in for."""
        if is_neutral(key, value):
            self._leave_out(key)
        elif self.options.on_unsupported == "drop":
            self._leave_out(key)
            self.dropped.append(key)
        else:
            raise self._refusal(key)

    def _refusal(self, key: str, what: str | None = None) -> InvalidRequest:
        card = self.card
        return InvalidRequest(
            f"{card.provider} does not take {what or repr(key)} for {card.model}; leave it out, choose another "
            'provider, or set options.on_unsupported = "drop"',
            param=f"body.{key}",
        )

    def _leave_out(self, key: str) -> None:
        del self.base[key]
        self.changed = True

    def _set(self, key: str, value: Any) -> None:
        self.base[key] = value
        self.changed = True

    def _read_bounded(self, key: str, value: Any) -> None:
        self._judge(key, value, self.card.of(key))
        highest = self.card.temperature_max if key == "temperature" else self.card.top_logprobs_max
        if key not in self.base or value is None or value <= highest:
            return
        if self.options.on_unsupported != "drop":
            raise self._refusal(key, f"{key} {value} (at most {highest:g})")
        self._set(key, highest)
        self.dropped.append(f"{key}>{highest:g}")

    def _read_stop(self, key: str, value: Any) -> None:
        if value is None:
            return
        self.stops = tuple(text for text in ([value] if isinstance(value, str) else value) if text)
        support = self.card.of(key)
        if support is Support.REJECTED and self.options.on_unsupported == "reject":
            raise self._refusal(key)
        if support in (Support.REJECTED, Support.IGNORED):
            self._leave_out(key)
            self.emulated.append(key)
        elif len(self.stops) > self.card.stop_max:
            self._set(key, list(self.stops[: self.card.stop_max]))
            self.emulated.append(key)
        elif support is Support.NATIVE:
            self.stops = ()

    def _read_stream(self, key: str, value: Any) -> None:
        """Whether a call streams is the card's to say; the caller's own false changes nothing."""
        if key == "stream_options" or self.card.stream or self.card.of("stream") is Support.REJECTED:
            self._leave_out(key)

    def _read_output_limit(self, key: str, value: Any) -> None:
        wanted = self.card.max_tokens_field
        if value is None or key == wanted:
            return
        self._leave_out(key)
        if self.base.get(wanted) is None:
            self._set(wanted, value)

    def _read_tool_choice(self, key: str, value: Any) -> None:
        self._judge(key, value, self.card.of(key))
        if value == "required" and key in self.base and self.card.tool_choice_required != "required":
            self._set(key, self.card.tool_choice_required)

    def set_model(self) -> None:
        if self.card.model and self.base.get("model") != self.card.model:
            self._set("model", self.card.model)

    def check_parts(self) -> None:
        for feature in part_features(self.body.get("messages") or ()):
            if self.card.support.get(feature) is Support.REJECTED:
                raise self._refusal("messages", f"{feature} content")

    def strip(self) -> None:
        for path in self.card.strip:
            stripped = without(self.base, path.split("."))
            if stripped is not self.base:
                self.base, self.changed = stripped, True

    def inject(self) -> None:
        for key, value in self.card.inject.items():
            if key not in self.base:
                self._set(key, value)

    def plan(self) -> Plan:
        body, card = self.body, self.card
        n = body.get("n") or 1
        seed, seed_field = self._place_seed(body.get("seed"))
        shape, rung = self._place_shape(body.get("response_format"))
        group = self._group(n, seeded=seed_field is not None)
        if n > 1 and group < n:
            self.emulated.append("n")
        verbatim = (
            not self.changed
            and (n == group or "n" not in body)
            and ("n" not in body or card.is_native("n"))
            and ("seed" not in body or (seed_field == "seed" and seed is not None))
            and (shape is None or rung is None or keeps_as_given(card, shape, rung))
            and not card.stream
        )
        for key in _COMPOSED:
            if key in self.base and not (key == "response_format" and shape is None):
                del self.base[key]
        tools = self.base.get("tools")
        return Plan(
            card,
            self.options,
            CHAT,
            n,
            group,
            seed,
            seed_field,
            shape,
            rung,
            _strict_tools(body["tools"]) if tools else {},
            bool(tools or self.base.get("functions")),
            self.stops,
            self.base,
            verbatim,
            tuple(self.emulated),
            tuple(self.dropped),
            tuple(self.ignored),
        )

    def _place_seed(self, seed: Any) -> tuple[int | None, str | None]:
        if seed is None:
            return None, None
        if self.card.of("seed") is Support.REJECTED:
            if self.options.on_unsupported == "reject":
                raise self._refusal("seed")
            return seed, None
        return seed, self.card.seed_field

    def _place_shape(self, response_format: Any) -> tuple[Shape | None, SchemaMode | None]:
        shape = read_shape(response_format)
        if shape is None:
            if "response_format" in self.base and self.card.of("response_format") is Support.REJECTED:
                self._unserved("response_format", response_format)
            return None, None
        rung = next_rung(self.card, None, shape, has_tools=bool(self.body.get("tools"))) or "prompt"
        if is_emulated(shape, rung):
            if self.options.on_unsupported == "reject":
                raise self._refusal("response_format", f"{shape.kind} output")
            self.emulated.append(shape.kind)
        return shape, rung

    def _group(self, n: int, *, seeded: bool) -> int:
        card = self.card
        if n == 1 or not card.is_native("n") or card.n_max < 2:
            if n > 1 and self.options.on_unsupported == "reject":
                raise self._refusal("n", "n > 1")
            return 1
        fans_out = (
            (seeded and not card.seed_per_choice)
            or (self.body.get("temperature") == 0 and card.n_with_temperature_0 is not Support.NATIVE)
            or ("file_parts" in card.fanout_when and "files" in part_features(self.body["messages"]))
            or ("search" in card.fanout_when and self.body.get("web_search_options") is not None)
        )
        return 1 if fans_out else min(n, card.n_max)


_SPECIAL = {
    "temperature": _Draft._read_bounded,
    "top_logprobs": _Draft._read_bounded,
    "stop": _Draft._read_stop,
    "stream": _Draft._read_stream,
    "stream_options": _Draft._read_stream,
    "max_tokens": _Draft._read_output_limit,
    "max_completion_tokens": _Draft._read_output_limit,
    "tool_choice": _Draft._read_tool_choice,
}


def _strict_tools(tools: Any) -> dict[str, Any]:
    found = {}
    for tool in tools if isinstance(tools, list) else ():
        function = tool.get("function") if isinstance(tool, dict) else None
        if isinstance(function, dict) and function.get("strict") is True:
            found[str(function.get("name"))] = function.get("parameters") or {}
    return found
