"""A few tiny calls that show what a provider really does: `batchmill providers check NAME --probe`.

Owns: the probe requests and what each answer proves. Made through the adapter, so that keys, URLs and errors
are those of production. May not touch: the lane's row (the caller saves the patch of learned.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import orjson

from batch.completions.cards import Card, Support
from batch.domain.outcome import Failure, FailureKind, Outcome, Success, Usage, read_usage
from batch.providers.adapter import Adapter
from batch.providers.headers import parse_rate_headers

CHAT = "/chat/completions"
_SCHEMA = {
    "type": "object",
    "properties": {"verdict": {"type": "string", "enum": ["blue-heron-17"]}},
    "required": ["verdict"],
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True)
class Probe:
    """`proves` reads the parsed answer: native, ignored, or None when it shows nothing either way."""

    feature: str
    extra: dict[str, Any]
    proves: Callable[[dict[str, Any]], Support | None]
    prompt: str = "Reply with the single word: ready"
    max_tokens: int = 16


@dataclass(frozen=True, slots=True)
class Finding:
    feature: str
    support: Support | None
    words: str


@dataclass(slots=True)
class ProbeReport:
    """`failure` is set when the first plain call failed: nothing else was asked. `limits` come from headers."""

    findings: list[Finding] = field(default_factory=list)
    failure: Failure | None = None
    calls: int = 0
    usage: Usage = field(default_factory=Usage)
    cost_usd: float | None = None
    served_model: str | None = None
    limits: dict[str, float] = field(default_factory=dict)

    @property
    def support(self) -> dict[str, str]:
        """For learned.learn_support(card, …, "probe")."""
        return {finding.feature: finding.support.value for finding in self.findings if finding.support is not None}


async def probe_provider(adapter: Adapter, model: str, *, now: float) -> ProbeReport:
    """Make all probe calls, one after the other. `now` is Unix seconds, for headers that hold instants."""
    card = adapter.provider.card(model)
    report = ProbeReport()
    hello = await adapter.call(CHAT, _body(card, _HELLO))
    _account(report, adapter, model, hello, now)
    if isinstance(hello, Failure):
        report.failure = hello
        return report
    report.served_model = hello.data.get("model")
    for probe in PROBES:
        outcome = await adapter.call(CHAT, _body(card, probe))
        _account(report, adapter, model, outcome, now)
        report.findings.append(judge(probe, outcome))
    return report


def judge(probe: Probe, outcome: Outcome) -> Finding:
    """What one probe's outcome shows. Only a 400 that is about the key itself counts as a refusal."""
    if isinstance(outcome, Success):
        support = probe.proves(outcome.data)
        shown = {Support.NATIVE: "works", Support.IGNORED: "accepted and ignored"}
        return Finding(probe.feature, support, shown[support] if support else "accepted")
    if outcome.kind in (FailureKind.UNSUPPORTED_PARAM, FailureKind.INVALID_REQUEST, FailureKind.NOT_IMPLEMENTED):
        return Finding(probe.feature, Support.REJECTED, f"refused: {outcome.message[:200]}")
    return Finding(probe.feature, None, f"not shown: {outcome.kind.value}: {outcome.message[:200]}")


def _body(card: Card, probe: Probe) -> bytes:
    messages = [{"role": "user", "content": probe.prompt}]
    asked = {"model": card.model, "messages": messages, card.max_tokens_field: probe.max_tokens}
    return orjson.dumps(asked | _in_dialect(probe.extra, card))


def _in_dialect(extra: dict[str, Any], card: Card) -> dict[str, Any]:
    """As the planner would send it: the provider's own name of the seed, strict only where that is a rung."""
    spoken = {card.seed_field if key == "seed" else key: value for key, value in extra.items()}
    wanted = spoken.get("response_format", {})
    if "json_schema" in wanted and card.schema_mode not in (None, "strict"):
        schema = {key: value for key, value in wanted["json_schema"].items() if key != "strict"}
        spoken["response_format"] = {**wanted, "json_schema": schema}
    return spoken


def _account(report: ProbeReport, adapter: Adapter, model: str, outcome: Outcome, now: float) -> None:
    report.calls += 1
    if isinstance(outcome, Failure):
        return
    usage = read_usage(outcome.data.get("usage"))
    report.usage = report.usage + usage
    price = adapter.provider.price(model)
    cost = outcome.cost_usd if outcome.cost_usd is not None else price.of(usage) if price else None
    if cost is not None:
        report.cost_usd = (report.cost_usd or 0.0) + cost
    reading = parse_rate_headers(outcome.rate_headers, adapter.provider.preset.rate_headers, now)
    report.limits |= reading.limits


def _choices(data: dict[str, Any]) -> list[dict[str, Any]]:
    choices = data.get("choices")
    return [choice for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else []


def _text(data: dict[str, Any]) -> str:
    message = next((choice.get("message") for choice in _choices(data)), None)
    content = message.get("content") if isinstance(message, dict) else None
    return content if isinstance(content, str) else ""


def _proves_n(data: dict[str, Any]) -> Support:
    return Support.NATIVE if len(_choices(data)) == 2 else Support.IGNORED


def _proves_json(wanted: Callable[[Any], bool]) -> Callable[[dict[str, Any]], Support]:
    def proves(data: dict[str, Any]) -> Support:
        try:
            return Support.NATIVE if wanted(orjson.loads(_text(data))) else Support.IGNORED
        except orjson.JSONDecodeError:
            return Support.IGNORED

    return proves


def _proves_logprobs(data: dict[str, Any]) -> Support:
    return Support.NATIVE if any(choice.get("logprobs") for choice in _choices(data)) else Support.IGNORED


def _proves_stop(data: dict[str, Any]) -> Support | None:
    text = _text(data)
    return (Support.IGNORED if "3" in text else Support.NATIVE) if "2" in text else None


def _accepted(data: dict[str, Any]) -> Support | None:
    """A 200 does not show whether the key had an effect; only a refusal would be a finding."""
    return None


_HELLO = Probe("", {}, _accepted)
PROBES: tuple[Probe, ...] = (
    Probe("n", {"n": 2, "temperature": 1}, _proves_n),
    Probe("seed", {"seed": 7}, _accepted),
    Probe(  # the prompt asks for something else, so only an enforced schema brings this word
        "json_schema",
        {"response_format": {
            "type": "json_schema", "json_schema": {"name": "verdict", "strict": True, "schema": _SCHEMA},
        }},
        _proves_json(lambda value: value == {"verdict": "blue-heron-17"}),
        "Give your verdict on the colour of the sky, as JSON.", 64,
    ),
    Probe(
        "json_object", {"response_format": {"type": "json_object"}}, _proves_json(lambda value: type(value) is dict),
        "Tell me today's mood in one word. Use JSON if you must.", 64,
    ),
    Probe("stop", {"stop": ["3"]}, _proves_stop, "Count from 1 to 5, separated by spaces.", 32),
    Probe("logprobs", {"logprobs": True}, _proves_logprobs),
    Probe("presence_penalty", {"presence_penalty": 0.1}, _accepted),
    Probe("frequency_penalty", {"frequency_penalty": 0.1}, _accepted),
)  # fmt: skip
