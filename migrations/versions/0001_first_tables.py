"""All tables of the first release.

Kind: expand
Until the first release this is the metadata itself; a later change is a migration of its own.
"""

from __future__ import annotations

from alembic import op

from batch.storage.tables import metadata

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    metadata.create_all(op.get_bind())


def downgrade() -> None:
    metadata.drop_all(op.get_bind())
