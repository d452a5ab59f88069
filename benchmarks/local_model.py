"""`python -m benchmarks.local_model`: what structured output and seeds come to on a real, small model.

Owns: the requests, one service over one llama.cpp, and the report. Needs the local model (make demo installs it).
Parts: requests with json_schema under llama.cpp's grammar; n = 3 with seeds, asked twice; the first requests
again with the ladder forced down to the prompt. The table's rows go to standard output, times to standard error.
"""

from __future__ import annotations

import argparse
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

LINES = 100
PARTS = ("grammar", "seeds", "off")
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
    args = _arguments()
    print("| part | lines completed | choices valid | calls | asked again | mended |\n" + "|---" * 6 + "|", flush=True)
    with _model() as base_url, running_service(_config(base_url)) as service:
        if "grammar" in args.only:
            _measure(service, "llama.cpp's grammar", "grammar", _requests(args.lines))
        if "seeds" in args.only:
            count = max(1, args.lines // 5)
            seeded = [{**line, "body": {**line["body"], "n": 3, "seed": 1000 + 10 * i}}
                      for i, line in enumerate(_requests(count))]  # fmt: skip
            first = _texts(_measure(service, "`n = 3` with seeds", "grammar", seeded))
            second = _texts(_measure(service, "`n = 3`, the same seeds again", "grammar", seeded))
            equal = sum(first[choice] == second[choice] for choice in first.keys() & second.keys())
            print(f"{equal} of {len(first.keys() & second.keys())} choices came out equal", file=sys.stderr, flush=True)
        if "off" in args.only:
            _measure(service, "grammar off: prompt and check", "prompt", _requests(args.lines))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks.local_model", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--lines", type=int, default=LINES, help="with the grammar on, and off; a fifth with n = 3")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to run")
    return parser.parse_args()


def _measure(service: Service, title: str, provider: str, lines: list[dict[str, Any]]) -> Finished:
    began = time.monotonic()
    found = service.run(lines, timeout_s=2400, providers=[provider])
    _report(title, found)
    print(f"{title}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return found


def _requests(count: int) -> list[dict[str, Any]]:
    return [
        chat(
            f"r{i}", MODEL,
            f"A {_ANIMALS[i % 10]} in a {_PLACES[i // 10 % 5]}, day {i // 50 + 1}. Describe it as JSON.",
            response_format=FORMAT, max_tokens=160, temperature=0.7, seed=i,
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


def _texts(found: Finished) -> dict[tuple[str, int], str]:
    """Every choice's content, by custom_id and index."""
    answered = {custom_id: line["response"]["body"] for custom_id, line in found.lines.items() if line["response"]}
    return {
        (custom_id, choice["index"]): choice["message"]["content"]
        for custom_id, body in answered.items()
        for choice in body.get("choices", ())
    }


def _report(title: str, found: Finished) -> None:
    """A row of the table in docs/structured-output.md."""
    counts, report, texts = found.batch["request_counts"], found.report, _texts(found)
    valid = sum(jsonschema_rs.is_valid(SCHEMA, orjson.loads(text)) for text in texts.values())
    calls = sum(line["batchmill"].get("calls", 0) for line in found.lines.values())
    cells = (
        title, f"{counts['completed']} of {counts['total']}", f"{valid} of {len(texts)}", calls,
        report.get("schema:reasked", 0), report.get("schema:mended", 0),
    )  # fmt: skip
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)
    failed = {name: number for name, number in report.items() if name.startswith("failed:")}
    if failed:
        print(f"  {failed}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
