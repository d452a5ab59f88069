"""`make compose-test`: docker-compose.yml for real — build, up, a batch, a killed worker, more workers, a
PostgreSQL restart, and then every line counted. Services whose image can neither be pulled nor made are left out.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import httpx
from openai import APIError, OpenAI

from tests.compose.bases import make_stand_ins
from tests.compose.composition import OUR_IMAGE, read_compose
from tests.compose.engine import Engine
from tests.harness.databases import free_port
from tests.harness.servers import ROOT
from tests.harness.waiting import eventually

LINES = 3_000
TOML = '[providers.sim]\nbase_url = "http://simulator:9000/v1"\nmodels = ["sim-1"]\nconcurrency = 24\n'
BASE = "python:3.12-slim"
STORES = ("postgres", "valkey")


class Stack:
    """The composition of one run, in a directory of its own; `close` takes everything down."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="bm-compose-"))
        self.port = free_port()
        self.variables = {
            "POSTGRES_PASSWORD": "compose-test", "FLOWER_PASSWORD": "compose-test", "GRAFANA_PASSWORD": "compose-test",
            "PORT": str(self.port), "CONFIG": str(self.directory / "batchmill.toml"),
        }  # fmt: skip
        (self.directory / "batchmill.toml").write_text(TOML)
        (self.directory / "batchmill.toml").chmod(0o644)
        self.directory.chmod(0o755)
        overlay = ROOT / "tests" / "compose" / "with-simulator.yml"
        self.engine = Engine(self.directory, [ROOT / "docker-compose.yml", overlay], self.variables)
        self.services: list[str] = []

    def prepare(self) -> None:
        """Images, and which services can run with them."""
        found = read_compose(self.variables)["services"]
        wanted = {raw["image"] for raw in found.values() if "profiles" not in raw} - {OUR_IMAGE}
        missing = {name for name in wanted | {BASE} if not self.engine.has_image(name) and not self.engine.pull(name)}
        if missing and self.engine.is_podman:
            tell(f"no registry gives {', '.join(sorted(missing))}: making stand-ins from Debian packages")
            missing -= make_stand_ins(missing, self.engine.environment)
        absent = [name for name, raw in found.items() if raw["image"] in missing or "profiles" in raw]
        tell(f"left out: {', '.join(absent) or 'nothing'}")
        self.services = [name for name in found if name not in absent and name != "migrate"] + ["simulator"]
        network = ["--network=host"] if self.engine.is_podman else []
        self.engine.run("build", *network, "-t", OUR_IMAGE, str(ROOT), timeout_s=1200)
        size = int(self.engine.run("image", "inspect", OUR_IMAGE, "--format", "{{.Size}}").strip())
        tell(f"built {OUR_IMAGE}, {size / 1e6:,.0f} MB on its base")

    def up(self, *flags: str) -> None:
        """All services. podman 4 cannot order containers that need each other's needs: stores first, then the rest."""
        if self.engine.is_podman:
            self.engine.compose("up", "-d", "--no-deps", *STORES, "simulator")
            flags = ("--no-deps", *flags)
        self.engine.compose("up", "-d", *flags, *self.services)

    def kill_a_worker(self) -> None:
        victim = self.engine.containers("worker")[0]
        self.engine.run("kill", "--signal", "KILL", victim)
        tell(f"killed worker container {victim[:12]}")

    def close(self) -> None:
        self.engine.compose("down", "-v", "-t", "10", check=False)
        left = [found for name in (*self.services, "migrate") for found in self.engine.containers(name)]
        if left:  # podman-compose forgets those that were scaled up
            self.engine.run("rm", "-f", *left, check=False)
        shutil.rmtree(self.directory, ignore_errors=True)


def main() -> int:
    stack = Stack()
    began = time.monotonic()
    try:
        stack.prepare()
        stack.up()
        key = make_key(stack)
        wait_ready(stack)
        tell(f"up after {time.monotonic() - began:.0f} s: {', '.join(stack.services)}")
        client = OpenAI(base_url=f"http://127.0.0.1:{stack.port}/v1", api_key=key, max_retries=8)
        check_user(stack)
        return hurt_and_count(stack, client)
    except BaseException:
        for name in stack.services:
            for found in stack.engine.containers(name):
                print(f"--- {name}\n{stack.engine.logs(found)}", file=sys.stderr)
        raise
    finally:
        stack.close()


def make_key(stack: Stack) -> str:
    """As the file's first lines say."""

    def create() -> str:
        needs = ["--no-deps"] if stack.engine.is_podman else []
        words = ["run", "--rm", "-T", *needs, "api", "admin", "keys", "create", "--name", "first"]
        said = stack.engine.compose(*words, check=False)
        return next((line.strip() for line in said.splitlines() if line.startswith("bm_")), "")

    return eventually(create, 120, 2.0, "a key is made")


def check_user(stack: Stack) -> None:
    """Not root, a read-only root, and only what is given may be written."""
    worker = stack.engine.containers("worker")[0]
    assert stack.engine.run("exec", worker, "python", "-c", "import os; print(os.getuid())").strip() == "10001"
    wrote = "import os\ntry: os.mkdir('/usr/local/x'); print('wrote')\nexcept OSError: print('refused')"
    assert stack.engine.run("exec", worker, "python", "-c", wrote).strip() == "refused"


def hurt_and_count(stack: Stack, client: OpenAI) -> int:
    """Returns 0 when every line came out exactly once."""
    lines = [
        {"custom_id": f"r{i}", "method": "POST", "url": "/v1/chat/completions",
         "body": {"model": "sim-1", "messages": [{"role": "user", "content": f"Say {i}"}]}}
        for i in range(LINES)
    ]  # fmt: skip
    file = client.files.create(file=("in.jsonl", "\n".join(map(json.dumps, lines)).encode()), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    wait_for(client, batch.id, LINES // 10)
    stack.kill_a_worker()
    stack.up("--scale", "worker=3")
    tell(f"{len(stack.engine.containers('worker'))} worker containers now")
    wait_for(client, batch.id, LINES // 3)
    stack.engine.run("restart", "-t", "5", stack.engine.containers("postgres")[0])
    tell("restarted PostgreSQL")
    ended = wait_for(client, batch.id, LINES, timeout_s=300)
    answers = client.files.content(ended.output_file_id).text.splitlines() if ended.output_file_id else []
    seen = Counter(json.loads(line)["custom_id"] for line in answers)
    lost, twice = LINES - len(seen), sum(count > 1 for count in seen.values())
    tell(f"{ended.status}: {len(answers):,} answers to {LINES:,} lines, {lost} lost, {twice} twice")
    return 0 if ended.status == "completed" and not lost and not twice else 1


def wait_for(client: OpenAI, batch_id: str, done: int, timeout_s: float = 180):
    """Until so many lines are completed, or the batch has ended."""

    def look():
        try:
            batch = client.batches.retrieve(batch_id)
        except APIError:
            return None
        ended = batch.status in {"completed", "failed", "expired", "cancelled"}
        return batch if ended or (done < LINES and batch.request_counts.completed >= done) else None

    return eventually(look, timeout_s, 0.3, f"{done} lines done")


def wait_ready(stack: Stack) -> None:
    def ready() -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{stack.port}/readyz", timeout=5, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    eventually(ready, 120, 0.5, "the API is ready")


def tell(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
