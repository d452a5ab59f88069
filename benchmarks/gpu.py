"""Engines: how busy Batchmill keeps one, and what the order by prefix gains. make bench does not run it:
python -m benchmarks.gpu [--engine vllm [--model DIR]] [--base-url URL --engine vllm --model M] [--size 0.5].

Owns: comparisons in one run on one engine: tokens/s through a whole `batchmill up`, of a bare asynchronous
client and of the engine's own offline loop; prefix order against the shuffled input's. It needs no network:
without a model it makes one of random weights, and without an engine it serves the bundled model on the CPU.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from benchmarks.engines import CACHE_MIB, COMMANDS, HAS_GPU, Target, offline, started
from benchmarks.measure import HEADER, Row, machine, progress
from benchmarks.stack import service
from benchmarks.weights import make_model

ROUNDS = 20             # answers a slot gives in one saturation run: its start and end are a small part
DOCUMENT_WORDS = 800    # 850 tokens of the bundled model, whose slots hold 2,048
PREFIX_SLOTS = 2        # on the CPU; each slot of llama.cpp reads a document by itself


def main() -> int:
    given = _arguments()
    print(f"{_card() if HAS_GPU else machine()}, {time.strftime('%Y-%m-%d')}")
    for line in skipped(given):
        print(f"skipped: {line}")
    model = given.model or ("" if given.engine == "llamacpp" or given.base_url else _made_model())
    if model and not given.base_url:
        print(f"model: {Path(model).name}")
    print(f"\n{HEADER}", flush=True)
    own = None
    if not given.base_url and given.only != "prefix":  # before the server takes the card's memory
        bodies = [row["body"] for row in _stories(Target("", given.engine, model, given.slots), given.size)]
        own = offline(given.engine, model, given.slots, bodies)
    if given.only != "prefix":
        with _running(given, model, given.slots) as target:
            for row in saturation(target, given.repeats, given.size, own):
                print(row.markdown(), flush=True)
    if given.only != "saturation":
        with _running(given, model, given.slots if HAS_GPU else PREFIX_SLOTS) as target:
            print(prefix_gain(target, given.repeats, given.documents, given.questions).markdown(), flush=True)
    return 0


def _running(given: argparse.Namespace, model: str, slots: int) -> contextlib.AbstractContextManager[Target]:
    if given.base_url:
        return contextlib.nullcontext(Target(given.base_url, given.engine, model, slots))
    return started(given.engine, model, slots)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.gpu", description=__doc__)
    installed = [engine for engine in COMMANDS if shutil.which(engine)] if HAS_GPU else []
    parser.add_argument("--engine", choices=["llamacpp", *COMMANDS], default=installed[0] if installed else "llamacpp")
    parser.add_argument("--base-url", help="an engine that runs already")
    parser.add_argument("--model", help="a directory of weights (default: made here; 1 B parameters on a GPU)")
    parser.add_argument("--slots", type=int, default=256 if HAS_GPU else 4, help="calls in flight of the bare client")
    parser.add_argument("--size", type=float, default=1.0, help="factor on the lines of the saturation run")
    parser.add_argument("--documents", type=int, default=50 if HAS_GPU else 8)
    parser.add_argument("--questions", type=int, default=20 if HAS_GPU else 8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=["saturation", "prefix"])
    return parser.parse_args()


def skipped(given: argparse.Namespace) -> list[str]:
    """What needs a machine that this is not."""
    found = [] if HAS_GPU else ["no NVIDIA GPU here: nothing below says anything about one"]
    if given.base_url or given.engine not in {"vllm", "transformers"}:
        found.append(f"the engine's own offline loop: {given.engine} has none that can be called here")
    return found


def _card() -> str:
    asked = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip().replace("\n", "; ")


def _made_model() -> str:
    """Random weights, made once and kept beside the temporary files."""
    size = "1b" if HAS_GPU else "toy"
    directory = Path(tempfile.gettempdir()) / f"batchmill-weights-{size}"
    progress(f"{make_model(directory, size) / 1e6:,.0f} M random parameters in {directory}")
    return str(directory)


def saturation(target: Target, repeats: int, size: float, own: float | None) -> list[Row]:
    """Output tokens/s through us over the bare client's, in turns on one engine; every answer has one length."""
    requests = _stories(target, size)
    ours: list[float] = []
    bare: list[float] = []

    def go(up: Any) -> None:
        seconds, tokens, _ = _through(up, requests)
        ours.append(tokens / seconds)

    def go_bare(up: Any) -> None:
        seconds, tokens = asyncio.run(_bare(target, [request["body"] for request in requests]))
        bare.append(tokens / seconds)

    with _served(target) as up:
        asyncio.run(_bare(target, [request["body"] for request in requests[: target.slots]]))  # warm
        for repeat in range(repeats):
            for turn in (go, go_bare) if repeat % 2 else (go_bare, go):  # drift of the machine falls on both
                turn(up)
            progress(f"saturation {repeat + 1}: ours {ours[-1]:.1f} tokens/s, bare {bare[-1]:.1f}")
    note = f"{len(requests)} lines, {statistics.median(ours):.0f} against {statistics.median(bare):.0f} tokens/s"
    ratios = [mine / other for mine, other in zip(ours, bare, strict=True)]
    rows = [Row("tokens/s through us ÷ bare client", "×", ratios, least=0.95, note=note)]
    if own is not None:
        best = max(own, statistics.median(bare))
        rows.append(Row("tokens/s through us ÷ best of offline loop and bare client", "×", [x / best for x in ours],
                        least=0.97, note=f"the engine's own offline loop: {own:.0f} tokens/s"))  # fmt: skip
    return rows


def prefix_gain(target: Target, repeats: int, documents: int, questions: int) -> Row:
    """Time of a shuffled file sent as it stands, over its time sent by prefix. Each run has new documents."""
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
    bound = f"prompt cache bounded to {target.slots} slots and {CACHE_MIB} MiB; " if target.engine == "llamacpp" else ""
    note = (
        f"{documents} documents × {questions} questions, {statistics.median(slow):.1f} s → "
        f"{statistics.median(fast):.1f} s; {bound}"
        f"of the prompts {cached['input']:.0%} → {cached['prefix']:.0%} came from the engine's cache"
    )
    return Row("time in shuffled order ÷ by prefix", "×", gains, least=1.5, note=note)


def _stories(target: Target, size: float) -> list[dict[str, Any]]:
    count = max(2 * target.slots, int(ROUNDS * target.slots * size))
    return [_request(target, f"s{i}", f"Write a long story about the number {i}.", 64) for i in range(count)]


def _over_documents(target: Target, documents: int, questions: int, salt: str) -> list[dict[str, Any]]:
    chance = random.Random(salt)
    words = ["river", "engine", "winter", "paper", "market", "signal", "garden", "window", "letter", "harbour"]
    texts = [
        f"{salt} {i}. " + " ".join(chance.choice(words) for _ in range(DOCUMENT_WORDS)) for i in range(documents)
    ]
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
        "temperature": 0, **target.extra,
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
    ended = up.wait(batch_id, {"finalizing", "completed"}, every_s=0.1)
    seconds = time.perf_counter() - began
    ended = up.wait(batch_id, {"completed"})
    if ended["request_counts"]["failed"]:
        raise RuntimeError(f"{ended['request_counts']['failed']} lines failed")
    usage = ended["usage"]
    return seconds, int(usage["output_tokens"]), usage["input_tokens_details"]["cached_tokens"] / usage["input_tokens"]


@contextlib.contextmanager
def _served(target: Target) -> Iterator[Any]:
    rows = f'engine = "{target.engine}"\n'
    if target.engine == "transformers":  # it has no gauge that would tell how much it runs
        rows += f"concurrency = {target.slots}\n"
    with service(target.base_url, limits=rows, model=target.model) as up:
        yield up


if __name__ == "__main__":
    sys.exit(main())
