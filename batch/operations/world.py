"""The world that operations act on: settings, database, blobs, catalog, bells, clock.

Owns: how the parts are opened together, and closed. Made once per process, after any fork.
May not touch: the network; nothing here connects before it is used.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from batch.clock import SYSTEM_CLOCK, Clock
from batch.files.blobs import BlobStore
from batch.operations.bells import Bells, CeleryBells, celery_broker_url
from batch.operations.eta import RateBook
from batch.providers.catalog import Catalog
from batch.settings import Settings
from batch.storage.engine import Database


@dataclass(slots=True)
class World:
    settings: Settings
    db: Database
    blobs: BlobStore
    catalog: Catalog
    bells: Bells
    clock: Clock
    rates: RateBook = field(default_factory=RateBook)

    def close(self) -> None:
        self.db.close()


def open_world(
    settings: Settings, *, bells: Bells | None = None, clock: Clock = SYSTEM_CLOCK, pool_size: int = 5
) -> World:
    """Everything an operation needs. Does not migrate; raises InvalidConfiguration for what can never work."""
    return World(
        settings=settings,
        db=Database(settings.resolved_database_url, pool_size=pool_size, clock=clock),
        blobs=BlobStore(settings.resolved_files_url),
        catalog=Catalog.from_settings(settings),
        bells=bells or CeleryBells(celery_broker_url(settings.resolved_redis_url)),
        clock=clock,
    )
