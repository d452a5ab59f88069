"""All tables of the first release, as they were then.

Kind: expand
Frozen: a later change is a migration of its own, and this file stays as it is.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

BigId = sa.BigInteger().with_variant(sa.INTEGER(), "sqlite")
Json = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def upgrade() -> None:
    op.create_table(
        "batch_errors",
        sa.Column("batch_id", BigId, nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("code", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("param", sa.Text()),
        sa.Column("line", sa.BigInteger()),
        sa.PrimaryKeyConstraint("batch_id", "position", name="pk_batch_errors"),
    )
    op.create_table(
        "batch_lanes",
        sa.Column("lane_id", BigId, nullable=False),
        sa.Column("batch_id", BigId, nullable=False),
        sa.Column("project_id", BigId, nullable=False),
        sa.Column("priority", sa.SmallInteger(), nullable=False),
        sa.Column("deadline", sa.BigInteger()),
        sa.Column("ready_lines", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("leased_lines", sa.BigInteger(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("lane_id", "batch_id", name="pk_batch_lanes"),
    )
    op.create_table(
        "batches",
        sa.Column("id", BigId, nullable=False),
        sa.Column("public_id", sa.Text(), nullable=False),
        sa.Column("project_id", BigId, nullable=False),
        sa.Column("endpoint", sa.Text(), nullable=False),
        sa.Column("completion_window", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("paused", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("pause_reason", sa.Text()),
        sa.Column("input_file", sa.Text(), nullable=False),
        sa.Column("input_file_id", BigId),
        sa.Column("output_file_id", BigId),
        sa.Column("error_file_id", BigId),
        sa.Column("parent_id", BigId),
        sa.Column("model", sa.Text()),
        sa.Column("metadata", Json, nullable=False),
        sa.Column("options", Json, nullable=False),
        sa.Column("warnings", Json, nullable=False),
        sa.Column("report", Json, nullable=False),
        sa.Column("priority", sa.SmallInteger(), nullable=False),
        sa.Column("output_expires_after_s", sa.BigInteger()),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("in_progress_at", sa.BigInteger()),
        sa.Column("expires_at", sa.BigInteger()),
        sa.Column("finalizing_at", sa.BigInteger()),
        sa.Column("completed_at", sa.BigInteger()),
        sa.Column("failed_at", sa.BigInteger()),
        sa.Column("expired_at", sa.BigInteger()),
        sa.Column("cancelling_at", sa.BigInteger()),
        sa.Column("cancelled_at", sa.BigInteger()),
        sa.Column("sealed_at", sa.BigInteger()),
        sa.Column("purged_at", sa.BigInteger()),
        sa.Column("total", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("completed", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("failed", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("last_seq", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("input_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("cached_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("output_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("reasoning_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("billed_input_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("billed_output_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("cost_usd", sa.Float(), server_default="0", nullable=False),
        sa.Column("unpriced", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("reserved_usd", sa.Float(), server_default="0", nullable=False),
        sa.Column("budget_usd", sa.Float()),
        sa.Column("max_failure_share", sa.Float()),
        sa.Column("est_input_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("est_output_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("job_owner", sa.Text()),
        sa.Column("job_epoch", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("job_until", sa.BigInteger()),
        sa.Column("ingest_offset", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("ingest_line", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("ingest_errors", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("routes", Json),
        sa.Column("idempotency_key", sa.Text()),
        sa.Column("request_hash", sa.Text()),
        sa.Column("api_key_id", BigId),
        sa.CheckConstraint(
            "status IN ('validating', 'in_progress', 'finalizing', 'completed', 'failed', 'expired', "
            "'cancelling', 'cancelled')",
            name=op.f("ck_batches_status"),
        ),
        sa.CheckConstraint(
            "status NOT IN ('finalizing', 'completed', 'expired', 'cancelled') OR sealed_at IS NOT NULL",
            name=op.f("ck_batches_sealed"),
        ),
        sa.CheckConstraint(
            "completed >= 0 AND failed >= 0 AND completed + failed <= total", name=op.f("ck_batches_counts")
        ),
        sa.CheckConstraint("priority BETWEEN 0 AND 2", name=op.f("ck_batches_priority")),
        sa.PrimaryKeyConstraint("id", name="pk_batches"),
        sa.UniqueConstraint("public_id", name="uq_batches_public_id"),
        postgresql_with={"fillfactor": "50"},
        sqlite_autoincrement=True,
    )
    op.create_index(
        "ix_batches_open",
        "batches",
        ["status", "id"],
        unique=False,
        sqlite_where=sa.text("status IN ('validating', 'in_progress', 'finalizing', 'cancelling')"),
        postgresql_where=sa.text("status IN ('validating', 'in_progress', 'finalizing', 'cancelling')"),
    )
    op.create_index("ix_batches_parent", "batches", ["parent_id"], unique=False)
    op.create_index("ix_batches_project", "batches", ["project_id", "id"], unique=False)
    op.create_index(
        "uq_batches_idempotency",
        "batches",
        ["project_id", "idempotency_key"],
        unique=True,
        sqlite_where=sa.text("idempotency_key IS NOT NULL"),
        postgresql_where=sa.text("idempotency_key IS NOT NULL"),
    )
    op.create_table(
        "files",
        sa.Column("id", BigId, nullable=False),
        sa.Column("public_id", sa.Text(), nullable=False),
        sa.Column("project_id", BigId, nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("filename", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.Text()),
        sa.Column("blob", sa.Text(), nullable=False),
        sa.Column("encoding", sa.Text()),
        sa.Column("status", sa.Text(), server_default="processed", nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger()),
        sa.Column("deleted_at", sa.BigInteger()),
        sa.Column("blob_deleted_at", sa.BigInteger()),
        sa.CheckConstraint("size_bytes >= 0", name=op.f("ck_files_size")),
        sa.PrimaryKeyConstraint("id", name="pk_files"),
        sa.UniqueConstraint("public_id", name="uq_files_public_id"),
    )
    op.create_index("ix_files_blob", "files", ["blob"], unique=False)
    op.create_index(
        "ix_files_expires",
        "files",
        ["expires_at"],
        unique=False,
        sqlite_where=sa.text("expires_at IS NOT NULL AND deleted_at IS NULL"),
        postgresql_where=sa.text("expires_at IS NOT NULL AND deleted_at IS NULL"),
    )
    op.create_index("ix_files_project_created", "files", ["project_id", "created_at", "id"], unique=False)
    op.create_table(
        "lanes",
        sa.Column("id", BigId, nullable=False),
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("queue", sa.Text(), server_default="calls", nullable=False),
        sa.Column("paused_until", sa.BigInteger()),
        sa.Column("pause_code", sa.Text()),
        sa.Column("pause_reason", sa.Text()),
        sa.Column("succeeded_at", sa.BigInteger()),
        sa.Column("learned", Json, nullable=False),
        sa.Column("counters", Json, nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_lanes"),
        sa.UniqueConstraint("provider", "key_id", "model", name="uq_lanes_provider_key_id_model"),
    )
    op.create_table(
        "line_progress",
        sa.Column("batch_id", BigId, autoincrement=False, nullable=False),
        sa.Column("line", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("progress", Json, nullable=False),
        sa.Column("not_before", sa.BigInteger()),
        sa.PrimaryKeyConstraint("batch_id", "line", name="pk_line_progress"),
    )
    op.create_table(
        "projects",
        sa.Column("id", BigId, nullable=False),
        sa.Column("public_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("limits", Json, nullable=False),
        sa.Column("allowed_providers", Json),
        sa.Column("max_priority", sa.Text(), server_default="high", nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_projects"),
        sa.UniqueConstraint("name", name="uq_projects_name"),
        sa.UniqueConstraint("public_id", name="uq_projects_public_id"),
    )
    op.create_table(
        "requests",
        sa.Column("batch_id", BigId, autoincrement=False, nullable=False),
        sa.Column("line", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("custom_id", sa.Text(), nullable=False),
        sa.Column("body", sa.Text()),
        sa.Column("blob_offset", sa.BigInteger()),
        sa.Column("blob_length", sa.BigInteger()),
        sa.Column("est_input", sa.Integer(), nullable=False),
        sa.Column("est_output", sa.Integer(), nullable=False),
        sa.Column("route", sa.SmallInteger(), server_default="0", nullable=False),
        sa.Column("copy_of", sa.BigInteger()),
        sa.Column("prefix", sa.BigInteger()),
        sa.CheckConstraint("(body IS NULL) = (blob_offset IS NOT NULL)", name=op.f("ck_requests_body_somewhere")),
        sa.PrimaryKeyConstraint("batch_id", "line", name="pk_requests"),
        postgresql_with={"toast_tuple_target": "8160"},
        sqlite_with_rowid=False,
    )
    op.create_table(
        "results",
        sa.Column("batch_id", BigId, autoincrement=False, nullable=False),
        sa.Column("line", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("custom_id", sa.Text(), nullable=False),
        sa.Column("ok", sa.Boolean(), nullable=False),
        sa.Column("code", sa.Text()),
        sa.Column("output", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("batch_id", "line", name="pk_results"),
        sqlite_with_rowid=False,
    )
    op.create_index("uq_results_seq", "results", ["batch_id", "seq"], unique=True)
    op.create_table(
        "slices",
        sa.Column("id", BigId, nullable=False),
        sa.Column("batch_id", BigId, nullable=False),
        sa.Column("lane_id", BigId, nullable=False),
        sa.Column("route", Json, nullable=False),
        sa.Column("hop", sa.SmallInteger(), server_default="0", nullable=False),
        sa.Column("priority", sa.SmallInteger(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("lines", sa.LargeBinary(), nullable=False),
        sa.Column("line_count", sa.Integer(), nullable=False),
        sa.Column("est_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("prefix", sa.Text()),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text()),
        sa.Column("epoch", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("lease_until", sa.BigInteger()),
        sa.Column("not_before", sa.BigInteger()),
        sa.Column("suspicion", sa.Integer(), server_default="0", nullable=False),
        sa.Column("solo", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("reserved_usd", sa.Float(), server_default="0", nullable=False),
        sa.CheckConstraint(
            "(state = 'leased') = (owner IS NOT NULL AND lease_until IS NOT NULL)", name=op.f("ck_slices_leased")
        ),
        sa.CheckConstraint(
            "state IN ('ready', 'leased', 'done', 'cancelled', 'expired')", name=op.f("ck_slices_state")
        ),
        sa.CheckConstraint("line_count > 0", name=op.f("ck_slices_not_empty")),
        sa.PrimaryKeyConstraint("id", name="pk_slices"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_slices_batch_id", "slices", ["batch_id"], unique=False)
    op.create_index(
        "ix_slices_leased",
        "slices",
        ["lease_until"],
        unique=False,
        sqlite_where=sa.text("state = 'leased'"),
        postgresql_where=sa.text("state = 'leased'"),
    )
    op.create_index(
        "ix_slices_ready",
        "slices",
        ["lane_id", "batch_id", "priority", "position"],
        unique=False,
        sqlite_where=sa.text("state = 'ready'"),
        postgresql_where=sa.text("state = 'ready'"),
    )
    op.create_index(
        "ix_slices_waiting",
        "slices",
        ["not_before"],
        unique=False,
        sqlite_where=sa.text("state = 'ready' AND not_before IS NOT NULL"),
        postgresql_where=sa.text("state = 'ready' AND not_before IS NOT NULL"),
    )
    op.create_table(
        "sweeps",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("due_at", sa.BigInteger(), nullable=False),
        sa.Column("lease_until", sa.BigInteger()),
        sa.Column("last_report", sa.Text()),
        sa.PrimaryKeyConstraint("name", name="pk_sweeps"),
    )
    op.create_table(
        "uploads",
        sa.Column("id", BigId, nullable=False),
        sa.Column("public_id", sa.Text(), nullable=False),
        sa.Column("project_id", BigId, nullable=False),
        sa.Column("filename", sa.Text(), nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("mime_type", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("file_expires_after_s", sa.BigInteger()),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("file_id", BigId),
        sa.CheckConstraint(
            "status IN ('pending', 'completed', 'cancelled', 'expired')", name=op.f("ck_uploads_status")
        ),
        sa.PrimaryKeyConstraint("id", name="pk_uploads"),
        sa.UniqueConstraint("public_id", name="uq_uploads_public_id"),
    )
    op.create_table(
        "webhook_deliveries",
        sa.Column("id", BigId, nullable=False),
        sa.Column("webhook_id", sa.Text(), nullable=False),
        sa.Column("project_id", BigId, nullable=False),
        sa.Column("batch_id", BigId),
        sa.Column("endpoint_id", BigId),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("event", sa.Text(), nullable=False),
        sa.Column("payload", sa.Text(), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("next_at", sa.BigInteger()),
        sa.Column("delivered_at", sa.BigInteger()),
        sa.Column("last_status", sa.Integer()),
        sa.PrimaryKeyConstraint("id", name="pk_webhook_deliveries"),
        sa.UniqueConstraint("webhook_id", name="uq_webhook_deliveries_webhook_id"),
    )
    op.create_index(
        "ix_webhook_deliveries_next",
        "webhook_deliveries",
        ["next_at"],
        unique=False,
        sqlite_where=sa.text("next_at IS NOT NULL"),
        postgresql_where=sa.text("next_at IS NOT NULL"),
    )
    op.create_table(
        "webhook_endpoints",
        sa.Column("id", BigId, nullable=False),
        sa.Column("public_id", sa.Text(), nullable=False),
        sa.Column("project_id", BigId, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("event_types", Json, nullable=False),
        sa.Column("secret", sa.Text(), nullable=False),
        sa.Column("old_secret", sa.Text()),
        sa.Column("old_secret_until", sa.BigInteger()),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_webhook_endpoints"),
        sa.UniqueConstraint("public_id", name="uq_webhook_endpoints_public_id"),
    )
    op.create_table(
        "workers",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("queues", Json, nullable=False),
        sa.Column("started_at", sa.BigInteger(), nullable=False),
        sa.Column("heartbeat_at", sa.BigInteger(), nullable=False),
        sa.Column("facts", Json, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_workers"),
    )
    op.create_table(
        "api_keys",
        sa.Column("id", BigId, nullable=False),
        sa.Column("public_id", sa.Text(), nullable=False),
        sa.Column("project_id", BigId, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("key_hash", sa.Text(), nullable=False),
        sa.Column("hint", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("last_used_at", sa.BigInteger()),
        sa.Column("revoked_at", sa.BigInteger()),
        sa.ForeignKeyConstraint(
            ["project_id"],
            ["projects.id"],
        ),
        sa.PrimaryKeyConstraint("id", name="pk_api_keys"),
        sa.UniqueConstraint("key_hash", name="uq_api_keys_key_hash"),
        sa.UniqueConstraint("public_id", name="uq_api_keys_public_id"),
    )
    op.create_table(
        "upload_parts",
        sa.Column("id", BigId, nullable=False),
        sa.Column("public_id", sa.Text(), nullable=False),
        sa.Column("upload_id", BigId, nullable=False),
        sa.Column("blob", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["upload_id"],
            ["uploads.id"],
        ),
        sa.PrimaryKeyConstraint("id", name="pk_upload_parts"),
        sa.UniqueConstraint("public_id", name="uq_upload_parts_public_id"),
    )
    op.create_index("ix_upload_parts_upload_id", "upload_parts", ["upload_id"], unique=False)


def downgrade() -> None:
    op.drop_table("upload_parts")
    op.drop_table("api_keys")
    op.drop_table("workers")
    op.drop_table("webhook_endpoints")
    op.drop_table("webhook_deliveries")
    op.drop_table("uploads")
    op.drop_table("sweeps")
    op.drop_table("slices")
    op.drop_table("results")
    op.drop_table("requests")
    op.drop_table("projects")
    op.drop_table("line_progress")
    op.drop_table("lanes")
    op.drop_table("files")
    op.drop_table("batches")
    op.drop_table("batch_lanes")
    op.drop_table("batch_errors")
