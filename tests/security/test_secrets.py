"""What a run leaves behind holds no key at all, and prompts only where prompts belong.

A real service with failing providers that repeat keys and prompts in their errors, at the most talkative log
level; then everything is read: logs, every table, Valkey, metrics, every answer of the API.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from batch.operations.keys import create_key
from batch.operations.world import open_world
from batch.settings import Settings
from tests.harness.databases import free_port
from tests.harness.service import Service, chat, running_service
from tests.harness.waiting import eventually

KEYS = {
    "good": "canarygoodkey-5b1fa7c2e9",
    "file": "canaryfilekey-77d0e41b3a",
    "locked": "canarylockedkey-c90a6f51d8",
    "webhook": "whsec_Y2FuYXJ5d2ViaG9va3NlY3JldDEyMzQ1Njc4OTA=",
}
PROMPT = "canaryprompt-quiet-otters-9137"
MAY_HOLD_PROMPTS = {"requests", "results"}
SHOWS_PROMPTS = ("/content", "/results", "/family")


@dataclass
class Left:
    """Everything that was left behind, by where it was found."""

    service: Service
    api_key: str
    answers: dict[str, list[str]] = field(default_factory=dict)
    metrics_port: int = 0

    def anywhere(self) -> Iterator[tuple[str, str]]:
        """(place, text) of all but blobs, requests and results."""
        yield from self.logs()
        yield from ((place, text) for place, text in self.tables() if place not in MAY_HOLD_PROMPTS)
        yield from self.valkey()
        yield from self.metrics()
        for path, texts in self.answers.items():
            if not path.endswith(SHOWS_PROMPTS):
                yield f"answer of {path}", "\n".join(texts)

    def contents(self) -> Iterator[tuple[str, str]]:
        """What may hold prompts."""
        yield from ((place, text) for place, text in self.tables() if place in MAY_HOLD_PROMPTS)
        for path in self._files():
            if (self.service.directory / "data" / "files") in path.parents:
                yield "blob", path.read_bytes().decode(errors="replace")

    def logs(self) -> Iterator[tuple[str, str]]:
        for path in self._files():
            if path.suffix in {".log", ".json", ".lock", ".toml"} or path.name.startswith("beat"):
                yield path.name, path.read_bytes().decode(errors="replace")

    def tables(self) -> Iterator[tuple[str, str]]:
        with contextlib.closing(sqlite3.connect(self.service.directory / "data" / "batchmill.db")) as db:
            for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
                yield name, "\n".join(map(repr, db.execute(f'SELECT * FROM "{name}"')))

    def valkey(self) -> Iterator[tuple[str, str]]:
        client = redis.Redis(unix_socket_path=str(self.service.directory / "data" / "valkey.sock"))
        for key in client.scan_iter():
            yield "valkey", repr((key, client.dump(key)))

    def metrics(self) -> Iterator[tuple[str, str]]:
        for number in (0, 1):
            yield "metrics", httpx.get(f"http://127.0.0.1:{self.metrics_port + number}/metrics").text

    def _files(self) -> list[Path]:
        return [path for path in self.service.directory.rglob("*") if path.is_file()]


class Talkative(BaseHTTPRequestHandler):
    """A provider that repeats the caller's key and prompt wherever it can. The model says how it answers."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        key = self.headers["authorization"].removeprefix("Bearer ")
        model = json.loads(body)["model"]
        error = {"error": {"message": f"Key {key} sent: {body.decode()}", "type": "x", "code": f"code_{key}"}}
        message = {"role": "assistant", "content": f"about {PROMPT}"}
        whole = {"id": "c", "object": "chat.completion", "created": 1, "model": model, "choices": [
            {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}}  # fmt: skip
        status, answer = {
            "ok": (200, json.dumps(whole)),
            "no": (400, json.dumps(error)),
            "never": (500, json.dumps(error)),
            "html": (502, f"<html>proxy for {key}: {body.decode()}</html>"),
            "garbage": (200, f'{{"choices": "{key} {PROMPT}'),
            "away": (302, key),
            "locked": (401, json.dumps({"error": {"message": f"Incorrect API key provided: {key}.", "code": key}})),
        }[model]
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer.encode())))
        self.send_header("x-request-id", f"req-{key}")
        self.send_header("x-ratelimit-limit-requests", key)
        self.send_header("set-cookie", f"session={key}")
        self.send_header("location", f"http://127.0.0.1:9/{key}")
        self.end_headers()
        self.wfile.write(answer.encode())

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Left]:
    """Two batches that ended, one that is stuck at a refused key, wrong requests, a wrong file."""
    provider = ThreadingHTTPServer(("127.0.0.1", 0), Talkative)
    threading.Thread(target=provider.serve_forever, daemon=True).start()
    key_file = tmp_path_factory.mktemp("keys") / "file"
    key_file.write_text(KEYS["file"] + "\n")
    port = free_port(in_a_row=2)
    url = f"http://127.0.0.1:{provider.server_address[1]}/v1"
    config = f"""
metrics_port = {port}
log_level = "debug"
block_private_urls = true

[providers.good]
base_url = "{url}"
api_key_env = "CANARY_GOOD"
models = ["ok", "no", "never", "html", "garbage", "away"]

[providers.infile]
base_url = "{url}"
api_key_file = "{key_file}"
models = ["unused"]

[providers.locked]
base_url = "{url}"
api_key_env = "CANARY_LOCKED"
models = ["locked"]
"""
    env = {"CANARY_GOOD": KEYS["good"], "CANARY_LOCKED": KEYS["locked"], "BATCHMILL_WEBHOOK_SECRET": KEYS["webhook"]}
    with running_service(config, **env) as service:
        found = Left(service, _make_key(service), metrics_port=port)
        service.client.headers["authorization"] = f"Bearer {found.api_key}"
        service.client.event_hooks["response"] = [lambda response: _remember(found, response)]
        _live(service)
        yield found
    provider.shutdown()


def test_no_key_is_found_anywhere(left: Left) -> None:
    """Not those of providers, not the API's own, not the webhook secret; not even in results and blobs."""
    for place, text in (*left.anywhere(), *left.contents()):
        for name, key in {**KEYS, "api": left.api_key}.items():
            at = text.find(key)
            assert at < 0, f"the {name} key stands in {place}: …{text[max(0, at - 80):at]}…"


def test_prompts_stand_in_requests_results_and_blobs_only(left: Left) -> None:
    for place, text in left.anywhere():
        at = text.find(PROMPT)
        assert at < 0, f"a prompt stands in {place}: …{text[max(0, at - 200):at]}…"


def test_the_search_would_find_them(left: Left) -> None:
    """Prompts do stand where they may; logs, tables, Valkey and metrics were really read."""
    assert {place for place, text in left.contents() if PROMPT in text} == {"requests", "results", "blob"}
    read = {place for place, text in left.anywhere() if text}
    assert {"lanes", "batches", "api_keys", "valkey", "metrics"} <= read
    assert any(place.endswith(".log") and "http_answered" in text for place, text in left.logs())
    assert any("batchmill_calls_total{" in text for _, text in left.metrics())


def _make_key(service: Service) -> str:
    world = open_world(Settings(data_dir=service.directory / "data"))
    try:
        return create_key(world).key
    finally:
        world.close()


def _live(service: Service) -> None:
    lines = [
        chat(f"{model}-{number}", model, PROMPT)
        for model in ("ok", "no", "never", "html", "garbage", "away")
        for number in (1, 2)
    ]
    eventually(lambda: service.client.get("/v1/files").status_code == 200, what="the key works")
    service.run(lines, max_attempts=2, timeout_s=120)
    invalid = chat("bad", "ok", PROMPT)
    invalid["body"]["temperature"] = PROMPT
    service.run([invalid, {"custom_id": "x", PROMPT: 1}])
    stuck = service.submit([chat("locked", "locked", PROMPT)])
    explained = f"/v1/batches/{stuck}/explanation"
    eventually(lambda: "401" in service.client.get(explained).text, 60, 0.2, "the refused key shows")
    service.client.post("/v1/batches", json={"input_file_id": PROMPT and "file-x", "endpoint": "/v1/nothing"})
    service.client.post("/v1/files", content=PROMPT)
    for path in ("batches", "providers", "models", "webhook_endpoints", f"batches/{stuck}", f"batches/{stuck}/results"):
        assert service.client.get(f"/v1/{path}").status_code == 200
    service.client.get("/metrics")
    service.client.get("/v1/files", headers={"authorization": f"Bearer {KEYS['good']}"})


def _remember(left: Left, response: httpx.Response) -> None:
    response.read()
    text = response.text + repr(response.headers.raw)
    left.answers.setdefault(response.request.url.path, []).append(text)
