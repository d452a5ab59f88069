"""The judgement: what was promised against what came out, with the upstream's own log as the witness."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.story import Told, Users

TERMINAL = {"completed", "failed", "expired", "cancelled"}


@dataclass
class Verdict:
    """Counts of what must be zero, with the first examples; and what was seen."""

    batches: int = 0
    lines: int = 0
    answered: int = 0
    faults: int = 0
    calls: int = 0
    repeated: int = 0
    wrong: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    KINDS = (
        "lines lost", "lines duplicated", "counts that disagree", "answers nobody gave",
        "acknowledged operations undone", "repeats without a death", "batches stuck", "processes leaked",
        "invariants broken",
    )  # fmt: skip

    @property
    def is_clean(self) -> bool:
        return not any(self.wrong.values())

    def table(self) -> str:
        rows = [("batches run", self.batches), ("lines", self.lines), ("lines answered", self.answered),
                ("faults injected", self.faults),
                ("calls upstream", self.calls), ("calls repeated after deaths", self.repeated)]  # fmt: skip
        rows += [(kind, len(self.wrong[kind])) for kind in self.KINDS]
        table = "\n".join(f"| {name} | {count} |" for name, count in rows)
        examples = "".join(f"\n{kind}: {items[:5]}" for kind, items in self.wrong.items() if items)
        return f"| what | count |\n|---|---|\n{table}{examples}"


def judge(users: Users, witness_log: Path, fault_times: list[float], faults: int) -> Verdict:
    verdict = Verdict(faults=faults)
    calls = _read_witness(witness_log)
    verdict.calls = sum(len(times) for times in calls.values())
    ends: dict[str, set[str]] = {}
    for told in users.batches:
        verdict.batches += 1
        verdict.lines += len(told.custom_ids)
        ends[told.batch_id] = _judge_batch(verdict, users, told, calls)
    _judge_repeats(verdict, users, calls, fault_times)
    return verdict


def _judge_batch(verdict: Verdict, users: Users, told: Told, calls: dict[str, list[float]]) -> set[str]:
    batch = users.client.batches.retrieve(told.batch_id)
    if batch.status not in TERMINAL:
        verdict.wrong["batches stuck"].append(f"{told.batch_id} {batch.status}")
        return set()
    if told.sha256 and hashlib.sha256(users.read(told.file_id)).hexdigest() != told.sha256:
        verdict.wrong["acknowledged operations undone"].append(f"{told.file_id} changed")
    if "cancelled" in told.acknowledged and batch.status != "cancelled":
        verdict.wrong["acknowledged operations undone"].append(f"{told.batch_id} cancelled, now {batch.status}")
    done = _rows(users, batch.output_file_id)
    errors = _rows(users, batch.error_file_id)
    seen = Counter(row["custom_id"] for row in [*done, *errors])
    where = f"{told.batch_id} ({batch.status})"
    verdict.wrong["lines lost"] += [f"{where} {name}" for name in told.custom_ids if not seen[name]]
    verdict.wrong["lines lost"] += [f"{where} unknown {name}" for name in seen.keys() - set(told.custom_ids)]
    verdict.wrong["lines duplicated"] += [f"{where} {name}" for name, count in seen.items() if count > 1]
    never_run = [row for row in errors if (row["error"] or {}).get("code") in {"batch_cancelled", "batch_expired"}]
    verdict.answered += len(done)
    counts = batch.request_counts
    assert counts is not None
    expected = (len(done), len(errors) - len(never_run))
    if (counts.completed, counts.failed) != expected or counts.total not in {len(told.custom_ids), 0}:
        verdict.wrong["counts that disagree"].append(f"{where} {counts} but files {expected}")
    verdict.wrong["answers nobody gave"] += [
        f"{where} {row['custom_id']}" for row in done if not calls.get(row["custom_id"])
    ]
    return set(seen)


def _judge_repeats(
    verdict: Verdict, users: Users, calls: dict[str, list[float]], fault_times: list[float]
) -> None:
    """A line answered again without any death since its last answer was paid for in vain."""
    runs = Counter(name for told in users.batches for name in told.custom_ids)
    for name, times in calls.items():
        allowed = max(1, runs[name])  # a retried batch may ask again
        extra = sorted(times)[allowed:]
        verdict.repeated += len(extra)
        first = sorted(times)[0]
        verdict.wrong["repeats without a death"] += [
            f"{name} at {again:.1f}"
            for again in extra
            if not any(first - 1 <= fault <= again + 1 for fault in fault_times)
        ]


def _read_witness(log: Path) -> dict[str, list[float]]:
    """custom_id → the times of calls that were answered 200 with an answer that can be used."""
    calls: dict[str, list[float]] = defaultdict(list)
    for row in log.read_bytes().splitlines():
        record: dict[str, Any] = json.loads(row)
        name = record["parameters"].get("mlx:end_user")
        if name and record["status"] == 200 and record["fault"] is None:
            calls[name].append(record["time"])
    return calls


def _rows(users: Users, file_id: str | None) -> list[dict[str, Any]]:
    return [json.loads(row) for row in users.read(file_id).split(b"\n") if row] if file_id else []
