"""Sweeps: each finds one kind of thing that got stuck, and returns what it did in words.

Owns: the table of sweeps with their periods, and the loops around their bounded passes. By whom they are run
is the matter of jobs.py and storage.sweeps. May not touch: slices under a live lease.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from batch.completions.output_line import own_error_line
from batch.domain.ids import line_id
from batch.domain.result import LineResult
from batch.operations.dedupe import answer_due_copies
from batch.operations.deliver_webhooks import deliver_webhooks
from batch.operations.end_batches import end_due_batches, ring_waiting
from batch.operations.retention import expire_files, purge_ended_batches, remove_deleted_bytes, sweep_orphan_blobs
from batch.operations.world import World
from batch.providers.catalog import Hop
from batch.storage.jobs import Job, free_jobs_of
from batch.storage.lanes import get_lanes
from batch.storage.rescues import (
    close_resolved,
    cut_missing_lines,
    end_leftovers,
    expire_leases,
    hop_slices,
    recount_lanes,
    stranded_batches,
    take_doomed,
    wake_slices,
)
from batch.storage.results import record_group
from batch.storage.watch import LanePause, claimable_lanes, paused_lanes, watch_pauses
from batch.storage.workers import forget_dead_workers
from batch.telemetry import emit
from workers.life import find_ended, forget_ended

PASSES = 50  # of one sweep before others have their turn
LOST_MESSAGE = "The line was given up: every worker process that worked on it died."


def run_sweep(name: str, world: World, owner: str) -> str:
    """Run one sweep to its end or its bound; what it did, for people. Raises KeyError for an unknown name."""
    return _TABLE[name][1](world, owner)


def _expire_leases(world: World, owner: str) -> str:
    expired = _repeat(lambda: expire_leases(world.db))
    for name, sign in find_ended(world.settings.resolved_database_url):
        freed = _repeat(partial(expire_leases, world.db, dead=name)) + free_jobs_of(world.db, name)
        if not freed:  # else a claim of its last moment may still land: look once more
            forget_ended(sign)
        expired += freed
    if expired:
        emit("lease_lost", reason="expired", slices=expired)
    return f"expired {expired}, gave up {_give_up_doomed(world, owner)} lines"


def _give_up_doomed(world: World, owner: str) -> int:
    """Lines that killed their worker three times alone fail with worker_lost, under a lease of our own."""
    rows = [
        LineResult(
            doomed.batch_id, doomed.line, doomed.custom_id, False,
            own_error_line(
                line_id(doomed.batch_public_id, doomed.line), doomed.custom_id, "worker_lost", LOST_MESSAGE,
                output_ascii=world.settings.output_ascii,
            ),
            "worker_lost", facts=("failed:worker_lost",), cost_usd=0.0, slice_id=doomed.slice_id, epoch=doomed.epoch,
        )
        for doomed in take_doomed(world.db, owner)
    ]  # fmt: skip
    if rows:
        report = record_group(world.db, rows, owner)
        for batch_id in report.sealed_batches:
            world.bells.finalize(batch_id)
    return len(rows)


def _ring_jobs(world: World, owner: str) -> str:
    return f"rang {ring_waiting(world, Job.INGEST)} ingests, {ring_waiting(world, Job.FINALIZE)} finalizes"


def _hop_slices(world: World, owner: str) -> str:
    with world.db.read() as conn:
        pauses = watch_pauses(conn, paused_lanes(conn))
        lanes = {lane.id: lane for lane in get_lanes(conn)} if pauses else {}

    def may_move(route: Sequence[int], *, pause: LanePause) -> bool:
        """A failure moves lines at once; a rate limit only where the route says after how long a wait."""
        if not (pause.code or "").startswith("rate_"):
            return True
        hops = [Hop(lanes[lane_id].provider, lanes[lane_id].model) for lane_id in route]
        wait_s = world.catalog.fallback_wait_s(hops)
        return wait_s is not None and pause.left_s >= wait_s

    moves = (partial(hop_slices, world.db, pause.lane_id, may_move=partial(may_move, pause=pause)) for pause in pauses)
    return f"moved {sum(_repeat(move) for move in moves)}"


def _ring_lanes(world: World, owner: str) -> str:
    with world.db.read() as conn:
        ready = claimable_lanes(conn)
        rows = get_lanes(conn, ready) if ready else []
    for row in rows:
        world.bells.drain(row.id, row.queue)
    return f"rang {len(rows)}"


def _mend_slices(world: World, owner: str) -> str:
    closed = after = 0
    for _ in range(PASSES):
        more, after = close_resolved(world.db, after_id=after)
        closed += more
        if not after:
            break
    with world.db.read() as conn:
        stranded = stranded_batches(conn)
    cut = sum(cut_missing_lines(world.db, batch_id) for batch_id in stranded)
    return f"closed {closed}, cut {cut} lines anew, forgot {end_leftovers(world.db)} leftovers"


def _deliver_webhooks(world: World, owner: str) -> str:
    delivered = failed = 0
    for _ in range(PASSES):
        report = deliver_webhooks(world)
        delivered, failed = delivered + report.delivered, failed + report.failed
        if not report.more:
            break
    return f"delivered {delivered}, failed {failed}"


def _forget_workers(world: World, owner: str) -> str:
    with world.db.write() as conn:
        return f"forgot {forget_dead_workers(conn)}"


def _repeat(one_pass: Callable[[], int]) -> int:
    """Passes until one finds nothing, within the bound."""
    total = 0
    for _ in range(PASSES):
        done = one_pass()
        total += done
        if not done:
            break
    return total


# name → seconds between two passes, and one pass by (world, owner); a row of `sweeps` each
_TABLE: dict[str, tuple[float, Callable[[World, str], str]]] = {
    # seal cancelled and overdue batches that are quiet
    "end_batches": (1.0, lambda world, _: f"sealed {end_due_batches(world)}"),
    # slices of dead workers; worker_lost
    "expire_leases": (5.0, _expire_leases),
    # ingests and finalizes that nobody does
    "ring_jobs": (10.0, _ring_jobs),
    # waiting times that are over
    "wake_slices": (5.0, lambda world, _: f"woke {_repeat(lambda: wake_slices(world.db))}"),
    # ready slices of paused lanes to the next provider
    "hop_slices": (10.0, _hop_slices),
    # options.dedupe
    "answer_copies": (2.0, lambda world, _: f"answered {_repeat(lambda: answer_due_copies(world))}"),
    # lost bells
    "ring_lanes": (20.0, _ring_lanes),
    # ready slices without open lines, lines without a slice
    "mend_slices": (30.0, _mend_slices),
    # advisory counters
    "recount_lanes": (30.0, lambda world, _: f"counted {recount_lanes(world.db)}"),
    "deliver_webhooks": (10.0, _deliver_webhooks),
    "expire_files": (30.0, lambda world, _: f"expired {_repeat(lambda: expire_files(world))}"),
    "remove_bytes": (60.0, lambda world, _: f"removed {_repeat(lambda: remove_deleted_bytes(world))}"),
    "purge_batches": (60.0, lambda world, me: f"purged {_repeat(lambda: purge_ended_batches(world, me))} rows"),
    "forget_workers": (300.0, _forget_workers),
    "sweep_blobs": (3600.0, lambda world, _: f"removed {sweep_orphan_blobs(world)}"),
}
SWEEPS = {name: every_s for name, (every_s, _) in _TABLE.items()}
