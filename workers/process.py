"""What this worker process is: a pump for calls, or hands for jobs. One of each at most, made late.

Owns: the process-wide object that tasks and Celery's steps meet at. A fork starts anew: connections are
never carried over.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence

from batch.settings import Settings
from workers.jobs import Jobs
from workers.runtime import CallsRuntime


class WorkerProcess:
    """`serve_calls` starts the pump; `jobs` opens its world when a job first needs it."""

    def __init__(self, settings: Settings) -> None:
        self.pid = os.getpid()
        self.settings = settings
        self._lock = threading.Lock()
        self._calls: CallsRuntime | None = None
        self._jobs: Jobs | None = None

    def serve_calls(self, queues: Sequence[str]) -> None:
        self._calls = CallsRuntime(self.settings, queues)
        self._calls.start()

    def ring(self, lane_id: int) -> None:
        """A lane's bell; without a pump here it is dropped, the pumps look by themselves."""
        if self._calls is not None:
            self._calls.ring(lane_id)

    @property
    def jobs(self) -> Jobs:
        with self._lock:
            if self._jobs is None:
                self._jobs = Jobs(self.settings)
            return self._jobs

    def begin_stop(self) -> None:
        """SIGTERM has come: nothing new. Returns at once."""
        for part in (self._calls, self._jobs):
            if part is not None:
                part.begin_stop()

    def stop(self) -> None:
        """End in order; within drain_s."""
        for part in (self._calls, self._jobs):
            if part is not None:
                part.stop()


_process: WorkerProcess | None = None


def configure(settings: Settings) -> None:
    """Make this process's object; workers.app does when it is imported. Nothing is opened yet."""
    global _process
    _process = WorkerProcess(settings)


def current() -> WorkerProcess:
    """This process's object; a forked child gets its own."""
    assert _process is not None, "workers.app configures the process before anything runs in it"
    if _process.pid != os.getpid():
        configure(_process.settings)
    return _process
