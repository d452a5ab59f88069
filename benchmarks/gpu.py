"""Engines: how busy Batchmill keeps one, and what the order by prefix gains. make bench does not run it:
python -m benchmarks.gpu [--base-url URL --engine vllm --model M] [--size 0.5].

Owns: two comparisons, each in the same run on the same engine: tokens/s through a whole `batchmill up` against
a bare asynchronous client loop, and prefix order against the shuffled input's. Without --base-url it serves the
bundled model on the CPU; the engine's own offline loop needs vLLM and a GPU, and is skipped elsewhere.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from batch.cli.local_model import MODEL
from benchmarks.measure import HEADER, Row, machine, progress
from benchmarks.stack import free_port, plain_environment, service


@dataclass(frozen=True)
class Target:
    """An engine that runs already. `slots`: calls in flight of the bare client."""

    base_url: str
    engine: str
    model: str
    slots: int


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.gpu", description=__doc__)
    parser.add_argument("--base-url", help="an engine that runs already (default: the bundled model on the CPU)")
    parser.add_argument("--engine", default="vllm")
    parser.add_argument("--model")
    parser.add_argument("--slots", type=int, default=4, help="calls in flight of the bare client (4; a GPU: 256)")
    parser.add_argument("--size", type=float, default=1.0, help="factor on the number of lines")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=["saturation", "prefix"])
    given = parser.parse_args()
    print(f"{machine()}, {time.strftime('%Y-%m-%d')}")
    for line in skipped():
        print(f"skipped: {line}")
    print(f"\n{HEADER}", flush=True)
    with contextlib.ExitStack() as stack:
        target = (
            Target(given.base_url, given.engine, given.model or "", given.slots) if given.base_url
            else Target(stack.enter_context(_local_engine()), "llamacpp", MODEL, given.slots)
        )  # fmt: skip
        if given.only != "prefix":
            print(saturation(target, given.repeats, given.size).markdown(), flush=True)
        if given.only != "saturation":
            print(prefix_gain(target, given.repeats, given.size).markdown(), flush=True)
    return 0


def skipped() -> list[str]:
    """What needs a machine that this is not."""
    found = []
    if shutil.which("nvidia-smi") is None:
        found.append("no NVIDIA GPU here: nothing below says anything about one")
    if importlib.util.find_spec("vllm") is None:
        found.append("the engine's own offline loop: vLLM is not installed")
    return found


def saturation(target: Target, repeats: int, size: float) -> Row:
    """Output tokens/s through us over the bare client's, in turns on one engine; every answer has one length."""
    tokens, lines = 32, max(16, int(96 * size))
    requests = [_request(target, f"s{i}", f"Write a long story about the number {i}.", tokens) for i in range(lines)]
    ratios, ours, theirs = [], [], []
    with _served(target) as up:
        for repeat in range(repeats):
            bare = asyncio.run(_bare(target, [request["body"] for request in requests]))
            through = _through(up, requests)
            theirs.append(bare[1] / bare[0])
            ours.append(through[1] / through[0])
            ratios.append(ours[-1] / theirs[-1])
            progress(f"saturation {repeat + 1}: ours {ours[-1]:.1f} tokens/s, bare {theirs[-1]:.1f}")
    note = f"{lines} lines, {statistics.median(ours):.0f} against {statistics.median(theirs):.0f} tokens/s"
    return Row("tokens/s through us ÷ bare client", "×", ratios, least=0.95, note=note)


def prefix_gain(target: Target, repeats: int, size: float) -> Row:
    """Time of a shuffled file sent as it stands, over its time sent by prefix. Each run has new documents."""
    documents, questions = max(4, int(50 * size)), 20
    gains, slow, fast, cached = [], [], [], {"input": 0.0, "prefix": 0.0}
    with _served(target) as up:
        for repeat in range(repeats):
            times = {}
            for order in ("input", "prefix"):
                requests = _over_documents(target, documents, questions, f"{repeat} {order}")
                times[order], _, cached[order] = _through(up, requests, options={"order": order})
            slow.append(times["input"])
            fast.append(times["prefix"])
            gains.append(times["input"] / times["prefix"])
            progress(f"prefix {repeat + 1}: {times['input']:.1f} s as it stands, {times['prefix']:.1f} s by prefix")
    note = (
        f"{documents} × {questions} lines, {statistics.median(slow):.1f} s → {statistics.median(fast):.1f} s; "
        f"of the prompts {cached['input']:.0%} → {cached['prefix']:.0%} came from the engine's cache"
    )
    return Row("time in shuffled order ÷ by prefix", "×", gains, least=1.5, note=note)


def _over_documents(target: Target, documents: int, questions: int, salt: str) -> list[dict[str, Any]]:
    chance = random.Random(salt)
    words = ["river", "engine", "winter", "paper", "market", "signal", "garden", "window", "letter", "harbour"]
    texts = [f"{salt} {i}. " + " ".join(chance.choice(words) for _ in range(300)) for i in range(documents)]
    requests = [
        _request(target, f"d{d}-q{q}", f"{texts[d]}\n\nQuestion {q}: what is word {q}?", 2)
        for d in range(documents)
        for q in range(questions)
    ]
    chance.shuffle(requests)
    return requests


def _request(target: Target, custom_id: str, content: str, tokens: int) -> dict[str, Any]:
    body = {
        "model": target.model, "messages": [{"role": "user", "content": content}], "max_tokens": tokens,
        "temperature": 0, "ignore_eos": True,
    }  # fmt: skip
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}


async def _bare(target: Target, bodies: list[dict[str, Any]]) -> tuple[float, int]:
    """(seconds, output tokens) of a client that keeps `slots` calls in flight and writes nothing."""
    total, waiting = 0, iter(bodies)
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=600, limits=limits, trust_env=False) as client:

        async def loop() -> None:
            nonlocal total
            for body in waiting:
                answer = await client.post(f"{target.base_url}/chat/completions", json=body)
                total += answer.raise_for_status().json()["usage"]["completion_tokens"]

        began = time.perf_counter()
        await asyncio.gather(*(loop() for _ in range(target.slots)))
        return time.perf_counter() - began, total


def _through(up: Any, requests: list[dict[str, Any]], **fields: Any) -> tuple[float, int, float]:
    """(seconds, output tokens, cached share of the prompts) from creating the batch to its last result."""
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        file.write("".join(json.dumps(request) + "\n" for request in requests))
        file.flush()
        file_id = up.upload(Path(file.name))
    began = time.perf_counter()
    batch_id = up.create(file_id, **fields)
    ended = up.wait(batch_id, {"finalizing", "completed"}, every_s=0.05)
    seconds = time.perf_counter() - began
    ended = up.wait(batch_id, {"completed"})
    if ended["request_counts"]["failed"]:
        raise RuntimeError(f"{ended['request_counts']['failed']} lines failed")
    usage = ended["usage"]
    return seconds, int(usage["output_tokens"]), usage["input_tokens_details"]["cached_tokens"] / usage["input_tokens"]


@contextlib.contextmanager
def _served(target: Target) -> Iterator[Any]:
    rows = f'engine = "{target.engine}"\n'
    with service(target.base_url, limits=rows, model=target.model) as up:
        yield up


@contextlib.contextmanager
def _local_engine() -> Iterator[str]:
    """The bundled model with one thread, so that threads of others nearby do not spin against it."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "batch.cli.local_model", str(port), "1"], env=plain_environment(),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        until = time.monotonic() + 60
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).status_code == 200:
                    break
            if time.monotonic() > until or process.poll() is not None:
                raise RuntimeError("the bundled model does not start: is it installed?")
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    sys.exit(main())
