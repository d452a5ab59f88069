"""Every service of ours in docker-compose.yml, started as the file says, without containers.

The commands and environments are the file's own; only places differ: a database, a Valkey and directories of
this machine stand where the file names containers and volumes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from openai import OpenAI

from tests.compose.composition import Service, our_services
from tests.harness.databases import free_port, fresh_postgres
from tests.harness.servers import Child, clean_environment, python, running_valkey
from tests.harness.waiting import eventually

VARIABLES = {
    "POSTGRES_PASSWORD": "pg-word", "FLOWER_PASSWORD": "flower-word", "GRAFANA_PASSWORD": "grafana-word",
    "XAI_API_KEY": "xai-not-called",
}  # fmt: skip
BIN = Path(sys.executable).parent


@dataclass
class Places:
    """Where the file's containers, volumes and ports are on this machine."""

    directory: Path
    database: str
    valkey: str
    simulator: int
    api: int
    flower: int
    metrics: int

    def moved(self, text: str, service: str) -> str:
        for there, here in (
            ("postgresql://batchmill:pg-word@postgres:5432/batchmill", self.database),
            ("redis://valkey:6379/0", self.valkey),
            ("/var/lib/batchmill/files", str(self.directory / "files")),
            ("/tmp/batchmill", str(self.directory / service)),
            ("/etc/batchmill.toml", str(self.directory / "batchmill.toml")),
            ("0.0.0.0", "127.0.0.1"),
            ("--port=5555", f"--port={self.flower}"),
            ("127.0.0.1:8484", f"127.0.0.1:{self.api}"),
        ):
            text = text.replace(there, here)
        return str(self.metrics) if text == "9100" else text


@dataclass
class Running:
    places: Places
    services: dict[str, Service]
    children: dict[str, Child]
    key: str

    @property
    def client(self) -> OpenAI:
        return OpenAI(base_url=f"http://127.0.0.1:{self.places.api}/v1", api_key=self.key)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Places]:
    directory = tmp_path_factory.mktemp("compose")
    with fresh_postgres() as database, running_valkey() as valkey:
        found = Places(directory, database, valkey, *(free_port() for _ in range(3)), free_port(in_a_row=2))
        (directory / "batchmill.toml").write_text(
            f'[providers.sim]\nbase_url = "http://127.0.0.1:{found.simulator}/v1"\nmodels = ["sim-1"]\n'
        )
        simulator = Child(
            python("-m", "batch.simulator", "--port", str(found.simulator), "--latency", "0.05"),
            env=clean_environment(), cwd=directory, log=directory / "simulator.log",
        )  # fmt: skip
        yield found
        simulator.terminate()


@pytest.fixture(scope="module")
def running(places: Places) -> Iterator[Running]:
    """Started in the file's order: migrate ends, then a key is made as its first lines say, then the rest."""
    services = our_services(VARIABLES)
    children: dict[str, Child] = {}
    try:
        assert _start(services["migrate"], places).process.wait(60) == 0
        key = _make_key(services["api"], places)
        for name in ("api", "worker", "beat", "flower"):
            children[name] = _start(services[name], places)
        assert set(services) == {*children, "migrate"}
        eventually(lambda: _status(f"http://127.0.0.1:{places.api}/readyz") == 200, 60, what="the API")
        yield Running(places, services, children, key)
    finally:
        for child in children.values():
            child.kill()


def test_a_batch_runs_through_them(running: Running) -> None:
    """Uploaded, called, written and downloaded by an unmodified client."""
    lines = [
        {"custom_id": f"r{i}", "method": "POST", "url": "/v1/chat/completions",
         "body": {"model": "sim-1", "messages": [{"role": "user", "content": f"Say {i}"}]}}
        for i in range(300)
    ]  # fmt: skip
    client = running.client
    content = "\n".join(json.dumps(line) for line in lines).encode()
    file = client.files.create(file=("in.jsonl", content), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    ended = eventually(lambda: _if_ended(client, batch.id), 90, 0.2, "the batch ends")
    assert (ended.status, ended.request_counts.completed) == ("completed", 300)
    answers = client.files.content(ended.output_file_id).text.splitlines()
    assert sorted(json.loads(line)["custom_id"] for line in answers) == sorted(line["custom_id"] for line in lines)


def test_the_api_lists_the_providers_whose_keys_it_does_not_hold(running: Running) -> None:
    providers = httpx.get(
        f"http://127.0.0.1:{running.places.api}/v1/providers", headers={"Authorization": f"Bearer {running.key}"}
    ).json()["data"]
    assert {"sim", "xai"} <= {row["id"] for row in providers}
    environ = Path(f"/proc/{running.children['api'].pid}/environ")
    if environ.exists():
        assert b"xai-not-called" not in environ.read_bytes()


def test_the_health_check_of_the_api_passes(running: Running) -> None:
    kind, *command = running.services["api"].raw["healthcheck"]["test"]
    assert kind == "CMD"
    moved = [running.places.moved(word, "api") for word in command]
    assert subprocess.run([sys.executable, *moved[1:]], timeout=20, check=False).returncode == 0


def test_flower_shows_the_workers_to_whoever_has_the_password(running: Running) -> None:
    """Both processes of the worker container, by name."""
    url = f"http://127.0.0.1:{running.places.flower}/api/workers?refresh=1"
    eventually(lambda: _status(url) == 401, 60, what="Flower")

    def names() -> set[str]:
        found = httpx.get(url, auth=("batchmill", "flower-word"), timeout=20)
        return {name.partition("@")[0] for name in found.json()} if found.status_code == 200 else set()

    eventually(lambda: names() >= {"worker-1", "jobs"}, 30, 0.5, "Flower lists the workers")


def test_each_worker_process_serves_its_own_metrics(running: Running) -> None:
    """On the first free port from metrics_port upwards: calls in one, sweeps in the other."""
    ports = [running.places.metrics, running.places.metrics + 1]

    def told(metric: str) -> list[int]:
        return [port for port in ports if metric in httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=10).text]

    calls = eventually(lambda: told('batchmill_lines_total{model="sim-1",outcome="completed"'), 20, 0.5, "lines")
    assert told("batchmill_tokens_total{") == told("batchmill_in_flight_calls{") == calls
    assert sorted(calls + told("batchmill_sweeps_total{")) == ports


def test_sigterm_ends_each_of_them_within_its_grace(running: Running) -> None:
    """Exit code 0, and nothing is left of any."""
    began = time.monotonic()
    codes = {name: child.terminate(timeout_s=45) for name, child in running.children.items()}
    assert codes == dict.fromkeys(codes, 0)
    assert time.monotonic() - began < 45
    marker = str(running.places.directory).encode()
    left = [pid for pid in Path("/proc").glob("[0-9]*") if marker in _environment_of(pid)]
    assert left == []


def _start(service: Service, places: Places) -> Child:
    environment = clean_environment(
        BATCHMILL_PORT=str(places.api),
        **{key: places.moved(value, service.name) for key, value in service.environment.items() if value},
    )
    program, *arguments = [places.moved(word, service.name) for word in service.command]
    return Child(
        [str(BIN / program), *arguments], env=environment, cwd=places.directory,
        log=places.directory / f"{service.name}.log",
    )  # fmt: skip


def _make_key(api: Service, places: Places) -> str:
    words = ["admin", "keys", "create", "--name", "first"]
    child = _start(Service("api", [api.command[0], *words], api.environment, {}), places)
    assert child.process.wait(60) == 0, child.text()
    return next(line for line in child.text().splitlines() if line.startswith("bm_"))


def _if_ended(client: OpenAI, batch_id: str):
    batch = client.batches.retrieve(batch_id)
    return batch if batch.status in {"completed", "failed", "expired", "cancelled"} else None


def _status(url: str) -> int:
    try:
        return httpx.get(url, timeout=5, trust_env=False).status_code
    except httpx.HTTPError:
        return 0


def _environment_of(process: Path) -> bytes:
    try:
        return (process / "environ").read_bytes()
    except OSError:
        return b""
