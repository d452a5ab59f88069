"""What beat rings. Every jobs worker ticks by its own timer too: beats are a convenience, not a need.

Owns: the names and periods of the sweeps.
"""

from __future__ import annotations

from typing import Any

from batch.operations.bells import BELL_EXPIRES_S, JOBS_QUEUE, TASK_SWEEP

# name → seconds between two passes; a row of `sweeps` each
SWEEPS: dict[str, float] = {
    "end_batches": 1.0,         # seal cancelled and overdue batches that are quiet
    "expire_leases": 5.0,       # slices of dead workers; worker_lost
    "ring_jobs": 10.0,          # ingests and finalizes that nobody does
    "wake_slices": 5.0,         # waiting times that are over
    "hop_slices": 10.0,         # ready slices of paused lanes to the next provider
    "answer_copies": 2.0,       # options.dedupe
    "ring_lanes": 20.0,         # lost bells
    "mend_slices": 30.0,        # ready slices without open lines, lines without a slice
    "recount_lanes": 30.0,      # advisory counters
    "deliver_webhooks": 10.0,
    "expire_files": 30.0,
    "remove_bytes": 60.0,
    "purge_batches": 60.0,
    "forget_workers": 300.0,
    "sweep_blobs": 3600.0,
}


def beat_schedule() -> dict[str, Any]:
    """Celery's form: each sweep by name, never older than a minute."""
    return {
        name: {
            "task": TASK_SWEEP,
            "schedule": max(5.0, every_s),
            "args": [name],
            "options": {"queue": JOBS_QUEUE, "expires": min(BELL_EXPIRES_S, max(5.0, every_s))},
        }
        for name, every_s in SWEEPS.items()
    }
