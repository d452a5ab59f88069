"""`python -m tests.chaos.child MODULE ARG…`: a product process under test conditions.

Shortens the numbers decided once (CHAOS_LEASE_S and so on), makes this process's wall clock jump by up to
CHAOS_CLOCK_S seconds, forwards and back, every few seconds, and dies of lines that hold CHAOS_DIE_ON. The
product's code is otherwise what ships.
"""

from __future__ import annotations

import os
import random
import runpy
import signal
import sys
import time
from typing import Any

from batch import settings
from batch.storage import jobs

_CONSTANTS = {
    "CHAOS_LEASE_S": "LEASE_S",
    "CHAOS_RENEW_EVERY_S": "RENEW_EVERY_S",
    "CHAOS_GIVE_BACK_ABOVE_S": "GIVE_BACK_ABOVE_S",
    "CHAOS_PROBE_EVERY_S": "PROBE_EVERY_S",
    "CHAOS_SHARE_EXPIRES_S": "SHARE_EXPIRES_S",
}


def shorten() -> None:
    """Before anything that copies them is imported; storage.jobs imports no settings."""
    for variable, constant in _CONSTANTS.items():
        if value := os.environ.get(variable):
            setattr(settings, constant, float(value))
    if value := os.environ.get("CHAOS_JOB_LEASE_S"):
        jobs.JOB_LEASE_S = float(value)


def make_clock_jump(span_s: float) -> None:
    """Replace time.time by one that is off by a random amount, drawn anew every five seconds of real time."""
    real, chance = time.time, random.Random(os.getpid())

    def jumping() -> float:
        now = real()
        chance.seed(int(now / 5) * 65_537 + os.getpid())
        return now + chance.uniform(-span_s, span_s)

    time.time = jumping


def make_deadly(text: bytes) -> None:
    """A line whose body holds `text` kills the process that begins with it."""
    from workers.executor import LineRun

    begin = LineRun.begin

    def deadly(self: LineRun, raw_body: bytes) -> Any:
        if text in raw_body:
            os.kill(os.getpid(), signal.SIGKILL)
        return begin(self, raw_body)

    LineRun.begin = deadly  # type: ignore[method-assign]


def main() -> None:
    shorten()
    if text := os.environ.get("CHAOS_DIE_ON"):
        make_deadly(text.encode())
    if span := float(os.environ.get("CHAOS_CLOCK_S", "0")):
        make_clock_jump(span)
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
