"""Bells: hints to the workers that there is work. Losing or doubling one costs time, never work.

Owns: task names, queues and how a message is sent. The database decides what there is to do; sweeps
ring again. May not import workers: tasks are rung by name.
"""

from __future__ import annotations

from celery import Celery

CALLS_QUEUE = "calls"
JOBS_QUEUE = "jobs"
BELL_EXPIRES_S = 60.0

TASK_DRAIN = "batchmill.drain"                  # lane_id           → queue of the lane
TASK_INGEST = "batchmill.ingest"                # batch_id          → jobs
TASK_FINALIZE = "batchmill.finalize"            # batch_id          → jobs
TASK_SWEEP = "batchmill.sweep"                  # sweep name        → jobs
TASK_DELIVER_WEBHOOKS = "batchmill.deliver_webhooks"  # no argument → jobs


class Bells:
    """Which bells there are. These ring nothing: for scripts and tests that run the work themselves."""

    def drain(self, lane_id: int, queue: str) -> None:
        self.ring(TASK_DRAIN, [lane_id], queue)

    def ingest(self, batch_id: int) -> None:
        self.ring(TASK_INGEST, [batch_id], JOBS_QUEUE)

    def finalize(self, batch_id: int) -> None:
        self.ring(TASK_FINALIZE, [batch_id], JOBS_QUEUE)

    def deliver_webhooks(self) -> None:
        self.ring(TASK_DELIVER_WEBHOOKS, [], JOBS_QUEUE)

    def ring(self, name: str, args: list[int], queue: str) -> None:
        """Send the hint."""


class CeleryBells(Bells):
    """Rings through the broker. A broker that is away is no error: the pumps and sweeps look by themselves."""

    def __init__(self, broker_url: str) -> None:
        self._app = Celery("batchmill-bells", broker=broker_url, set_as_current=False)
        self._app.conf.update(
            broker_connection_retry=False,
            broker_transport_options={
                "socket_timeout": 2.0,
                "socket_connect_timeout": 1.0,
                "retry_on_timeout": False,
                "max_retries": 0,  # of the connection: without it kombu tries for ever, and the request hangs
            },
            task_ignore_result=True,
            task_serializer="json",
            accept_content=["json"],
        )

    def ring(self, name: str, args: list[int], queue: str) -> None:
        try:
            self._app.send_task(
                name, args=args, queue=queue, expires=BELL_EXPIRES_S, ignore_result=True, retry=False
            )
        except Exception:  # the wall of bells: a lost hint costs seconds, a raised one would cost the request
            return


def celery_broker_url(redis_url: str) -> str:
    """Celery's spelling of a redis-py URL: unix:///path → redis+socket:///path."""
    if redis_url.startswith("unix://"):
        return "redis+socket://" + redis_url.removeprefix("unix://")
    return redis_url
