"""A line that kills every process that touches it, with real workers that really die."""

from __future__ import annotations

import pytest

from tests.harness.mill import Mill, running_mill
from tests.harness.waiting import eventually
from tests.harness.worlds import load, read_lines, request_line
from workers.sweeps import run_sweep

LINES = [request_line("bad", model="sim-1", content="POISON"), request_line("good", model="sim-1")]


def tend(mill: Mill) -> None:
    """What a supervisor and the sweeps do, without their waits."""
    mill.workers = [worker if worker.is_running() else mill.start_worker("calls") for worker in mill.workers]
    run_sweep("expire_leases", mill.world, "test")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_line_that_kills_its_workers_ends_as_worker_lost_while_its_neighbour_completes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Three crashes halve their common slice; three more of its own give the culprit up; nothing else is lost."""
    monkeypatch.setenv("CHAOS_DIE_ON", "POISON")
    with running_mill({"sim": {}}, LEASE_S=2.0, RENEW_EVERY_S=0.6) as mill:
        batch = mill.submit(LINES)
        eventually(lambda: tend(mill) or load(mill.world, batch).completed_at, 150, every_s=0.2, what="the end")
        [answered] = mill.output(batch)
        [failed] = read_lines(mill.world, load(mill.world, batch), "error") or []
        assert (answered["custom_id"], failed["custom_id"]) == ("good", "bad")
        assert (failed["error"]["code"], failed["response"]) == ("worker_lost", None)
        assert mill.calls(), "the neighbour was called"
