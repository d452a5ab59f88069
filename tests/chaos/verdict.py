"""The judgement: what was promised against what came out, with the upstream's own log as the witness."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.history import History
from tests.chaos.story import ENDED, Told, Users

STOP_WITHIN_S = 3.0  # two for the workers to see it, one for a call on its way through a busy machine
NEVER_RUN = {"batch_cancelled", "batch_expired"}


@dataclass(frozen=True, slots=True)
class Seen:
    """One call as the upstream saw it. `usable`: it was answered, and the answer could be used."""

    time: float
    caller: str
    usable: bool


@dataclass
class Verdict:
    """Counts of what must be zero, with the first examples; and what was seen."""

    seen: dict[str, int | str] = field(default_factory=dict)
    wrong: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    causes: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)

    KINDS = (
        "lines lost", "lines duplicated", "counts that disagree", "answers nobody gave",
        "acknowledged operations undone", "calls repeated without a cause", "calls after a stop",
        "budgets overrun", "batches stuck", "processes leaked", "invariants broken",
    )  # fmt: skip

    @property
    def is_clean(self) -> bool:
        return not any(self.wrong.values())

    def table(self) -> str:
        rows = [*self.seen.items(), *((kind, len(self.wrong[kind])) for kind in self.KINDS)]
        table = "\n".join(f"| {name} | {count} |" for name, count in rows)
        causes = ", ".join(f"{name} {count}" for name, count in sorted(self.causes.items())) or "none"
        examples = "".join(f"\n{kind}: {items[:5]}" for kind, items in self.wrong.items() if items)
        return f"| what | count |\n|---|---|\n{table}\nrepeats by cause: {causes}{examples}"


def judge(users: Users, witness_log: Path, history: History) -> Verdict:
    verdict = Verdict()
    calls = read_witness(witness_log)
    for told in users.batches:
        _judge_batch(verdict, users, told, calls)
    slowest = _judge_calls(verdict, users.batches, calls, history)
    verdict.wrong["acknowledged operations undone"] += users.twins
    verdict.wrong["budgets overrun"] += [
        f"{told.batch_id} by ${told.overrun_usd:.6f}"
        for told in users.batches
        if told.overrun_usd > 0.25 * told.request["options"].get("budget_usd", 0.0)
    ]
    usable = [(name, call) for name, seen in calls.items() for call in seen if call.usable]
    at_risk = sum(history.explains(call.caller, call.time) is not None for _, call in usable)
    verdict.seen = {
        "batches run": ", ".join(f"{count} {status}" for status, count in sorted(verdict.ends.items())),
        "lines": sum(len(told.custom_ids) for told in users.batches),
        "operations acknowledged": sum(users.done.values()),
        "calls upstream": sum(len(seen) for seen in calls.values()),
        "lines answered": verdict.causes.pop("answered", 0),
        "calls in flight or not yet committed at a fault": at_risk,
        "calls repeated (at most those)": sum(verdict.causes.values()),
        "slowest last call after a cancel, pause or deadline": f"{slowest:.1f} s",
    }
    return verdict


def read_witness(log: Path) -> dict[str, list[Seen]]:
    """custom_id → its calls in order of arrival."""
    calls: dict[str, list[Seen]] = defaultdict(list)
    for row in log.read_bytes().splitlines():
        record: dict[str, Any] = json.loads(row)
        name = record["parameters"].get("mlx:end_user")
        if name:
            usable = record["status"] == 200 and record["fault"] is None
            calls[name].append(Seen(record["time"], record["key"][-4:], usable))
    for seen in calls.values():
        seen.sort(key=lambda call: call.time)
    return calls


def _judge_batch(verdict: Verdict, users: Users, told: Told, calls: dict[str, list[Seen]]) -> None:
    batch = users.client.batches.retrieve(told.batch_id)
    verdict.ends[batch.status] += 1
    if batch.status not in ENDED:
        verdict.wrong["batches stuck"].append(f"{told.batch_id} {batch.status}")
        return
    where = f"{told.batch_id} ({batch.status})"
    if told.sha256 and hashlib.sha256(users.read(told.file_id)).hexdigest() != told.sha256:
        verdict.wrong["acknowledged operations undone"].append(f"{told.file_id} changed")
    if told.cancelled and batch.status != "cancelled":
        verdict.wrong["acknowledged operations undone"].append(f"{where} was cancelled")
    done, errors = _rows(users, batch.output_file_id), _rows(users, batch.error_file_id)
    _judge_lines(verdict, where, told, done, errors)
    run = [row for row in errors if (row["error"] or {}).get("code") not in NEVER_RUN]
    verdict.causes["answered"] += len(done)
    counts = batch.request_counts
    assert counts is not None
    if (counts.completed, counts.failed, counts.total) != (len(done), len(run), len(told.custom_ids)):
        verdict.wrong["counts that disagree"].append(f"{where} {counts}, but files {len(done)} and {len(run)}")
    if batch.in_progress_at and sorted(_names(users.partial_results(told.batch_id))) != sorted(_names(done + run)):
        verdict.wrong["counts that disagree"].append(f"{where}: the cursor shows other lines than the files")
    verdict.wrong["answers nobody gave"] += [
        f"{where} {name}" for name in _names(done) if not any(call.usable for call in calls.get(name, ()))
    ]


def _judge_lines(
    verdict: Verdict, where: str, told: Told, done: list[dict[str, Any]], errors: list[dict[str, Any]]
) -> None:
    seen = Counter(_names([*done, *errors]))
    verdict.wrong["lines lost"] += [f"{where} {name}" for name in told.custom_ids if not seen[name]]
    verdict.wrong["lines lost"] += [f"{where} unknown {name}" for name in seen.keys() - set(told.custom_ids)]
    verdict.wrong["lines duplicated"] += [f"{where} {name}" for name, count in seen.items() if count > 1]
    for rows in (done, errors):
        order = {name: place for place, name in enumerate(told.custom_ids)}
        places = [order.get(name, -1) for name in _names(rows)]
        if places != sorted(places):
            verdict.wrong["counts that disagree"].append(f"{where}: a file is not in input order")


def _judge_calls(verdict: Verdict, told: list[Told], calls: dict[str, list[Seen]], history: History) -> float:
    """Each usable answer that was asked for again needs its own cause; none may come after a stop.

    A custom_id of a retried batch belongs, from the retry on, to the newest batch that has it. Returns how long
    after a stop the last call of any batch came, where its worker could know of it.
    """
    owners: dict[str, list[Told]] = defaultdict(list)
    for batch in sorted(told, key=lambda batch: batch.made_at):
        for name in batch.custom_ids:
            owners[name].append(batch)
    slowest = 0.0
    for name, batches in owners.items():
        for place, batch in enumerate(batches):
            until = batches[place + 1].made_at if place + 1 < len(batches) else float("inf")
            since = batch.made_at if place else 0.0
            mine = [call for call in calls.get(name, ()) if since <= call.time < until]
            _judge_repeats(verdict, name, [call for call in mine if call.usable], history)
            slowest = max(slowest, _judge_stops(verdict, name, batch, mine, history))
    return slowest


def _judge_repeats(verdict: Verdict, name: str, usable: list[Seen], history: History) -> None:
    for first, again in itertools.pairwise(usable):
        cause = history.explains(first.caller, first.time)
        if cause is None:
            verdict.wrong["calls repeated without a cause"].append(
                f"{name} by {first.caller} at {first.time:.2f}, again by {again.caller} at {again.time:.2f}"
            )
        verdict.causes[cause or "none"] += 1


def _judge_stops(verdict: Verdict, name: str, batch: Told, calls: list[Seen], history: History) -> float:
    slowest = 0.0
    for stop in batch.stops:
        for call in calls:
            if not stop.start < call.time < stop.end or history.is_blind(call.caller, stop.start, call.time):
                continue
            slowest = max(slowest, call.time - stop.start)
            if call.time - stop.start > STOP_WITHIN_S:
                late = f"{name} by {call.caller} {call.time - stop.start:.1f} s after a {stop.why} of {batch.batch_id}"
                verdict.wrong["calls after a stop"].append(late)
    return slowest


def _names(rows: list[dict[str, Any]]) -> list[str]:
    return [row["custom_id"] for row in rows]


def _rows(users: Users, file_id: str | None) -> list[dict[str, Any]]:
    return [json.loads(row) for row in users.read(file_id).split(b"\n") if row] if file_id else []
