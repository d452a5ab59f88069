"""Logs and metrics, made by one call so that they cannot drift.

Owns: EVENTS (each event's level, log text and metrics), emit(), structlog's set-up, the registry.
May not touch: anything else of the project; every floor may import it.
Fields are ids, names, counts and seconds. Prompts, answers, bodies and keys are never fields.
"""

from __future__ import annotations

import errno
import logging
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST, start_http_server
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

REGISTRY = CollectorRegistry(auto_describe=True)
ProcessCollector(registry=REGISTRY)
PlatformCollector(registry=REGISTRY)
METRICS_CONTENT_TYPE = CONTENT_TYPE_LATEST
METRICS_PORTS = 256  # that the workers of one host may take, from metrics_port upwards

_FAST = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60)
_CALL = (0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300, 600)


def _counter(name: str, text: str, *labels: str) -> Counter:
    return Counter(name, text, labels, namespace="batchmill", registry=REGISTRY)


def _gauge(name: str, text: str, *labels: str) -> Gauge:
    return Gauge(name, text, labels, namespace="batchmill", registry=REGISTRY)


def _histogram(name: str, text: str, *labels: str, buckets: tuple[float, ...]) -> Histogram:
    return Histogram(name, text, labels, namespace="batchmill", registry=REGISTRY, buckets=buckets)


HTTP_REQUESTS = _counter("http_requests_total", "Answers of the API", "method", "route", "status")
HTTP_SECONDS = _histogram("http_request_seconds", "Time to the end of an answer", "route", buckets=_FAST)
LINES = _counter("lines_total", "Lines that ended, by outcome", "provider", "model", "outcome")
CALLS = _counter("calls_total", "Upstream calls, by what they came to", "provider", "model", "kind")
CALL_SECONDS = _histogram("call_seconds", "Time of an upstream call", "provider", "model", buckets=_CALL)
TOKENS = _counter("tokens_total", "Tokens as billed", "provider", "model", "direction")
COST = _counter("cost_usd_total", "Known cost of calls in US dollars", "provider", "model")
IN_FLIGHT = _gauge("in_flight_calls", "Upstream calls in flight", "provider", "model")
WINDOW = _gauge("window_calls", "Calls that may be in flight", "provider", "model")
PACE_SECONDS = _histogram("pace_wait_seconds", "Time a call waited for its turn", "provider", "model", buckets=_CALL)
PACE_USED = _gauge("limit_used_ratio", "Share of the known limits that is paced for", "provider", "model")
ESTIMATE_ERROR = _gauge(
    "estimate_error_ratio", "Mean relative error of token estimates", "provider", "model", "direction"
)
RATE_LIMITED = _counter("rate_limited_total", "429 answers from a provider", "provider", "model", "kind")
REPAIRS = _counter("repairs_total", "Answers mended or asked again", "kind")
LANE_PAUSES = _counter("lane_pauses_total", "Pauses of a provider and model", "provider", "model", "code")
LEASES_LOST = _counter("leases_lost_total", "Slices lost by their holder", "reason")
RESULTS_DROPPED = _counter("results_dropped_total", "Results that came too late to be kept", "reason")
GROUPS = _histogram("record_group_rows", "Rows in one commit of results", buckets=(1, 5, 20, 50, 100, 200, 500, 1000))
RECORD_SECONDS = _histogram("record_seconds", "Time of one commit of results", buckets=_FAST)
BATCHES = _counter("batches_total", "Batches that reached a state", "status")
SWEEPS = _counter("sweeps_total", "Passes of a sweep", "name", "outcome")
WEBHOOKS = _counter("webhook_deliveries_total", "Attempts to deliver a webhook", "event_type", "outcome")
FILES_BYTES = _counter("files_bytes_total", "Bytes of files moved by the API", "direction")
WAITING_LINES = _gauge("waiting_lines", "Lines ready to be called, by lane", "provider", "model")
LEASED_LINES = _gauge("leased_lines", "Lines held by a worker, by lane", "provider", "model")
OPEN_BATCHES = _gauge("open_batches", "Batches that have not ended", "status")
QUEUE_AGE = _gauge("queue_age_seconds", "Age of the oldest batch that has not ended")
PENDING_WEBHOOKS = _gauge("pending_webhook_deliveries", "Webhooks waiting to be delivered")
LIVE_WORKERS = _gauge("live_workers", "Worker processes with a recent heartbeat")


class Measure(NamedTuple):
    """One metric that an event moves. `by` names the field that holds the amount; without it, 1.

    Counters add, gauges set, histograms observe. `fixed` gives labels that are not fields.
    """

    metric: MetricWrapperBase
    by: str | None = None
    fixed: Mapping[str, str] = {}


class Event(NamedTuple):
    level: Literal["debug", "info", "warning", "error"]
    measures: tuple[Measure, ...] = ()


EVENTS: dict[str, Event] = {
    "http_answered": Event("debug", (Measure(HTTP_REQUESTS), Measure(HTTP_SECONDS, "seconds"))),
    "http_refused": Event("info", (Measure(HTTP_REQUESTS), Measure(HTTP_SECONDS, "seconds"))),
    "http_failed": Event("error"),
    "api_started": Event("info"),
    "metrics_served": Event("info"),
    "file_received": Event("info", (Measure(FILES_BYTES, "size_bytes", {"direction": "in"}),)),
    "file_sent": Event("info", (Measure(FILES_BYTES, "size_bytes", {"direction": "out"}),)),
    "webhook_delivered": Event("info", (Measure(WEBHOOKS, None, {"outcome": "delivered"}),)),
    "webhook_failed": Event("warning", (Measure(WEBHOOKS, None, {"outcome": "failed"}),)),
    "webhook_given_up": Event("error", (Measure(WEBHOOKS, None, {"outcome": "given_up"}),)),
    "batch_state": Event("info", (Measure(BATCHES),)),
    "lines_ended": Event("debug", (Measure(LINES, "lines"),)),
    "call_ended": Event("debug", (Measure(CALLS), Measure(CALL_SECONDS, "seconds"))),
    "tokens_billed": Event("debug", (
        Measure(TOKENS, "input_tokens", {"direction": "input"}),
        Measure(TOKENS, "output_tokens", {"direction": "output"}),
        Measure(COST, "cost_usd"),
    )),
    "attempt_failed": Event("error"),
    "circuit_changed": Event("warning"),
    "replica_out": Event("warning"),
    "replica_back": Event("info"),
    "engine_starting": Event("info"),
    "engine_says": Event("info"),
    "engine_ready": Event("info"),
    "engine_ended": Event("error"),
    "rate_limited": Event("info", (Measure(RATE_LIMITED),)),
    "pace_waited": Event("debug", (Measure(PACE_SECONDS, "seconds"),)),
    "lane_load": Event("debug", (
        Measure(IN_FLIGHT, "in_flight"),
        Measure(WINDOW, "window"),
        Measure(ESTIMATE_ERROR, "input_error", {"direction": "input"}),
        Measure(ESTIMATE_ERROR, "output_error", {"direction": "output"}),
    )),
    "limit_used": Event("debug", (Measure(PACE_USED, "ratio"),)),
    "pacing_alone": Event("warning"),
    "pacing_shared": Event("info"),
    "lane_paused": Event("warning", (Measure(LANE_PAUSES),)),
    "lane_resumed": Event("info"),
    "answers_repaired": Event("debug", (Measure(REPAIRS, "answers"),)),
    "lease_lost": Event("warning", (Measure(LEASES_LOST),)),
    "results_recorded": Event("debug", (Measure(GROUPS, "rows"), Measure(RECORD_SECONDS, "seconds"))),
    "result_dropped": Event("warning", (Measure(RESULTS_DROPPED),)),
    "sweep_done": Event("debug", (Measure(SWEEPS, None, {"outcome": "done"}),)),
    "sweep_failed": Event("error", (Measure(SWEEPS, None, {"outcome": "failed"}),)),
    "conservation_broken": Event("error"),
    "storage_retry": Event("warning"),
    "worker_started": Event("info"),
    "worker_stopped": Event("info"),
}

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_threshold = _LEVELS["info"]
_log: Any = structlog.get_logger("batchmill")


def emit(name: str, /, **fields: Any) -> None:
    """Log the event and move its metrics. Unknown names raise KeyError: an event stands in EVENTS first.

    Labels are taken from fields of the same name; a field that a metric needs and that is None is skipped.
    """
    event = EVENTS[name]
    for measure in event.measures:
        amount = 1 if measure.by is None else fields.get(measure.by)
        if amount is not None:
            _mover(measure, fields)(amount)
    if _LEVELS[event.level] >= _threshold:
        getattr(_log, event.level)(name, **fields)


def bind(name: str, /, **labels: Any) -> Callable[..., None]:
    """emit(name, **labels, …) for hot paths: the metrics are looked up once. Call it with the other fields."""
    event = EVENTS[name]
    moves = [(_mover(measure, labels), measure.by) for measure in event.measures]
    is_logged = _LEVELS[event.level] >= _threshold

    def move(**fields: Any) -> None:
        for apply, by in moves:
            amount = 1 if by is None else fields.get(by)
            if amount is not None:
                apply(amount)
        if is_logged:
            getattr(_log, event.level)(name, **labels, **fields)

    return move


def _mover(measure: Measure, fields: Mapping[str, Any]) -> Callable[[float], None]:
    """What moves the metric that has these labels."""
    metric: Any = measure.metric
    if names := metric._labelnames:  # prometheus_client has no public name for it
        labels = {**fields, **measure.fixed}
        metric = metric.labels(*(str(labels.get(name, "")) for name in names))
    verb = {Counter: "inc", Gauge: "set", Histogram: "observe"}[type(measure.metric)]
    move: Callable[[float], None] = getattr(metric, verb)
    return move


def configure_logs(log_format: str = "console", log_level: str = "info") -> None:
    """Structured lines on stderr, ours and the libraries'; call once at the start of a process."""
    global _threshold
    _threshold = _LEVELS[log_level]
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        redact_secrets,
    ]
    renderer: Any = structlog.processors.JSONRenderer()
    if log_format == "console":
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(_threshold),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processor=renderer, foreign_pre_chain=shared))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(_threshold, logging.INFO))
    for name in _CHATTY + (() if log_level == "debug" else _BELLS):
        logging.getLogger(name).setLevel(logging.WARNING)


_CHATTY = ("httpx", "httpcore", "kombu", "celery.redirected", "sqlalchemy", "python_multipart", "alembic")
_BELLS = ("celery.beat", "celery.worker.strategy", "celery.app.trace")  # a line per message, several a second


_KEYLIKE = re.compile(r"\b(sk-|xai-|bm_|gsk_|whsec_|Bearer )[A-Za-z0-9_\-+/=.]{8,}")


def redact_secrets(_logger: Any, _method: str, event: dict[str, Any]) -> dict[str, Any]:
    """A last net: texts that look like keys lose everything after their prefix."""
    for key, value in event.items():
        if isinstance(value, str) and _KEYLIKE.search(value):
            event[key] = _KEYLIKE.sub(r"\1***", value)
    return event


def render_metrics() -> bytes:
    """This process's metrics in the Prometheus text format."""
    return generate_latest(REGISTRY)


def serve_metrics(port: int, host: str = "127.0.0.1") -> int:
    """Answer scrapes from a thread of its own; for workers, the API serves /metrics itself. Returns the port:
    the first free one from `port` upwards, since the processes of one host share the setting."""
    for candidate in range(port, min(port + METRICS_PORTS, 65_536)):
        try:
            start_http_server(candidate, addr=host, registry=REGISTRY)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
        else:
            emit("metrics_served", host=host, port=candidate)
            return candidate
    raise OSError(errno.EADDRINUSE, f"no free port for metrics from {port} on")
