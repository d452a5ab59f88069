"""The whole service as one process tree: Valkey, migrations, API, workers, beat, a local model.

Owns: which children there are, their order at start and end, what they are told through the environment.
`up` ticks it for ever; `run` ticks it beside its progress bar. Single-threaded.
May not touch: the children's work; it knows their command lines only.
"""

from __future__ import annotations

import socket
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import orjson

from batch.cli import valkey
from batch.cli.children import Child
from batch.cli.datadir import DataDir
from batch.clock import SYSTEM_CLOCK
from batch.domain.errors import InvalidConfiguration, Unavailable
from batch.domain.loopback import check_listen_address
from batch.operations.bells import CALLS_QUEUE, JOBS_QUEUE
from batch.operations.world import open_world
from batch.providers.catalog import Catalog
from batch.settings import Settings, load_settings, process_environment
from batch.storage import projects
from batch.storage.migrate import migrate_at

CALLS_THREADS = 4  # bells only: they return in milliseconds
JOBS_THREADS = 2
TICK_S = 0.2
READY_S = 60.0


@dataclass(frozen=True)
class Companion:
    """A server that runs beside the service for its sake: a local model, a simulated provider.

    `providers` is merged into [providers] of the children, `env` into their environment.
    """

    name: str
    module: list[str]
    ready_url: str
    providers: dict[str, dict[str, Any]] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """What to start. `parts` are of "api", "workers", "jobs", "beat"; `queues` are those of calls workers."""

    settings: Settings
    parts: frozenset[str] = frozenset({"api", "workers", "jobs"})
    queues: tuple[str, ...] = (CALLS_QUEUE,)
    config: Path | None = None
    companions: tuple[Companion, ...] = ()
    log_to_files: bool = True


class Stack:
    """start() → tick() … → stop()."""

    def __init__(self, plan: Plan, data: DataDir) -> None:
        self.plan = plan
        self._settings = plan.settings
        self._data = data
        self._children: list[Child] = []
        self._env = child_environment(plan)

    @property
    def logs(self) -> Path:
        return self._data.logs

    @property
    def address(self) -> str:
        return f"http://{_shown_host(self._settings.host)}:{self._settings.port}"

    def start(self) -> None:
        """Everything up and answering. On a failure nothing is left running; raises BatchmillError."""
        try:
            self._data.end_leftovers(self._settings.drain_s)
            migrate_at(self._settings.resolved_database_url)
            self._check_settings()
            self._start_broker()
            for name, module in self._modules():
                self._launch(name, module)
            self._wait_until_ready()
        except BaseException:
            self.stop(drain=False)
            raise

    def tick(self) -> None:
        """Look after the children once. Raises Unavailable when one cannot run at all."""
        started = [child.tick() for child in self._children]
        if any(started):
            self._data.remember_children(self.pids())

    def stop(self, *, drain: bool = True) -> None:
        """Ask all to end, wait drain_s, then end the rest; Valkey goes last. No process stays."""
        workers = [child for child in self._children if child.name != valkey.NAME]
        for child in workers:
            child.ask_to_end()
        limit = SYSTEM_CLOCK.monotonic() + (self._settings.drain_s + 5 if drain else 3.0)
        try:
            for child in workers:
                child.wait_ended(limit)
        finally:
            for child in workers:
                child.kill()
            for child in (child for child in self._children if child not in workers):
                child.ask_to_end()
                child.wait_ended(SYSTEM_CLOCK.monotonic() + 3)
                child.kill()
            self._children.clear()
            self._data.remember_children({})

    def pids(self) -> dict[str, int]:
        return {child.name: child.pid for child in self._children if child.pid is not None}

    def _start_broker(self) -> None:
        if self._settings.redis_url:
            if "api" in self.plan.parts:  # workers alone wait for it as long as it takes
                valkey.wait_until_it_answers(self._settings.redis_url)
            return
        if valkey.answers(self._settings.resolved_redis_url):
            return  # another stack's, in the same data directory (--only)
        command = valkey.valkey_command(self._settings)
        self._settings.valkey_socket.unlink(missing_ok=True)  # a dead server's
        child = self._launch(valkey.NAME, command)
        try:
            valkey.wait_until_it_answers(self._settings.resolved_redis_url)
        except Unavailable as error:
            raise Unavailable(error.message + child.last_words()) from None

    def _check_settings(self) -> None:
        """Once, here, and not in each child: what can never work. Raises InvalidConfiguration."""
        with closing(open_world(self._settings)) as world:
            if "api" in self.plan.parts:
                with world.db.read() as connection:
                    check_listen_address(self._settings.host, has_keys=projects.any_key_exists(connection))

    def _launch(self, name: str, command: list[str]) -> Child:
        is_valkey = name == valkey.NAME  # whose lines no reader of ours wants
        log = self._data.logs / f"{name}.log" if is_valkey or self.plan.log_to_files else None
        child = Child(name, command, self._env, log=log, drain_s=self._settings.drain_s, is_program=is_valkey)
        self._children.append(child)
        self._data.remember_children(self.pids())
        return child

    def _modules(self) -> list[tuple[str, list[str]]]:
        """The children that are modules of Python, by name."""
        parts, settings = self.plan.parts, self._settings
        found = [(companion.name, companion.module) for companion in self.plan.companions]
        if "api" in parts:
            found.append(("api", ["batch.api.serve"]))
        workers = [f"worker-{i + 1}" for i in range(settings.workers)] if "workers" in parts else []
        served = [(name, self.plan.queues, CALLS_THREADS) for name in workers]
        served += [("jobs", (JOBS_QUEUE,), JOBS_THREADS)] if "jobs" in parts else []
        for name, queues, threads in served:
            arguments = worker_arguments(name, queues, settings.log_level)
            found.append((name, ["celery", "-q", *arguments, "-P", "threads", "-c", str(threads)]))
        if "beat" in parts:
            schedule = str(settings.resolved_data_dir / "beat-schedule")
            found.append(("beat", ["celery", "-q", "-A", "workers.app", "beat", "-s", schedule, "--pidfile="]))
        return found

    def _wait_until_ready(self) -> None:
        limit = SYSTEM_CLOCK.monotonic() + READY_S
        waiting = [(companion.name, companion.ready_url) for companion in self.plan.companions]
        if "api" in self.plan.parts:
            waiting.append(("api", f"{self.address}/readyz"))
        for name, url in waiting:
            while (trouble := _trouble(url)) is not None:
                self.tick()
                if SYSTEM_CLOCK.monotonic() > limit:
                    child = next(child for child in self._children if child.name == name)
                    raise Unavailable(f"{name} is not ready after {READY_S:g} s: {trouble}{child.last_words()}")
                SYSTEM_CLOCK.sleep(0.1)


def worker_arguments(name: str, queues: tuple[str, ...], log_level: str) -> list[str]:
    """What `celery` is given to run one worker process."""
    arguments = ["-A", "workers.app", "worker", "-Q", ",".join(queues), "-n", f"{name}@%h", "-l", log_level.upper()]
    return [*arguments, "--without-gossip", "--without-mingle"]


def child_environment(plan: Plan) -> dict[str, str]:
    """The environment that makes every child see the same settings from any working directory."""
    settings = plan.settings
    env = process_environment()
    env["BATCHMILL_DATA_DIR"] = str(settings.resolved_data_dir)
    env["BATCHMILL_HOST"], env["BATCHMILL_PORT"] = settings.host, str(settings.port)
    env["BATCHMILL_DATABASE_URL"] = settings.resolved_database_url  # a rehearsal's differ from what is configured
    env["BATCHMILL_FILES_URL"], env["BATCHMILL_REDIS_URL"] = settings.resolved_files_url, settings.redis_url or ""
    if plan.config is not None:
        env["BATCHMILL_CONFIG"] = str(plan.config.absolute())
    providers = orjson.loads(env.get("BATCHMILL_PROVIDERS") or "{}")
    for companion in plan.companions:
        env.update(companion.env)
        providers.update(companion.providers)
    if providers:
        env["BATCHMILL_PROVIDERS"] = orjson.dumps(providers).decode()
    return env


def catalog_of(plan: Plan) -> Catalog:
    """The providers as the children see them, companions among them."""
    env = child_environment(plan)
    return Catalog.from_settings(load_settings(plan.config, environ=env), env)


def free_port() -> int:
    with closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def require_free_port(host: str, port: int) -> None:
    """Raises InvalidConfiguration when the API could not listen there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with closing(socket.socket(family, socket.SOCK_STREAM)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise InvalidConfiguration(
                f"cannot listen on {host}:{port}: {error.strerror}\n"
                f"choose another port: batchmill up --port {port + 1 if port < 65_535 else 8484}",
                param="port",
            ) from None


def _trouble(url: str) -> str | None:
    """What /readyz names, or that nothing answers; None when all is well."""
    try:
        response = httpx.get(url, timeout=5.0, trust_env=False)
    except httpx.HTTPError:
        return "it does not answer"
    if response.status_code == 200:
        return None
    try:
        parts = dict(response.json())
    except ValueError:
        return f"it answers {response.status_code}"
    return ", ".join(f"{name} {state}" for name, state in parts.items() if state != "ok" and name != "status")


def _shown_host(host: str) -> str:
    if host in {"0.0.0.0", "::", ""}:  # noqa: S104 - compared, not bound
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host
