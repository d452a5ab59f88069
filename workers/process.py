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
        self._settings = settings
        self._lock = threading.Lock()
        self._calls: CallsRuntime | None = None
        self._jobs: Jobs | None = None

    def serve_calls(self, queues: Sequence[str]) -> None:
        self._calls = CallsRuntime(self._settings, queues)
        self._calls.start()

    def ring(self, lane_id: int) -> None:
        """A lane's bell; without a pump here it is dropped, the pumps look by themselves."""
        if self._calls is not None:
            self._calls.ring(lane_id)

    @property
    def jobs(self) -> Jobs:
        with self._lock:
            if self._jobs is None:
                self._jobs = Jobs(self._settings)
            return self._jobs

    def begin_stop(self) -> None:
        """SIGTERM has come: nothing new. Returns at once."""
        if self._calls is not None:
            self._calls.begin_stop()
        if self._jobs is not None:
            self._jobs.begin_stop()

    def stop(self) -> None:
        """End in order; within drain_s."""
        if self._calls is not None:
            self._calls.stop()
        if self._jobs is not None:
            self._jobs.stop()


_process: WorkerProcess | None = None
_settings: Settings | None = None


def configure(settings: Settings) -> None:
    """Remember the settings with which this process, or a child forked from it, will be made."""
    global _settings
    _settings = settings


def configured() -> Settings:
    """The settings given to configure(); workers.app gives them when it is imported."""
    assert _settings is not None, "workers.app configures the process before anything runs in it"
    return _settings


def current() -> WorkerProcess:
    """This process's object; a forked child gets its own."""
    global _process
    if _process is None or _process.pid != os.getpid():
        _process = WorkerProcess(configured())
    return _process
