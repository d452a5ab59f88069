"""The verdict is not vacuous: each kind of damage, planted in a small world of paper, is found by its name."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.chaos.history import History
from tests.chaos.story import Stop, Told
from tests.chaos.verdict import Verdict, judge

IDS = ["a", "b", "c"]


class Paper:
    """Users and service of one batch: a and b answered, c failed; change what should be wrong."""

    def __init__(self) -> None:
        self.told = Told("file-in", "", list(IDS), request={"options": {}}, batch_id="batch_1", made_at=1.0)
        self.batches, self.twins, self.done = [self.told], [], {"create": 1}  # type: ignore[var-annotated]
        self.status = "completed"
        self.counts = SimpleNamespace(completed=2, failed=1, total=3)
        self.output, self.errors = ["a", "b"], ["c"]
        self.cursor: list[str] | None = None
        self.calls = [("a", 10.0, "0001"), ("b", 10.1, "0001"), ("c", 10.2, "0001")]
        self.history = History()
        self.client = SimpleNamespace(batches=SimpleNamespace(retrieve=self.retrieve))

    def retrieve(self, _id: str) -> Any:
        return SimpleNamespace(status=self.status, output_file_id="out", error_file_id="err", in_progress_at=5,
                               request_counts=self.counts)  # fmt: skip

    def read(self, file_id: str) -> bytes:
        names = self.output if file_id == "out" else self.errors
        error = None if file_id == "out" else {"code": "attempts_exhausted"}
        return b"".join(json.dumps({"custom_id": name, "error": error}).encode() + b"\n" for name in names)

    def partial_results(self, _id: str) -> list[dict[str, Any]]:
        return [{"custom_id": name} for name in (self.cursor or [*self.output, *self.errors])]

    def judge(self, directory: Path) -> Verdict:
        log = directory / "witness"
        log.write_text("".join(json.dumps(
            {"time": time, "status": 200, "fault": None, "key": caller, "parameters": {"mlx:end_user": name}}
        ) + "\n" for name, time, caller in self.calls))  # fmt: skip
        return judge(self, log, self.history)  # type: ignore[arg-type]


def test_what_is_in_order_is_clean(tmp_path: Path) -> None:
    assert Paper().judge(tmp_path).is_clean


def lose(paper: Paper) -> None:
    paper.output.remove("b")


def double(paper: Paper) -> None:
    paper.errors.append("b")


def miscount(paper: Paper) -> None:
    paper.counts.completed = 1


def skip_in_cursor(paper: Paper) -> None:
    paper.cursor = ["a", "c"]


def disorder(paper: Paper) -> None:
    paper.output.reverse()


def invent(paper: Paper) -> None:
    del paper.calls[0]


def undo_cancel(paper: Paper) -> None:
    paper.told.cancelled = True


def make_twin(paper: Paper) -> None:
    paper.twins.append("key-1: two batches")


def repeat(paper: Paper) -> None:
    paper.calls.append(("a", 20.0, "0002"))
    paper.history.note("death", "0003", 10.5)  # of another worker


def repeat_long_after(paper: Paper) -> None:
    """Its caller died long after the answer: it was recorded by then."""
    paper.calls.append(("a", 60.0, "0002"))
    paper.history.note("death", "0001", 50.0)


def call_after_stop(paper: Paper) -> None:
    paper.told.stops.append(Stop("pause", 6.0))


def overrun(paper: Paper) -> None:
    paper.told.request["options"]["budget_usd"] = 1.0
    paper.told.overrun_usd = 0.5


def stick(paper: Paper) -> None:
    paper.status = "finalizing"


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        (lose, "lines lost"), (double, "lines duplicated"), (miscount, "counts that disagree"),
        (skip_in_cursor, "counts that disagree"), (disorder, "counts that disagree"), (invent, "answers nobody gave"),
        (undo_cancel, "acknowledged operations undone"), (make_twin, "acknowledged operations undone"),
        (repeat, "calls repeated without a cause"), (repeat_long_after, "calls repeated without a cause"),
        (call_after_stop, "calls after a stop"), (overrun, "budgets overrun"), (stick, "batches stuck"),
    ],
)  # fmt: skip
def test_planted_damage_is_found(damage: Any, kind: str, tmp_path: Path) -> None:
    """Each kind by its name."""
    paper = Paper()
    damage(paper)
    verdict = paper.judge(tmp_path)
    assert verdict.wrong[kind], verdict.table()


def test_a_repeat_after_its_callers_death_is_explained(tmp_path: Path) -> None:
    """In flight or not yet committed when its worker died: asked again, once, by another."""
    paper = Paper()
    paper.calls.append(("a", 20.0, "0002"))
    paper.history.note("death", "0001", 10.5)
    verdict = paper.judge(tmp_path)
    assert verdict.is_clean, verdict.table()
    assert verdict.causes["death"] == 1


def test_a_worker_that_could_not_know_of_a_stop_is_not_blamed(tmp_path: Path) -> None:
    paper = Paper()
    call_after_stop(paper)
    paper.history.note("database", "postgres", 5.0, 11.0)
    assert not paper.judge(tmp_path).wrong["calls after a stop"]
