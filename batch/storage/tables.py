"""The tables, once for SQLite and PostgreSQL.

Owns: names, types and every invariant that SQL can express. Migrations must equal this (tested).
Times are BIGINT milliseconds since the epoch, UTC, by the database's clock (engine.db_now).
Ids are bigint inside; `public_id` is the prefixed text that users see.
May not touch: queries; those live in the other files of batch/storage, one subject each.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from batch.domain.states import BatchStatus, SliceState

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# SQLite gives rowid keys only to INTEGER; both hold 64 bits.
BigId = sa.BigInteger().with_variant(sqlite.INTEGER(), "sqlite")
Json = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
Millis = sa.BigInteger
Money = sa.Float  # US dollars; 53 bits hold micro-dollars of billions


def _in(column: str, values: type[BatchStatus] | type[SliceState]) -> str:
    return f"{column} IN ({', '.join(repr(str(v)) for v in values)})"


def _partial(where: str, name: str, *columns: str, unique: bool = False) -> sa.Index:
    """An index over the rows that satisfy `where`."""
    return sa.Index(name, *columns, unique=unique, sqlite_where=sa.text(where), postgresql_where=sa.text(where))


def _counts(*names: str) -> list[sa.Column[int]]:
    return [sa.Column(name, sa.BigInteger, nullable=False, server_default="0") for name in names]


def _times(*names: str) -> list[sa.Column[int]]:
    """What may still be to come."""
    return [sa.Column(name, Millis) for name in names]


projects = sa.Table(
    "projects",
    metadata,
    sa.Column("id", BigId, primary_key=True),
    sa.Column("public_id", sa.Text, nullable=False, unique=True),
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("created_at", Millis, nullable=False),
    sa.Column("limits", Json, nullable=False),  # enqueued_requests, enqueued_tokens, storage_bytes, requests_per_minute
    sa.Column("allowed_providers", Json),  # null: all
    sa.Column("max_priority", sa.Text, nullable=False, server_default="high"),
)

api_keys = sa.Table(
    "api_keys",
    metadata,
    sa.Column("id", BigId, primary_key=True),
    sa.Column("public_id", sa.Text, nullable=False, unique=True),
    sa.Column("project_id", BigId, sa.ForeignKey("projects.id"), nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("key_hash", sa.Text, nullable=False, unique=True),  # SHA-256 of a 256-bit random key
    sa.Column("hint", sa.Text, nullable=False),  # the last four characters
    sa.Column("created_at", Millis, nullable=False),
    *_times("last_used_at", "revoked_at"),
)

files = sa.Table(
    "files",
    metadata,
    sa.Column("id", BigId, primary_key=True),
    sa.Column("public_id", sa.Text, nullable=False, unique=True),
    sa.Column("project_id", BigId, nullable=False),
    sa.Column("purpose", sa.Text, nullable=False),
    sa.Column("filename", sa.Text, nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("sha256", sa.Text),
    sa.Column("blob", sa.Text, nullable=False),  # the name under files_url
    sa.Column("encoding", sa.Text),  # "gzip" when the blob is compressed input
    sa.Column("status", sa.Text, nullable=False, server_default="processed"),
    sa.Column("created_at", Millis, nullable=False),
    *_times("expires_at", "deleted_at", "blob_deleted_at"),
    sa.CheckConstraint("size_bytes >= 0", name="size"),
    sa.Index("ix_files_project_created", "project_id", "created_at", "id"),
    _partial("expires_at IS NOT NULL AND deleted_at IS NULL", "ix_files_expires", "expires_at"),
    sa.Index("ix_files_blob", "blob"),
)

uploads = sa.Table(
    "uploads",
    metadata,
    sa.Column("id", BigId, primary_key=True),
    sa.Column("public_id", sa.Text, nullable=False, unique=True),
    sa.Column("project_id", BigId, nullable=False),
    sa.Column("filename", sa.Text, nullable=False),
    sa.Column("purpose", sa.Text, nullable=False),
    sa.Column("mime_type", sa.Text, nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("file_expires_after_s", sa.BigInteger),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("created_at", Millis, nullable=False),
    sa.Column("expires_at", Millis, nullable=False),
    sa.Column("file_id", BigId),
    sa.Column("parts_sha256", sa.Text),
    sa.Column("md5", sa.Text),
    sa.CheckConstraint("status IN ('pending', 'completed', 'cancelled', 'expired')", name="status"),
)

upload_parts = sa.Table(
    "upload_parts",
    metadata,
    sa.Column("id", BigId, primary_key=True),
    sa.Column("public_id", sa.Text, nullable=False, unique=True),
    sa.Column("upload_id", BigId, sa.ForeignKey("uploads.id"), nullable=False, index=True),
    sa.Column("blob", sa.Text, nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("created_at", Millis, nullable=False),
)

batches = sa.Table(
    "batches",
    metadata,
    sa.Column("id", BigId, primary_key=True),
    sa.Column("public_id", sa.Text, nullable=False, unique=True),
    sa.Column("project_id", BigId, nullable=False),
    sa.Column("endpoint", sa.Text, nullable=False),
    sa.Column("completion_window", sa.Text, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("paused", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("pause_reason", sa.Text),  # "person", "budget", "failures", or a sentence
    sa.Column("input_file", sa.Text, nullable=False),  # as asked for: it may not exist
    sa.Column("input_file_id", BigId),
    sa.Column("output_file_id", BigId),
    sa.Column("error_file_id", BigId),
    sa.Column("parent_id", BigId),  # retry of
    sa.Column("model", sa.Text),
    sa.Column("metadata", Json, nullable=False),
    sa.Column("options", Json, nullable=False),
    sa.Column("warnings", Json, nullable=False),
    sa.Column("report", Json, nullable=False),  # counted facts: emulated, mended, refused, served, fingerprints
    sa.Column("priority", sa.SmallInteger, nullable=False),  # 0 high, 1 normal, 2 low
    sa.Column("output_expires_after_s", sa.BigInteger),
    sa.Column("created_at", Millis, nullable=False),
    sa.Column("in_progress_at", Millis),
    sa.Column("expires_at", Millis),  # null: no completion window (run)
    *_times("finalizing_at", "completed_at", "failed_at", "expired_at", "cancelling_at", "cancelled_at"),
    sa.Column("sealed_at", Millis),  # internal: after it no result is recorded
    sa.Column("purged_at", Millis),
    *_counts("total", "completed", "failed", "last_seq"),
    *_counts("input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens"),
    *_counts("billed_input_tokens", "billed_output_tokens"),
    sa.Column("cost_usd", Money, nullable=False, server_default="0"),
    *_counts("unpriced"),  # lines whose cost is unknown
    sa.Column("reserved_usd", Money, nullable=False, server_default="0"),
    sa.Column("budget_usd", Money),
    sa.Column("max_failure_share", sa.Float),
    *_counts("est_input_tokens", "est_output_tokens"),
    # the job lease: ingest, finalize, purge
    sa.Column("job_owner", sa.Text),
    sa.Column("job_until", Millis),
    *_counts("job_epoch", "ingest_offset", "ingest_line", "ingest_errors"),  # the offset in bytes of decompressed input
    sa.Column("routes", Json),  # ordered lane ids of each route; requests.route is an index into it
    # idempotent create
    sa.Column("idempotency_key", sa.Text),
    sa.Column("request_hash", sa.Text),
    sa.Column("api_key_id", BigId),
    sa.CheckConstraint(_in("status", BatchStatus), name="status"),
    sa.CheckConstraint("completed >= 0 AND failed >= 0 AND completed + failed <= total", name="counts"),
    sa.CheckConstraint("status NOT IN ('finalizing', 'completed', 'expired', 'cancelled') OR sealed_at IS NOT NULL",
                       name="sealed"),
    sa.CheckConstraint("priority BETWEEN 0 AND 2", name="priority"),
    sa.Index("ix_batches_project", "project_id", "id"),
    _partial("status IN ('validating', 'in_progress', 'finalizing', 'cancelling')", "ix_batches_open", "status", "id"),
    _partial("idempotency_key IS NOT NULL", "uq_batches_idempotency", "project_id", "idempotency_key", unique=True),
    sa.Index("ix_batches_parent", "parent_id"),
    postgresql_with={"fillfactor": "50"},
    sqlite_autoincrement=True,
)

batch_errors = sa.Table(
    "batch_errors",
    metadata,
    sa.Column("batch_id", BigId, primary_key=True),
    sa.Column("position", sa.Integer, primary_key=True),
    sa.Column("code", sa.Text, nullable=False),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("param", sa.Text),
    sa.Column("line", sa.BigInteger),
)

# One row per (batch, lane, class) with work: the claim's first, cheap step. Counters are advisory.
batch_lanes = sa.Table(
    "batch_lanes",
    metadata,
    sa.Column("lane_id", BigId, primary_key=True),
    sa.Column("batch_id", BigId, primary_key=True),
    sa.Column("project_id", BigId, nullable=False),
    sa.Column("priority", sa.SmallInteger, nullable=False),
    sa.Column("deadline", Millis),
    *_counts("ready_lines", "leased_lines"),
)

requests = sa.Table(
    "requests",
    metadata,
    sa.Column("batch_id", BigId, primary_key=True, autoincrement=False),
    sa.Column("line", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("custom_id", sa.Text, nullable=False),
    sa.Column("body", sa.Text),  # null when it stands in the blob (over 64 kB)
    sa.Column("blob_offset", sa.BigInteger),  # of the whole input line, in decompressed bytes
    sa.Column("blob_length", sa.BigInteger),
    sa.Column("est_input", sa.Integer, nullable=False),
    sa.Column("est_output", sa.Integer, nullable=False),
    sa.Column("route", sa.SmallInteger, nullable=False, server_default="0"),  # index into batches.routes
    sa.Column("copy_of", sa.BigInteger),  # options.dedupe: the line whose answer this one takes; in no slice
    sa.Column("prefix", sa.BigInteger),  # what its prompt begins with; null where the input's order is kept
    sa.CheckConstraint("(body IS NULL) = (blob_offset IS NOT NULL)", name="body_somewhere"),
    sqlite_with_rowid=False,
    postgresql_with={"toast_tuple_target": "8160"},  # bodies up to 8 kB stay in the row, uncompressed
)

slices = sa.Table(
    "slices",
    metadata,
    sa.Column("id", BigId, primary_key=True),
    sa.Column("batch_id", BigId, nullable=False, index=True),
    sa.Column("lane_id", BigId, nullable=False),
    sa.Column("route", Json, nullable=False),  # ordered lane ids; lane_id is route[hop]
    sa.Column("hop", sa.SmallInteger, nullable=False, server_default="0"),
    sa.Column("priority", sa.SmallInteger, nullable=False),
    sa.Column("position", sa.BigInteger, nullable=False),
    sa.Column("lines", sa.LargeBinary, nullable=False),  # packed line numbers, in sending order (storage.packing)
    sa.Column("line_count", sa.Integer, nullable=False),
    sa.Column("est_tokens", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("prefix", sa.Text),  # prefix group, for replica affinity
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("owner", sa.Text),
    sa.Column("epoch", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("lease_until", Millis),
    sa.Column("not_before", Millis),
    sa.Column("suspicion", sa.Integer, nullable=False, server_default="0"),
    sa.Column("solo", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("reserved_usd", Money, nullable=False, server_default="0"),
    sa.CheckConstraint(_in("state", SliceState), name="state"),
    sa.CheckConstraint("(state = 'leased') = (owner IS NOT NULL AND lease_until IS NOT NULL)", name="leased"),
    sa.CheckConstraint("line_count > 0", name="not_empty"),
    _partial("state = 'ready'", "ix_slices_ready", "lane_id", "batch_id", "priority", "position"),
    _partial("state = 'leased'", "ix_slices_leased", "lease_until"),
    _partial("state = 'ready' AND not_before IS NOT NULL", "ix_slices_waiting", "not_before"),
    sqlite_autoincrement=True,
)

line_progress = sa.Table(
    "line_progress",
    metadata,
    sa.Column("batch_id", BigId, primary_key=True, autoincrement=False),
    sa.Column("line", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("progress", Json, nullable=False),  # attempts by cause, re-asks, kept choices, spent; domain.progress
    sa.Column("not_before", Millis),
)

results = sa.Table(
    "results",
    metadata,
    sa.Column("batch_id", BigId, primary_key=True, autoincrement=False),
    sa.Column("line", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("seq", sa.BigInteger, nullable=False),
    sa.Column("custom_id", sa.Text, nullable=False),
    sa.Column("ok", sa.Boolean, nullable=False),
    sa.Column("code", sa.Text),
    sa.Column("output", sa.Text, nullable=False),  # the whole JSONL line, without newline
    sa.Index("uq_results_seq", "batch_id", "seq", unique=True),
    sqlite_with_rowid=False,
)

lanes = sa.Table(
    "lanes",
    metadata,
    sa.Column("id", BigId, primary_key=True),
    sa.Column("provider", sa.Text, nullable=False),
    sa.Column("key_id", sa.Text, nullable=False),  # which credential: a name, never the key
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("queue", sa.Text, nullable=False, server_default="calls"),
    sa.Column("paused_until", Millis),
    sa.Column("pause_code", sa.Text),
    sa.Column("pause_reason", sa.Text),
    sa.Column("succeeded_at", Millis),  # null: never had a success
    sa.Column("learned", Json, nullable=False),  # limits, capabilities, estimates: providers and workers.pacer
    sa.Column("counters", Json, nullable=False),  # hour and day windows, to re-seed Redis
    sa.Column("created_at", Millis, nullable=False),
    sa.UniqueConstraint("provider", "key_id", "model"),
)

workers = sa.Table(
    "workers",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("queues", Json, nullable=False),
    sa.Column("started_at", Millis, nullable=False),
    sa.Column("heartbeat_at", Millis, nullable=False),
    sa.Column("facts", Json, nullable=False),  # in flight and window by lane, engine versions
)

sweeps = sa.Table(
    "sweeps",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("due_at", Millis, nullable=False),
    sa.Column("lease_until", Millis),
    sa.Column("last_report", sa.Text),
)

webhook_endpoints = sa.Table(
    "webhook_endpoints",
    metadata,
    sa.Column("id", BigId, primary_key=True),
    sa.Column("public_id", sa.Text, nullable=False, unique=True),
    sa.Column("project_id", BigId, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("url", sa.Text, nullable=False),
    sa.Column("event_types", Json, nullable=False),
    sa.Column("secret", sa.Text, nullable=False),
    sa.Column("old_secret", sa.Text),
    sa.Column("old_secret_until", Millis),
    sa.Column("created_at", Millis, nullable=False),
    sa.Column("updated_at", Millis, nullable=False),
)

webhook_deliveries = sa.Table(
    "webhook_deliveries",
    metadata,
    sa.Column("id", BigId, primary_key=True),
    sa.Column("webhook_id", sa.Text, nullable=False, unique=True),  # wh_…, constant across retries
    sa.Column("project_id", BigId, nullable=False),
    sa.Column("batch_id", BigId),
    sa.Column("endpoint_id", BigId),  # null: from settings or options.webhook_url
    sa.Column("url", sa.Text, nullable=False),
    sa.Column("event", sa.Text, nullable=False),
    sa.Column("payload", sa.Text, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
    sa.Column("created_at", Millis, nullable=False),
    sa.Column("next_at", Millis),  # null: delivered or given up
    sa.Column("delivered_at", Millis),
    sa.Column("last_status", sa.Integer),
    _partial("next_at IS NOT NULL", "ix_webhook_deliveries_next", "next_at"),
)
