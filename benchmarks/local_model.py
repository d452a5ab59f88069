"""`python -m benchmarks.local_model`: what structured output and seeds come to on a real, small model.

Owns: the requests, one service over one llama.cpp, and the report. Needs the local model (make demo installs it).
Parts: 200 requests with json_schema under llama.cpp's grammar; n = 3 with seeds, asked twice; the first
200 again with the ladder forced down to the prompt.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema_rs
import orjson

from batch.cli.local_model import MODEL, SLOTS
from benchmarks.stack import free_port
from tests.harness.service import Finished, Service, chat, running_service
from tests.harness.waiting import eventually

REQUESTS = 200
SEEDED = 40
ROOT = Path(__file__).resolve().parents[1]
_ANIMALS = ("cat", "heron", "otter", "bee", "salmon", "goat", "crow", "mole", "whale", "ant")
_PLACES = ("harbour", "meadow", "attic", "bakery", "library")
SCHEMA = {
    "type": "object",
    "properties": {
        "legs": {"type": "integer", "minimum": 0, "maximum": 8},
        "mood": {"enum": ["calm", "busy", "afraid"]},
    },
    "required": ["legs", "mood"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "sighting", "strict": True, "schema": SCHEMA}}


def main() -> None:
    with _model() as base_url, running_service(_config(base_url)) as service:
        _measure(service, "native grammar", "grammar", _requests(REQUESTS))
        seeded = [{**line, "body": {**line["body"], "n": 3, "seed": 1000 + 10 * i}}
                  for i, line in enumerate(_requests(SEEDED))]  # fmt: skip
        first = _measure(service, "n = 3 with seeds", "grammar", seeded)
        second = _measure(service, "n = 3 with seeds, again", "grammar", seeded)
        pairs = list(zip(_texts(first), _texts(second), strict=True))
        print(f"repeated: {sum(a == b for a, b in pairs)} of {len(pairs)} choices equal", flush=True)
        _measure(service, "grammar off (prompt and check)", "prompt", _requests(REQUESTS))


def _measure(service: Service, title: str, provider: str, lines: list[dict[str, Any]]) -> Finished:
    began = time.monotonic()
    found = service.run(lines, timeout_s=2400, providers=[provider])
    _report(title, found, time.monotonic() - began)
    return found


def _requests(count: int) -> list[dict[str, Any]]:
    return [
        chat(
            f"r{i}", MODEL,
            f"A {_ANIMALS[i % 10]} in a {_PLACES[i // 10 % 5]}, day {i // 50 + 1}. Describe it as JSON.",
            response_format=FORMAT, max_tokens=40, temperature=0.7, seed=i,
        )
        for i in range(count)
    ]  # fmt: skip


def _config(base_url: str) -> str:
    common = f'engine = "llamacpp"\nbase_url = "{base_url}"\nconcurrency = {SLOTS}\n'
    off = 'capabilities = { schema_mode = "prompt", json_schema = "ignored", json_object = "ignored" }\n'
    return f"[providers.grammar]\n{common}[providers.prompt]\n{common}{off}"


@contextlib.contextmanager
def _model() -> Iterator[str]:
    port = free_port()
    process = subprocess.Popen([sys.executable, "-m", "batch.cli.local_model", str(port)], cwd=ROOT,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    try:
        eventually(lambda: _answers(f"http://127.0.0.1:{port}/health"), 60, what="the model loads")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(20)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def _texts(found: Finished) -> list[str]:
    """Every choice's content, by custom_id and index."""
    lines = sorted((custom_id, line["response"]) for custom_id, line in found.lines.items() if line["response"])
    return [choice["message"]["content"] for _, response in lines for choice in response["body"]["choices"]]


def _report(title: str, found: Finished, seconds: float) -> None:
    counts, report = found.batch["request_counts"], found.report
    texts = _texts(found)
    valid = sum(jsonschema_rs.is_valid(SCHEMA, orjson.loads(text)) for text in texts)
    calls = sum(line["batchmill"].get("calls", 0) for line in found.lines.values())
    print(
        f"{title}: {counts['completed']} of {counts['total']} lines completed "
        f"({100 * counts['completed'] / counts['total']:.1f} %), {valid} of {len(texts)} choices valid, "
        f"{calls} calls, {report.get('schema:reasked', 0)} lines asked again, {report.get('schema:mended', 0)} of them "
        f"mended, {report.get('schema:extracted', 0)} taken out of prose, {seconds:.0f} s",
        flush=True,
    )
    failed = {name: number for name, number in report.items() if name.startswith("failed:")}
    if failed:
        print(f"  {failed}", flush=True)


if __name__ == "__main__":
    main()
