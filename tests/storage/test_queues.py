"""Lines of a provider with a queue of its own are rung there, and seen only by workers that serve it."""

from __future__ import annotations

from pathlib import Path

from batch.operations.bells import Bells
from batch.storage.lanes import get_lanes
from batch.storage.watch import claimable_lanes
from tests.harness.worlds import ingest, jsonl, make_world, request_line

PROVIDERS = {
    "cloud": {"base_url": "http://127.0.0.1:9/v1", "models": ["c"]},
    "cards": {"base_url": "http://127.0.0.1:9/v1", "models": ["g"], "queue": "gpu"},
}


class NamedBells(Bells):
    def __init__(self) -> None:
        self.rung: list[tuple[int, str]] = []

    def drain(self, lane_id: int, queue: str) -> None:
        self.rung.append((lane_id, queue))


def test_a_lane_belongs_to_its_providers_queue(database_url: str, tmp_path: Path) -> None:
    world = make_world(database_url, tmp_path, providers=PROVIDERS)
    world.bells = bells = NamedBells()
    ingest(world, jsonl([request_line("a", model="c"), request_line("b", model="g")]))
    with world.db.read() as conn:
        lanes = {lane.provider: lane.id for lane in get_lanes(conn)}
        seen = {queue: claimable_lanes(conn, [queue]) for queue in ("calls", "gpu", "nobody")}
    assert sorted(bells.rung) == sorted([(lanes["cloud"], "calls"), (lanes["cards"], "gpu")])
    assert seen == {"calls": [lanes["cloud"]], "gpu": [lanes["cards"]], "nobody": []}
    world.close()


def test_a_provider_that_moves_takes_its_open_lines_along(database_url: str, tmp_path: Path) -> None:
    """From the next batch on that asks for it."""
    world = make_world(database_url, tmp_path, providers=PROVIDERS)
    ingest(world, jsonl([request_line("b", model="g")]))
    world.close()
    moved = {**PROVIDERS, "cards": {**PROVIDERS["cards"], "queue": "gpu2"}}
    world = make_world(database_url, tmp_path, providers=moved)
    ingest(world, jsonl([request_line("b", model="g")]))
    with world.db.read() as conn:
        assert claimable_lanes(conn, ["gpu"]) == []
        assert len(claimable_lanes(conn, ["gpu2"])) == 1
    world.close()
