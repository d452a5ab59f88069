"""What an output line says about how its answer came to be, and what the batch's report counts.

Owns: the answer's part of the `batchmill` object, and facts. The executor adds attempts, latency and
cost. May not touch: the answer itself. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from batch.completions.cards import Support
from batch.completions.choices import ChoiceState
from batch.completions.judge import is_refusal
from batch.completions.ladder import is_emulated
from batch.completions.merge import describe_call
from batch.completions.plan import Plan
from batch.completions.rules import CHAT

if TYPE_CHECKING:
    from batch.completions.answering import Answering


def describe_line(line: Answering) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The note — provider, model, calls, latency_s, and only then what was out of the ordinary — and one fact per
    thing that the report counts, each at most once a line. For lines with an answer."""
    plan = line.plan
    note, facts = _describe_calls(line)
    if plan.seed is not None:
        note["seed"] = fate = _seed_fate(plan)
        if fate != "sent":
            facts.append(f"seed:{fate}")
    changes = (("emulated", _list_emulated(line)), ("dropped", plan.dropped), ("ignored", _list_ignored(line)))
    for kind, names in changes:
        if names:
            note[kind] = list(names)
            facts += [f"{kind}:{name}" for name in names]
    if not line.is_short:
        facts += _describe_repairs(line, note)
    if "usage" in note:
        facts.append("usage:estimated")
    for choice in line.choices:
        if choice.kept and is_refusal(choice.kept):
            facts.append("refused")
            break
    return note, tuple(facts)


def describe_rejected(choices: Iterable[ChoiceState]) -> list[dict[str, Any]]:
    """Every answer that was thrown away or left over, raw, with the validator's messages."""
    found = []
    for index, choice in enumerate(choices):
        found += [{"index": index, **rejection} for rejection in choice.rejected]
        if (kept := choice.kept) is not None:
            finish = kept.get("finish_reason")
            found.append({"index": index, "message": kept["message"], "finish_reason": finish, "errors": []})
    return found


def _list_emulated(line: Answering) -> list[str]:
    """What the plan emulates, and what the answers made necessary."""
    plan = line.plan
    if line.is_short and not plan.emulated:
        return []
    cut = any(choice.cut for choice in line.choices)
    emulated = [name for name in plan.emulated if name != "stop" or cut or "stop" not in plan.base]
    if plan.shape is not None and line.rung is not None and is_emulated(plan.shape, line.rung):
        emulated.append(plan.shape.kind)
    emulated += ["stop"] if cut else []
    emulated += ["n"] if line.ignored_n else []
    return list(dict.fromkeys(emulated))


def _list_ignored(line: Answering) -> list[str]:
    """Keys that the provider is known to ignore, and those whose answer shows that it did."""
    ignored, base = list(line.plan.ignored), line.plan.base
    if not (ignored or "logprobs" in base or "tool_choice" in base):
        return ignored
    answered = [choice.kept for choice in line.choices if choice.kept is not None]
    if base.get("logprobs") and not any(choice.get("logprobs") for choice in answered):
        ignored.append("logprobs")
    forced = base.get("tool_choice")
    if forced not in (None, "none", "auto") and not any(
        choice["message"].get("tool_calls") or choice["message"].get("refusal") for choice in answered
    ):
        ignored.append("tool_choice")
    return list(dict.fromkeys(ignored))


def _seed_fate(plan: Plan) -> str:
    """ "sent", "ignored" (sent to a provider that is known to ignore it) or "not_sent"."""
    if plan.seed_field is None:
        return "not_sent"
    return "ignored" if plan.card.of("seed") is Support.IGNORED else "sent"


def _describe_calls(line: Answering) -> tuple[dict[str, Any], list[str]]:
    """Who answered; what a gateway says of the configuration that routed each call is a fact too."""
    records, card = line.records, line.plan.card
    facts: dict[str, None] = {}
    marks: dict[str, None] = {}
    latency_s, estimated = 0.0, False
    for record in records:
        latency_s += record.latency_s
        estimated |= record.usage is not None and "estimated" in record.usage
        if (model := record.head.get("model")) and type(model) is str:
            facts[f"served:{model}"] = None
        if (mark := record.head.get("system_fingerprint")) and type(mark) is str:
            facts[f"fingerprint:{mark}"] = marks[mark] = None
        for name, value in record.headers.items():
            if name.endswith("-config-version"):
                facts[f"config_version:{value}"] = None
    note: dict[str, Any] = {
        "provider": card.provider,
        "model": records[0].head.get("model") or card.model,
        "calls": len(records),
        "latency_s": round(latency_s, 4),
    }
    if estimated:
        note["usage"] = "estimated"
    if len(records) == 1 or line.plan.endpoint != CHAT:
        if records[-1].request_id is not None:
            note["request_id"] = records[-1].request_id
        if records[-1].headers:
            note["headers"] = dict(records[-1].headers)
    else:
        note["billed"] = line.billed._asdict()
        note["upstream"] = [describe_call(record) for record in records]
        if len(marks) > 1:
            note["system_fingerprints"] = list(marks)
    return note, list(facts)


def _describe_repairs(line: Answering, note: dict[str, Any]) -> list[str]:
    plan, choices = line.plan, line.choices
    reasks = sum(choice.reasks for choice in choices)
    raw = {str(index): choice.raw for index, choice in enumerate(choices) if choice.raw is not None}
    bypasses_cache = plan.fans_out or any(choice.asked > 1 for choice in choices)
    found = {
        "schema_mode": line.rung if plan.shape is not None else None,
        "reasks": reasks,
        "stepped_down": line.climbed,
        "raw": raw,
        "max_tokens_grown_to": max((choice.grown_to or 0 for choice in choices), default=0),
        "overridden": [key for key in plan.card.cache_bypass if key in plan.base] if bypasses_cache else None,
    }
    note |= {name: value for name, value in found.items() if value}
    happened = {
        "schema:reasked": reasks,
        "schema:mended": reasks and not line.is_doomed,
        "schema:extracted": raw,
        "schema:stepped_down": line.climbed,
    }
    return [fact for fact, is_so in happened.items() if is_so]
