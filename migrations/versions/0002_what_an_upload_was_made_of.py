"""Of which parts an upload was completed, so that the same completion, sent again, is known.

Kind: expand
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("uploads", sa.Column("parts_sha256", sa.Text()))
    op.add_column("uploads", sa.Column("md5", sa.Text()))


def downgrade() -> None:
    op.drop_column("uploads", "md5")
    op.drop_column("uploads", "parts_sha256")
