"""The stack behind `run`: its own, unless an `up` (or another run) serves the data directory already.

Owns: starting and taking over the stack, the world that `run` acts on, what is printed of troubles.
`run` calls operations on the same database and files; it needs no API and no key of one.
"""

from __future__ import annotations

from batch.cli.console import note
from batch.cli.datadir import DataDir
from batch.cli.supervisor import Plan, Stack
from batch.operations.world import World, open_world
from batch.settings import Settings
from batch.storage import projects
from batch.storage.migrate import migrate_at


def make_home(settings: Settings) -> None:
    """The data directory, for its owner only, and the tables of this version."""
    DataDir(settings.resolved_data_dir).make()
    migrate_at(settings.resolved_database_url)


def open_home(settings: Settings) -> World:
    """What the data directory and its database hold; the caller closes it."""
    make_home(settings)
    return open_world(settings)


class Home:
    """A world to look at; start() → tick() … to work, stop(). `project` is the one that local runs belong to.

    `is_own` says whether stopping it stops the work. Raises BatchmillError.
    """

    def __init__(self, plan: Plan, data: DataDir) -> None:
        self._plan = plan
        self._data = data
        self._stack: Stack | None = None
        self.world = open_home(plan.settings)
        with self.world.db.write() as conn:
            self.project = projects.ensure_project(conn)

    @property
    def is_own(self) -> bool:
        return self._stack is not None

    def start(self) -> None:
        """Ready to work."""
        if not self._take_over():
            holder = self._data.holder()
            note(f"using batchmill {holder.get('kind', 'up')} (pid {holder.get('pid', '?')}) in this directory")

    def tick(self) -> None:
        """Look after the children; take over when the one that served us has gone."""
        if self._stack is not None:
            self._stack.tick()
        elif self._take_over():
            note("the process that served this directory has ended; going on here")

    def stop(self) -> None:
        """Also after stop_workers; the world is closed."""
        self.stop_workers()
        self.world.close()

    def stop_workers(self) -> None:
        """End our own stack, if there is one; the world stays open for a last look."""
        if self._stack is not None:
            try:
                self._stack.stop()
            finally:
                self._stack = None
                self._data.unlock()

    def _take_over(self) -> bool:
        if not self._data.try_lock({"kind": "run"}):
            return False
        stack = Stack(self._plan, self._data)
        try:
            stack.start()
        except BaseException:
            self._data.unlock()
            raise
        self._stack = stack
        return True
