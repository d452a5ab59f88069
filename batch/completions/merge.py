"""Several calls' answers as one chat completion.

Owns: CallRecord (what is kept of each call) and merge_body: choices by index, the prompt's tokens once,
completion tokens of the calls whose choices were kept, one fingerprint or null, the latest `created`.
Keys that OpenAI does not define survive per call. May not touch: judging. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from batch.domain.outcome import Success, Usage, read_usage

_OPENAI_BODY = frozenset(
    {"id", "object", "created", "model", "choices", "usage", "service_tier", "system_fingerprint"}
)


@dataclass(slots=True)
class CallRecord:
    """One answered call. `head` is its body without choices; `usage` the mended usage object."""

    indices: tuple[int, ...]
    head: dict[str, Any]
    usage: dict[str, Any] | None
    provider: str
    reask: bool = False
    seed: int | None = None
    request_id: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    latency_s: float = 0.0
    cost_usd: float | None = None

    @property
    def billed(self) -> Usage:
        return read_usage(self.usage)

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> CallRecord:
        return cls(**{**stored, "indices": tuple(stored["indices"])})


def record_call(
    success: Success,
    usage: dict[str, Any] | None,
    provider: str,
    indices: tuple[int, ...],
    *,
    reask: bool,
    seed: int | None,
) -> CallRecord:
    head = {key: value for key, value in success.data.items() if key != "choices"}
    return CallRecord(
        indices,
        head,
        usage,
        provider,
        reask,
        seed,
        success.request_id,
        dict(success.headers),
        success.latency_s,
        success.cost_usd,
    )


def merge_body(
    records: Sequence[CallRecord], sources: Mapping[int, int], choices: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """`sources`: choice index → the record it came from. The first choice's call gives id and model."""
    kept = [records[place] for place in sorted(set(sources.values()))]
    first = records[sources[0]]
    fingerprints = {record.head.get("system_fingerprint") for record in kept}
    body: dict[str, Any] = {
        "id": first.head.get("id") or first.request_id or "",
        "object": "chat.completion",
        "created": max(_integer(record.head.get("created")) for record in kept),
        "model": first.head.get("model") or "",
        "choices": list(choices),
    }
    body |= {key: value for key, value in first.head.items() if key in _OPENAI_BODY and key not in body}
    if len(kept) == 1:
        body |= {key: value for key, value in first.head.items() if key not in _OPENAI_BODY}
    else:
        body["system_fingerprint"] = fingerprints.pop() if len(fingerprints) == 1 else None
    usage = _merge_usage(records, kept)
    if usage is not None:
        body["usage"] = usage
    return body


def describe_calls(records: Sequence[CallRecord]) -> list[dict[str, Any]]:
    """Each call of a line that took several: who answered, and the keys that only it had."""
    described = []
    for record in records:
        entry: dict[str, Any] = {"choices": list(record.indices), "id": record.head.get("id")}
        entry["model"] = record.head.get("model")
        if record.head.get("system_fingerprint") is not None:
            entry["system_fingerprint"] = record.head["system_fingerprint"]
        if record.seed is not None:
            entry["seed"] = record.seed
        if record.reask:
            entry["reask"] = True
        if record.request_id is not None:
            entry["request_id"] = record.request_id
        if record.headers:
            entry["headers"] = record.headers
        own = {key: value for key, value in record.head.items() if key not in _OPENAI_BODY}
        if own:
            entry["body"] = own
        described.append(entry)
    return described


def _merge_usage(records: Sequence[CallRecord], kept: Sequence[CallRecord]) -> dict[str, Any] | None:
    """OpenAI's counting: the prompt once (as the first call had it), completions of what was kept."""
    usages = [record.usage for record in kept if record.usage is not None]
    if not usages:
        return None
    prompt_usage = next((record.usage for record in records if record.usage is not None), usages[0])
    prompt = _integer(prompt_usage.get("prompt_tokens"))
    completion = sum(_integer(usage.get("completion_tokens")) for usage in usages)
    merged = {**usages[0], "prompt_tokens": prompt, "completion_tokens": completion}
    merged["total_tokens"] = prompt + completion
    if isinstance(prompt_usage.get("prompt_tokens_details"), dict):
        merged["prompt_tokens_details"] = prompt_usage["prompt_tokens_details"]
    details = [usage.get("completion_tokens_details") for usage in usages]
    found = [entry for entry in details if isinstance(entry, dict)]
    if found:
        merged["completion_tokens_details"] = _sum_details(found)
    return merged


def _sum_details(details: Sequence[dict[str, Any]]) -> dict[str, Any]:
    names = dict.fromkeys(name for entry in details for name in entry)
    return {name: sum(_integer(entry.get(name)) for entry in details) for name in names}


def _integer(value: Any) -> int:
    return value if type(value) is int else 0
