"""A managed engine whose process runs while it no longer serves."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from batch.clock import SYSTEM_CLOCK
from batch.providers.adapter import make_adapter
from batch.providers.catalog import Catalog
from batch.settings import LaunchConfig, load_settings
from workers import engine_process
from workers.engine_process import ManagedEngine
from workers.engines import Engine

SICK_AFTER_READY = """
import http.server, sys
looks = 0
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        global looks
        looks += self.path == "/health"
        self.send_response(200 if looks < 2 else 503)
        self.end_headers()
    def log_message(self, *_): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def test_an_engine_that_stays_out_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process runs, and its health says no: the inner loop of transformers serve dies so."""
    monkeypatch.setattr(engine_process, "UNWELL_S", 0.5)
    monkeypatch.setattr("workers.engines.CHECK_UP_S", 0.1)

    async def story() -> set[str]:
        launch = {"command": [sys.executable, "-c", SICK_AFTER_READY, "{port}"]}
        settings = load_settings(environ={}, providers={"eng": {"engine": "transformers", "launch": launch}})
        adapter = make_adapter(Catalog.from_settings(settings, environ={}), "eng", settings)
        engine = Engine(adapter, SYSTEM_CLOCK, lambda name, models: None)
        config = LaunchConfig.model_validate(launch)
        managed = ManagedEngine(engine, config, tmp_path, SYSTEM_CLOCK, lambda reason: None)
        before = {replica.base_url for replica in engine.replicas}
        engine.start()
        managed.start()
        addresses: set[str] = set()
        try:
            async with asyncio.timeout(60):
                while len(addresses) < 2:
                    addresses |= {replica.base_url for replica in engine.replicas} - before
                    await SYSTEM_CLOCK.sleep_async(0.05)
        finally:
            await managed.stop()
            await engine.close()
            await adapter.close()
        return addresses

    assert len(asyncio.run(story())) == 2


def test_machines_whose_names_begin_alike_run_their_own_engines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On one shared data directory `node.1` and `node.2` once had one lock, and the second one no engine."""

    async def story() -> list[int]:
        launch = {"command": [sys.executable, "-c", SICK_AFTER_READY, "{port}"]}
        settings = load_settings(environ={}, providers={"eng": {"engine": "transformers", "launch": launch}})
        adapter = make_adapter(Catalog.from_settings(settings, environ={}), "eng", settings)
        managed = []
        try:
            for host in ("node.1", "node.2"):
                monkeypatch.setattr("socket.gethostname", lambda host=host: host)
                engine = Engine(adapter, SYSTEM_CLOCK, lambda name, models: None)
                config = LaunchConfig.model_validate(launch)
                managed.append(ManagedEngine(engine, config, tmp_path, SYSTEM_CLOCK, lambda reason: None))
                managed[-1].start()
            async with asyncio.timeout(30):
                while not all((tmp_path / "engines" / f"eng-node.{n}.json").exists() for n in (1, 2)):
                    await SYSTEM_CLOCK.sleep_async(0.05)
        finally:
            for each in managed:
                await each.stop()
            await adapter.close()
        return [len(each._replicas) for each in managed]

    assert asyncio.run(story()) == [1, 1]
