"""Celery's start and stop of a worker process, turned into ours.

Owns: WorkerStep — which kind of process this is by its queues, the refusal of pools that fork or block,
the jobs child of a worker that serves everything, draining on shutdown.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Any

from celery import bootsteps, signals
from celery.exceptions import ImproperlyConfigured

from batch.operations.bells import JOBS_QUEUE
from batch.settings import process_environment
from workers import process

_POOL_HINT = (
    "calls are made by one event loop in this process, beside Celery's threads: start the worker with "
    "--pool threads (the default of `celery -A workers.app worker`)"
)


class WorkerStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """Runs after the pool is there and before messages come in; stops after the consumer has stopped."""

    requires = {"celery.worker.components:Pool"}  # noqa: RUF012 - Celery's own form

    def __init__(self, worker: Any, **_: Any) -> None:
        self._drain_s = process.current().settings.drain_s
        self._child: subprocess.Popen[bytes] | None = None
        self._tether: int | None = None

    def create(self, worker: Any) -> Any:
        return self

    def start(self, worker: Any) -> None:
        queues = sorted(worker.app.amqp.queues.consume_from)
        calls = [name for name in queues if name != JOBS_QUEUE]
        if calls:
            _require_threads(worker)
            if JOBS_QUEUE in queues:
                worker.app.amqp.queues.deselect([JOBS_QUEUE])
                self._start_jobs_child(worker)
            process.current().serve_calls(calls)
        else:
            process.current().jobs.start_timer()
        signals.worker_shutting_down.connect(_begin_stop, weak=False)

    def stop(self, worker: Any) -> None:
        """SIGTERM, and the consumer has stopped: drain within drain_s."""
        if self._child is not None:
            self._child.send_signal(signal.SIGTERM)
        process.current().stop()
        if self._child is not None:
            self._end_jobs_child()

    def terminate(self, worker: Any) -> None:
        self.stop(worker)

    def _start_jobs_child(self, worker: Any) -> None:
        """A plain worker serves both kinds of queue: the jobs in a process of their own, tied to this one."""
        read_end, self._tether = os.pipe()
        command = [
            sys.executable, "-m", "batch.cli.tethered", str(read_end), str(self._drain_s + 5),
            "celery", "-q", "-A", "workers.app", "worker", "-Q", JOBS_QUEUE, "-P", "threads", "-c", "2",
            "-n", f"jobs-of-{worker.hostname.partition('@')[0]}@%h", "--without-gossip", "--without-mingle",
        ]  # fmt: skip
        self._child = subprocess.Popen(  # noqa: S603 - our own command
            command, env=process_environment(), pass_fds=(read_end,), stdin=subprocess.DEVNULL, start_new_session=True
        )
        os.close(read_end)

    def _end_jobs_child(self) -> None:
        assert self._child is not None
        try:
            self._child.wait(self._drain_s + 5)
        except subprocess.TimeoutExpired:
            os.killpg(self._child.pid, signal.SIGKILL)
            self._child.wait()
        if self._tether is not None:
            os.close(self._tether)


def _begin_stop(**_: Any) -> None:
    """The signal has just come: claims stop now, not only when Celery's own parts have ended."""
    process.current().begin_stop()


def _require_threads(worker: Any) -> None:
    name = worker.pool_cls.__module__.rpartition(".")[2]
    if name != "thread":
        raise ImproperlyConfigured(f"the pool {name} cannot serve {', '.join(worker.app.amqp.queues)}: {_POOL_HINT}")
