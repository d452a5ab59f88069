"""What an output line says about how its answer came to be, and what the batch's report counts.

Owns: the answer's part of the `batchmill` object, and facts. The executor adds attempts, latency and
cost. May not touch: the answer itself. Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from batch.completions.calls import touches_own_cache_key
from batch.completions.cards import Support
from batch.completions.ladder import is_emulated
from batch.completions.merge import describe_calls
from batch.completions.plan import Plan

if TYPE_CHECKING:
    from batch.completions.answering import Answering


def describe_line(line: Answering) -> dict[str, Any]:
    """provider, model, calls, latency_s, and only then what was out of the ordinary."""
    plan = line.plan
    note: dict[str, Any] = {"provider": plan.card.provider}
    single = line.single
    if single is not None:
        note["model"] = single.data.get("model") or plan.card.model
        note["calls"] = 1
        note["latency_s"] = round(single.latency_s, 4)
        if single.request_id is not None:
            note["request_id"] = single.request_id
        if single.headers:
            note["headers"] = dict(single.headers)
    else:
        _describe_records(line, note)
    if plan.seed is not None:
        note["seed"] = _seed_fate(plan)
    emulated = list_emulated(line)
    for name, entries in (("emulated", emulated), ("dropped", plan.dropped), ("ignored", _ignored(line))):
        if entries:
            note[name] = list(entries)
    if not line.is_short:
        _describe_repairs(line, note)
    return note


def describe_rejected(line: Answering) -> list[dict[str, Any]]:
    """Every answer that was thrown away or left over, raw, with the validator's messages."""
    found = []
    for index, choice in enumerate(line.choices):
        found += [{"index": index, **rejection} for rejection in choice.rejected]
        if choice.kept is not None:
            kept = choice.kept
            found.append(
                {
                    "index": index,
                    "message": kept["message"],
                    "finish_reason": kept.get("finish_reason"),
                    "errors": [],
                }
            )
    return found


def list_facts(line: Answering) -> tuple[str, ...]:
    """One entry per thing that the report counts, each at most once a line."""
    plan, tally = line.plan, line.tally
    facts: list[str] = []
    for kind, names in (
        ("emulated", list_emulated(line)), ("dropped", plan.dropped), ("ignored", _ignored(line)),
        ("served", _served(line, "model")), ("fingerprint", _served(line, "system_fingerprint")),
        ("config_version", _config_versions(line)),
    ):  # fmt: skip
        if names:
            facts += [f"{kind}:{name}" for name in names]
    if plan.seed is not None and _seed_fate(plan) != "sent":
        facts.append(f"seed:{_seed_fate(plan)}")
    if not line.is_short:
        reasked = any(choice.reasks for choice in line.choices)
        facts += ["schema:reasked"] if reasked else []
        facts += ["schema:mended"] if reasked and not line.is_doomed else []
        facts += ["schema:extracted"] if tally.extracted else []
        facts += ["schema:stepped_down"] if tally.climbed else []
    if _is_estimated(line):
        facts.append("usage:estimated")
    if tally.refused or _single_refused(line):
        facts.append("refused")
    return tuple(facts)


def list_emulated(line: Answering) -> list[str]:
    """What the plan emulates, and what the answers made necessary."""
    plan = line.plan
    if line.is_short and not plan.emulated:
        return []
    emulated = [name for name in plan.emulated if name != "stop" or line.tally.cut or "stop" not in plan.base]
    if plan.shape is not None and line.rung is not None and is_emulated(plan.shape, line.rung):
        emulated.append(plan.shape.kind)
    if line.tally.cut and "stop" not in emulated:
        emulated.append("stop")
    if line.tally.filled and "n" not in emulated:
        emulated.append("n")
    return list(dict.fromkeys(emulated))


def _ignored(line: Answering) -> list[str]:
    """Keys that the provider is known to ignore, and those whose answer shows that it did."""
    ignored, base = list(line.plan.ignored), line.plan.base
    if not (ignored or "logprobs" in base or "tool_choice" in base):
        return ignored
    if base.get("logprobs") and not any(choice.get("logprobs") for choice in _answered(line)):
        ignored.append("logprobs")
    forced = base.get("tool_choice")
    if forced not in (None, "none", "auto") and not any(
        choice["message"].get("tool_calls") or choice["message"].get("refusal") for choice in _answered(line)
    ):
        ignored.append("tool_choice")
    return list(dict.fromkeys(ignored))


def _answered(line: Answering) -> list[dict[str, Any]]:
    if line.single is not None:
        return list(line.single.data.get("choices") or [])
    return [choice.kept for choice in line.choices if choice.kept is not None]


def _seed_fate(plan: Plan) -> str:
    """ "sent", "ignored" (sent to a provider that is known to ignore it) or "not_sent"."""
    if plan.seed_field is None:
        return "not_sent"
    return "ignored" if plan.card.of("seed") is Support.IGNORED else "sent"


def _describe_records(line: Answering, note: dict[str, Any]) -> None:
    records = line.records
    if records:
        note["model"] = records[0].head.get("model") or line.plan.card.model
    note["calls"] = len(records)
    note["latency_s"] = round(sum(record.latency_s for record in records), 4)
    if _is_estimated(line):
        note["usage"] = "estimated"
    if len(records) == 1:
        if records[0].request_id is not None:
            note["request_id"] = records[0].request_id
        if records[0].headers:
            note["headers"] = records[0].headers
    elif records:
        note["billed"] = line.billed._asdict()
        note["upstream"] = describe_calls(records)
        marks = _served(line, "system_fingerprint")
        if len(marks) > 1:
            note["system_fingerprints"] = marks


def _is_estimated(line: Answering) -> bool:
    """True when some call told no tokens, so that they are our own estimate (tokens.estimate_usage)."""
    return any(record.usage and record.usage.get("estimated") for record in line.records)


def _describe_repairs(line: Answering, note: dict[str, Any]) -> None:
    reasks = sum(choice.reasks for choice in line.choices)
    if line.plan.shape is not None and line.rung is not None:
        note["schema_mode"] = line.rung
    if reasks:
        note["reasks"] = reasks
    if line.tally.climbed:
        note["stepped_down"] = True
    raw = {str(index): choice.raw for index, choice in enumerate(line.choices) if choice.raw is not None}
    if raw:
        note["raw"] = raw
    if any(choice.grown_to for choice in line.choices):
        note["max_tokens_grown_to"] = max(choice.grown_to or 0 for choice in line.choices)
    overridden = touches_own_cache_key(line.plan, reasked=any(choice.asked > 1 for choice in line.choices))
    if overridden:
        note["overridden"] = overridden


def _served(line: Answering, key: str) -> list[str]:
    single = line.single
    if single is not None:
        value = single.data.get(key)
        return [value] if value and isinstance(value, str) else []
    heads = [record.head for record in line.records]
    return list(dict.fromkeys(head[key] for head in heads if isinstance(head.get(key), str) and head[key]))


def _config_versions(line: Answering) -> list[str]:
    """What a gateway says of the configuration that routed each call (x-modelux-config-version)."""
    if line.single is not None and not line.single.headers:
        return []
    calls = [line.single] if line.single is not None else line.records
    found = [value for call in calls for name, value in call.headers.items() if name.endswith("-config-version")]
    return list(dict.fromkeys(found))


def _single_refused(line: Answering) -> bool:
    single = line.single
    if single is None or not single.data.get("choices"):
        return False
    choice = single.data["choices"][0]
    return bool(choice["message"].get("refusal")) or choice.get("finish_reason") == "content_filter"
