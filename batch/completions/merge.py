"""Several calls' answers as one chat completion.

Owns: CallRecord (what is kept of each call) and merge_body: choices by index, the prompt's tokens once,
completion tokens of the calls whose choices were kept, one fingerprint or null, the latest `created`.
Keys that OpenAI does not define survive per call. May not touch: judging. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from batch.completions.choices import ChoiceState
from batch.domain.outcome import Usage, read_usage

_OPENAI_BODY = frozenset(
    {"id", "object", "created", "model", "choices", "usage", "service_tier", "system_fingerprint"}
)


class CallRecord(NamedTuple):
    """One answered call. `head` is its body, of which the choices are not kept; `usage` the mended usage object."""

    indices: tuple[int, ...]
    head: dict[str, Any]
    usage: dict[str, Any] | None
    provider: str
    reask: bool
    seed: int | None
    request_id: str | None
    headers: Mapping[str, str]
    latency_s: float
    cost_usd: float | None

    @property
    def billed(self) -> Usage:
        return read_usage(self.usage)

    def to_json(self) -> dict[str, Any]:
        head = {key: value for key, value in self.head.items() if key != "choices"}
        return {**self._asdict(), "head": head, "headers": dict(self.headers)}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> CallRecord:
        return cls(**{**stored, "indices": tuple(stored["indices"])})


def merge_body(records: Sequence[CallRecord], choices: Sequence[ChoiceState]) -> dict[str, Any]:
    """`choices` are all kept. The first one's call gives id and model."""
    kept = [records[place] for place in sorted({choice.record for choice in choices})]
    first = records[choices[0].record]
    body: dict[str, Any] = {
        "id": first.head.get("id") or first.request_id or "",
        "object": "chat.completion",
        "created": max(_integer(record.head.get("created")) for record in kept),
        "model": first.head.get("model") or "",
        "choices": [choice.kept for choice in choices],
    }
    alone = len(kept) == 1
    body |= {key: value for key, value in first.head.items() if key not in body and (alone or key in _OPENAI_BODY)}
    if not alone:
        fingerprints = {record.head.get("system_fingerprint") for record in kept}
        body["system_fingerprint"] = fingerprints.pop() if len(fingerprints) == 1 else None
    usage = _merge_usage(records, kept)
    if usage is not None:
        body["usage"] = usage
    return body


def describe_call(record: CallRecord) -> dict[str, Any]:
    """One call of a line that took several: who answered, and the keys that only it had."""
    head = record.head
    told = {
        "system_fingerprint": head.get("system_fingerprint"),
        "seed": record.seed,
        "reask": record.reask or None,
        "request_id": record.request_id,
        "headers": record.headers or None,
        "body": {key: value for key, value in head.items() if key not in _OPENAI_BODY} or None,
    }
    described: dict[str, Any] = {"choices": list(record.indices), "provider": record.provider}
    described |= {"id": head.get("id"), "model": head.get("model")}
    return described | {name: value for name, value in told.items() if value is not None}


def _merge_usage(records: Sequence[CallRecord], kept: Sequence[CallRecord]) -> dict[str, Any] | None:
    """OpenAI's counting: the prompt once (as the first call had it), completions of what was kept."""
    usages = [record.usage for record in kept if record.usage is not None]
    if not usages:
        return None
    first = next(usage for record in records if (usage := record.usage) is not None)
    prompt = _integer(first.get("prompt_tokens"))
    completion = sum(_integer(usage.get("completion_tokens")) for usage in usages)
    merged = {**usages[0], "prompt_tokens": prompt, "completion_tokens": completion}
    merged["total_tokens"] = prompt + completion
    if isinstance(first.get("prompt_tokens_details"), dict):
        merged["prompt_tokens_details"] = first["prompt_tokens_details"]
    details = [found for usage in usages if isinstance(found := usage.get("completion_tokens_details"), dict)]
    if details:
        merged["completion_tokens_details"] = _sum_details(details)
    return merged


def _sum_details(details: Sequence[dict[str, Any]]) -> dict[str, Any]:
    names = dict.fromkeys(name for entry in details for name in entry)
    return {name: sum(_integer(entry.get(name)) for entry in details) for name in names}


def _integer(value: Any) -> int:
    return value if type(value) is int else 0
