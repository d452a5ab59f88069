"""The stack behind `run`: its own, unless an `up` (or another run) serves the data directory already.

Owns: starting and taking over the stack, the world that `run` acts on, what is printed of troubles.
`run` calls operations on the same database and files; it needs no API and no key of one.
"""

from __future__ import annotations

from collections.abc import Callable

from batch.cli.datadir import DataDir
from batch.cli.supervisor import Plan, Stack
from batch.clock import SYSTEM_CLOCK, Clock
from batch.operations.world import World, open_world
from batch.storage import projects
from batch.storage.migrate import migrate_at
from batch.storage.projects import Project


class Home:
    """open() to look, start() → tick() … to work, stop(). `is_own` says whether stopping it stops the work."""

    def __init__(self, plan: Plan, data: DataDir, report: Callable[[str], None], clock: Clock = SYSTEM_CLOCK) -> None:
        self._plan = plan
        self._data = data
        self._report = report
        self._clock = clock
        self._stack: Stack | None = None
        self._world: World | None = None
        self._project: Project | None = None

    @property
    def is_own(self) -> bool:
        return self._stack is not None

    @property
    def world(self) -> World:
        assert self._world is not None, "open() first"
        return self._world

    @property
    def project(self) -> Project:
        """The one that local runs belong to."""
        assert self._project is not None, "open() first"
        return self._project

    def open(self) -> None:
        """The world alone: enough to look. Raises BatchmillError."""
        if self._world is None:
            migrate_at(self._plan.settings.resolved_database_url)
            self._world = open_world(self._plan.settings)
            with self._world.db.write() as conn:
                self._project = projects.ensure_default_project(conn)

    def start(self) -> Project:
        """Ready to work. Raises BatchmillError."""
        if not self._take_over():
            holder = self._data.holder()
            self._report(f"using batchmill {holder.get('kind', 'up')} (pid {holder.get('pid', '?')}) in this directory")
        self.open()
        return self.project

    def tick(self) -> None:
        """Look after the children; take over when the one that served us has gone."""
        if self._stack is not None:
            self._stack.tick()
        elif self._take_over():
            self._report("the process that served this directory has ended; going on here")

    def stop(self, *, drain: bool = True) -> None:
        """Also after stop_workers; the world is closed."""
        self.stop_workers(drain=drain)
        if self._world is not None:
            self._world.close()
            self._world = None

    def stop_workers(self, *, drain: bool = True) -> None:
        """End our own stack, if there is one; the world stays open for a last look."""
        if self._stack is not None:
            try:
                self._stack.stop(drain=drain)
            finally:
                self._stack = None
                self._data.unlock()

    def _take_over(self) -> bool:
        if not self._data.try_lock({"kind": "run"}):
            return False
        stack = Stack(self._plan, self._data, self._report, self._clock)
        try:
            stack.start()
        except BaseException:
            self._data.unlock()
            raise
        self._stack = stack
        return True
