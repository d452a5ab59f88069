"""The Celery app: `celery -A workers.app worker` runs, `… beat` rings, Flower shows it.

Owns: Celery's configuration and the steps of a worker process. A queue whose name is `jobs` is served
without an event loop; every other one by a pump. Messages are bells: acked early, JSON, no results.
May not touch: what tasks do (tasks.py), what the processes do (runtime.py, jobs.py).
"""

from __future__ import annotations

import warnings
from typing import Any

from celery import Celery, signals
from celery.exceptions import SecurityWarning
from kombu.entity import Queue

from batch.operations.bells import BELL_EXPIRES_S, CALLS_QUEUE, JOBS_QUEUE, TASK_SWEEP, celery_broker_url
from batch.providers.catalog import Catalog
from batch.settings import Settings, load_settings
from batch.telemetry import configure_logs, serve_metrics
from workers import process
from workers.steps import WorkerStep
from workers.sweeps import SWEEPS

# Root is dangerous to workers that unpickle; ours take JSON only, and containers often run as root.
warnings.filterwarnings("ignore", "You're running the worker with superuser", SecurityWarning)

settings: Settings = load_settings()
process.configure(settings)
_QUEUES = {CALLS_QUEUE, JOBS_QUEUE} | {p.queue for p in Catalog.from_settings(settings).providers.values()}

app = Celery("batchmill", include=["workers.tasks"])
app.conf.update(
    broker_url=celery_broker_url(settings.resolved_redis_url),
    broker_connection_retry_on_startup=True,
    broker_transport_options={
        "socket_timeout": 30.0,
        "socket_connect_timeout": 5.0,
        "socket_keepalive": True,
        "health_check_interval": 15,
    },
    task_queues=[Queue(name, routing_key=name) for name in sorted(_QUEUES)],  # type: ignore[no-untyped-call]
    task_default_queue=JOBS_QUEUE,
    task_create_missing_queues=True,
    worker_pool="threads",
    worker_concurrency=2,
    worker_prefetch_multiplier=1,
    worker_enable_remote_control=True,
    worker_send_task_events=False,
    worker_hijack_root_logger=False,
    worker_cancel_long_running_tasks_on_connection_loss=False,
    worker_proc_alive_timeout=30.0,
    task_acks_late=False,
    task_ignore_result=True,
    task_serializer="json",
    accept_content=["json"],
    task_time_limit=None,
    beat_schedule={  # a convenience: every jobs worker ticks by its own timer too
        name: {
            "task": TASK_SWEEP,
            "schedule": max(5.0, every_s),
            "args": [name],
            "options": {"queue": JOBS_QUEUE, "expires": min(BELL_EXPIRES_S, max(5.0, every_s))},
        }
        for name, every_s in SWEEPS.items()
    },
    beat_max_loop_interval=5,
    task_annotations={"*": {"expires": BELL_EXPIRES_S}},
    timezone="UTC",
)
app.steps["worker"].add(WorkerStep)


@signals.setup_logging.connect  # type: ignore[untyped-decorator]
def _configure_logs(**_: Any) -> None:
    """Ours instead of Celery's."""
    configure_logs(settings.log_format, settings.log_level)


@signals.worker_ready.connect  # type: ignore[untyped-decorator]
def _serve_metrics(**_: Any) -> None:
    if settings.metrics_port is not None:
        serve_metrics(settings.metrics_port, settings.host)
