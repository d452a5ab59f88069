"""A crew: real Celery workers over a real broker and database, and a simulator in this process as the witness."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from batch.operations.create_batch import create_batch
from batch.operations.world import World, open_world
from batch.settings import load_settings
from batch.simulator import Simulator
from batch.storage import batches, files
from batch.storage.batches import BatchRow
from tests.harness.servers import Child, clean_environment, forget_the_killed, python
from tests.harness.waiting import eventually
from tests.harness.worlds import default_project, upload

CHAT = "/v1/chat/completions"
ENDED = {"completed", "failed", "cancelled", "expired"}


@dataclass
class Crew:
    """`hire` starts workers; `submit` hands a file in; `lines` reads what came out."""

    world: World
    simulator: Simulator
    directory: Path
    env: dict[str, str]
    children: dict[str, Child] = field(default_factory=dict)

    def hire(self, name: str, queues: str | None = "calls", *extra: str, lease_s: float | None = None) -> Child:
        """One worker process; `lease_s` shortens the lease as the chaos tests do."""
        env = dict(self.env)
        module = ["celery"]
        if lease_s is not None:
            env |= {"CHAOS_LEASE_S": str(lease_s), "CHAOS_RENEW_EVERY_S": str(lease_s / 3)}
            module = ["tests.chaos.child", "celery"]
        chosen = ["-Q", queues] if queues else []
        command = python("-m", *module, "-q", "-A", "workers.app", "worker", *chosen, "-n", f"{name}@%h",
                         "--without-gossip", "--without-mingle", *extra)  # fmt: skip
        child = Child(command, env=env, cwd=self.directory, log=self.directory / f"{name}.log")
        self.children[name] = child
        return child

    def submit(self, count: int, *, content: str = "", **options: Any) -> BatchRow:
        """`count` requests c0, c1, …"""
        data = b"".join(
            orjson.dumps({"custom_id": f"c{i}", "method": "POST", "url": CHAT,
                          "body": {"model": "m", "messages": [{"role": "user", "content": f"say {i} {content}"}]}})
            + b"\n"
            for i in range(count)
        )  # fmt: skip
        body = {"input_file_id": upload(self.world, data), "endpoint": CHAT, "completion_window": "24h",
                "options": options}  # fmt: skip
        return create_batch(self.world, default_project(self.world), body)

    def load(self, batch: BatchRow) -> BatchRow:
        with self.world.db.read() as conn:
            return batches.load_batch(conn, batch.id)

    def wait_done(self, batch: BatchRow, count: int, timeout_s: float = 40) -> None:
        """Until `count` lines have ended."""

        def ended() -> bool:
            row = self.load(batch)
            return row.completed + row.failed >= count

        self._wait(ended, timeout_s, f"{count} lines end")

    def wait_ended(self, batch: BatchRow, timeout_s: float = 60) -> BatchRow:
        self._wait(lambda: self.load(batch).status in ENDED, timeout_s, "the batch ends")
        return self.load(batch)

    def lines(self, batch: BatchRow) -> dict[str, dict[str, Any]]:
        """Output and error lines by custom_id; fails when one stands twice."""
        row, found = self.load(batch), []
        for file_id in (row.output_file_id, row.error_file_id):
            if file_id is not None:
                with self.world.db.read() as conn:
                    blob = files.load_file(conn, file_id).blob
                found += [orjson.loads(line) for line in b"".join(self.world.blobs.read(blob)).splitlines()]
        counts = Counter(line["custom_id"] for line in found)
        assert not [custom_id for custom_id, count in counts.items() if count > 1]
        return {line["custom_id"]: line for line in found}

    def _wait(self, predicate: Callable[[], bool], timeout_s: float, what: str) -> None:
        try:
            eventually(predicate, timeout_s, what=what)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.logs()}") from None

    def logs(self) -> str:
        return "\n".join(f"== {name}\n{child.text()[-1500:]}" for name, child in self.children.items())


@contextlib.contextmanager
def running_crew(database_url: str, valkey_url: str, simulator: Simulator, provider: str = "") -> Iterator[Crew]:
    """A jobs worker runs already. `provider` adds lines to [providers.sim]."""
    directory = Path(tempfile.mkdtemp(prefix="bm-crew-", dir="/tmp"))
    config = directory / "batchmill.toml"
    config.write_text(
        '[providers.sim]\npreset = "openai-compatible"\nmodels = ["m"]\n'
        f'base_url = "{simulator.base_url}"\n{provider}\n'
    )
    env = clean_environment(
        BATCHMILL_CONFIG=str(config), BATCHMILL_DATA_DIR=str(directory), BATCHMILL_DATABASE_URL=database_url,
        BATCHMILL_REDIS_URL=valkey_url, BATCHMILL_DRAIN_S="15", BATCHMILL_CANCEL_GRACE_S="10",
    )  # fmt: skip
    chosen = {name: value for name, value in env.items() if name.startswith("BATCHMILL_")}
    settings = load_settings(config, environ=chosen, data_dir=directory, database_url=database_url,
                             redis_url=valkey_url)  # fmt: skip
    crew = Crew(open_world(settings), simulator, directory, env)
    crew.hire("jobs", "jobs")
    try:
        yield crew
    finally:
        for child in crew.children.values():
            if child.is_running():
                child.kill()
        forget_the_killed(database_url)
        crew.world.close()
        shutil.rmtree(directory, ignore_errors=True)
