"""The database's door: one engine, one way to read, one way to write.

Owns: connections, pragmas, transactions, the database's clock, bounded retry of storage faults.
SQLite: WAL, synchronous=FULL, BEGIN IMMEDIATE, and all writes of a process take turns.
PostgreSQL: psycopg 3, READ COMMITTED, statement and lock timeouts.
May not touch: any table by name.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.ext.compiler import compiles

from batch.clock import SYSTEM_CLOCK, Clock
from batch.domain.errors import InvalidConfiguration, Unavailable

T = TypeVar("T")
P = ParamSpec("P")


class db_now(sa.sql.functions.FunctionElement[int]):  # noqa: N801 - reads as SQL
    """The database's clock: milliseconds since the epoch, UTC. Not the transaction's start."""

    type = sa.BigInteger()
    inherit_cache = True


@compiles(db_now, "sqlite")
def _now_sqlite(*_: Any, **__: Any) -> str:
    return "CAST(ROUND((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER)"


@compiles(db_now, "postgresql")
def _now_postgresql(*_: Any, **__: Any) -> str:
    return "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)"


def db_in(seconds: float) -> sa.ColumnElement[int]:
    """The database's clock so many seconds from now; with a negative number, ago."""
    return db_now() + int(seconds * 1000)


def insert_for(connection: sa.Connection, table: sa.Table) -> Any:
    """An INSERT of the connection's database that knows ON CONFLICT; both write it alike."""
    return sqlite.insert(table) if connection.dialect.name == "sqlite" else postgresql.insert(table)


def copy_rows(conn: sa.Connection, into: str, types: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """COPY to PostgreSQL; `into` is a table with its columns, `types` are theirs."""
    driver: Any = conn.connection.driver_connection
    with driver.cursor() as cursor, cursor.copy(f"COPY {into} FROM STDIN (FORMAT BINARY)") as copy:
        copy.set_types(types)
        for row in rows:
            copy.write_row(row)


class Database:
    """An engine and its two doors, `read` and `write`. Safe for threads; made after any fork."""

    def __init__(self, url: str, *, pool_size: int = 5, clock: Clock = SYSTEM_CLOCK) -> None:
        self.url = make_url(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self._clock = clock
        self._turn = threading.RLock()
        self.engine = _make_sqlite(self.url) if self.is_sqlite else _make_postgresql(self.url, pool_size)

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A connection for short reads; sees a consistent snapshot per statement (WAL / READ COMMITTED)."""
        with self.engine.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """One transaction, committed at the end of the block; BEGIN IMMEDIATE and in turn on SQLite."""
        if not self.is_sqlite:
            with self.engine.begin() as connection:
                yield connection
            return
        with self._turn, self.engine.connect() as connection:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.exec_driver_sql("COMMIT")
            except BaseException:
                if connection.connection.in_transaction:  # on a full disk SQLite rolls back by itself
                    connection.exec_driver_sql("ROLLBACK")
                raise

    def now(self, connection: sa.Connection) -> int:
        """Milliseconds since the epoch by the database's clock."""
        return int(connection.execute(sa.select(db_now())).scalar_one())

    def transact(
        self, work: Callable[Concatenate[sa.Connection, P], T], *arguments: P.args, **named: P.kwargs
    ) -> T:
        """`work(connection, …)` as one transaction, retried. It may run again after a commit whose answer was lost:
        what it inserts must be found, or guarded, then."""

        def once() -> T:
            with self.write() as connection:
                return work(connection, *arguments, **named)

        return self.retrying(once)

    def retrying(self, work: Callable[[], T], *, tries: int = 5) -> T:
        """Run `work` again on faults that pass by themselves; the one place where storage is retried.

        `work` must open its own transaction. Raises Unavailable, without driver details, when tries are used up.
        """
        for attempt in range(tries):
            try:
                return work()
            except DBAPIError as error:
                if not is_passing(error):
                    raise
                if attempt + 1 == tries:
                    raise Unavailable(f"the database does not answer ({type(error.orig).__name__})") from None
                self._clock.sleep(self._clock.uniform(0, 0.05 * 2**attempt))
        raise AssertionError("unreachable")

    def close(self) -> None:
        self.engine.dispose()


# Lost connections, no disk or memory or slot left, a shutdown, broken storage; then serialization, deadlock,
# a lock not available, a server that has become a standby.
_PASSING_CLASSES = ("08", "53", "57P", "58")
_PASSING_SQLSTATES = {"40001", "40P01", "55P03", "25006"}
_PASSING_TEXTS = ("locked", "busy", "connection", "server closed", "full", "i/o error", "unable to open")


def is_passing(error: DBAPIError) -> bool:
    """True for faults worth another try: busy, deadlock, serialization, a lost connection, a full disk."""
    if error.connection_invalidated:
        return True
    sqlstate = getattr(error.orig, "sqlstate", None)
    if sqlstate is not None:
        return sqlstate in _PASSING_SQLSTATES or sqlstate.startswith(_PASSING_CLASSES)
    text = str(error.orig).lower()
    return isinstance(error, OperationalError) and any(part in text for part in _PASSING_TEXTS)


def _make_sqlite(url: sa.URL) -> sa.Engine:
    if url.database and url.database != ":memory:":
        path = Path(url.database)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        _refuse_network_filesystem(path.parent)
    engine = sa.create_engine(
        url,
        poolclass=sa.pool.QueuePool,
        pool_size=32,
        max_overflow=0,
        pool_use_lifo=True,  # opening one and its pragmas cost more than most reads
        hide_parameters=True,
        isolation_level="AUTOCOMMIT",  # transactions are begun by hand, as BEGIN IMMEDIATE
        connect_args={"timeout": 30, "check_same_thread": False, "cached_statements": 256},
    )

    @sa.event.listens_for(engine, "connect")
    def set_pragmas(connection: Any, _record: Any) -> None:
        new_file = (
            "page_size=16384",  # a line of 2 kB stays in its page (3 times the ingest of 4 kB pages)
            "auto_vacuum=INCREMENTAL",  # takes the write lock: on an open database it would wait for any writer
        )
        is_new = connection.execute("PRAGMA page_count").fetchone()[0] == 0
        for pragma in (
            *(new_file if is_new else ()),
            "journal_mode=WAL",
            "synchronous=FULL",
            "busy_timeout=30000",
            "foreign_keys=ON",
            "cache_size=-32768",
            "temp_store=MEMORY",
            "mmap_size=0",
        ):
            connection.execute(f"PRAGMA {pragma}")

    return engine


def _make_postgresql(url: sa.URL, pool_size: int) -> sa.Engine:
    if url.get_backend_name() != "postgresql":
        raise InvalidConfiguration(
            f"database_url: {url.get_backend_name()} is not supported; use sqlite:/// or postgresql://",
            param="database_url",
        )
    return sa.create_engine(
        url.set(drivername="postgresql+psycopg"),
        pool_size=pool_size,
        max_overflow=pool_size,
        pool_pre_ping=True,
        pool_timeout=10,
        hide_parameters=True,
        connect_args={
            "connect_timeout": 5,
            "application_name": "batchmill",
            "options": "-c statement_timeout=60000 -c lock_timeout=30000 -c idle_in_transaction_session_timeout=60000",
        },
    )


_NETWORK_FILESYSTEMS = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "fuse.sshfs", "9p", "afs", "ceph", "glusterfs"}


def _refuse_network_filesystem(directory: Path) -> None:
    """SQLite's locks do not hold there; /proc/mounts tells on Linux, elsewhere nothing is checked."""
    mounts = Path("/proc/mounts")
    if not mounts.exists():
        return
    best, kind = "", ""
    resolved = str(directory.resolve()) + "/"
    for row in mounts.read_text(encoding="utf-8", errors="replace").splitlines():
        _device, point, filesystem, *_rest = row.split(" ")
        prefix = point.rstrip("/") + "/"
        if resolved.startswith(prefix) and len(prefix) > len(best):
            best, kind = prefix, filesystem
    if kind in _NETWORK_FILESYSTEMS:
        raise InvalidConfiguration(
            f"{directory} is on a network file system ({kind}), where SQLite can lose data; "
            "use a local directory or a postgresql:// database_url",
            param="data_dir",
        )
