"""The engine that benchmarks.gpu measures: one that runs already, or one that is started here with a made model.

Owns: Target, the command of each engine, starting it, its own offline loop in its own environment.
May not touch: what is measured. Without a program and without a GPU there is the bundled llama.cpp model.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from batch.cli.local_model import MODEL
from benchmarks.stack import ROOT, free_port, plain_environment

COMMANDS = {  # {model}, {port}, {slots}; the program is looked for on the PATH
    "vllm": "vllm serve {model} --port {port} --max-num-seqs {slots} --enable-prefix-caching"
            " --enable-prompt-tokens-details",
    "sglang": "sglang serve --model-path {model} --port {port} --max-running-requests {slots} --enable-metrics",
    "transformers": "transformers serve {model} --port {port} --continuous-batching",
}  # fmt: skip
ON_CPU = {  # what it plans by a card's memory
    "transformers": " --device cpu --cb-block-size 64 --cb-num-blocks {blocks} --cb-max-batch-tokens 256",
}
HAS_GPU = shutil.which("nvidia-smi") is not None
CACHE_MIB = 16      # of the bundled model's prompt cache beside its slots: less than a document
READY_S = 600.0


@dataclass(frozen=True)
class Target:
    """`slots`: what it runs at once, and the bare client keeps in flight. `extra`: body fields that it understands."""

    base_url: str
    engine: str
    model: str
    slots: int
    extra: dict[str, Any] = field(default_factory=lambda: {"ignore_eos": True})


@contextlib.contextmanager
def started(engine: str, model: str, slots: int) -> Iterator[Target]:
    """Serve `model` until the block ends; of llamacpp the bundled one."""
    port = free_port()
    if engine == "llamacpp":  # one thread, so that those of others nearby do not spin against its own
        command = [sys.executable, "-m", "batch.cli.local_model", str(port), "1", str(slots), str(CACHE_MIB)]
        model = MODEL
    else:
        fill = {"model": model, "port": port, "slots": slots, "blocks": 16 * slots}
        words = COMMANDS[engine] + ("" if HAS_GPU else ON_CPU.get(engine, ""))
        command = [word.format_map(fill) for word in words.split()]
    with tempfile.TemporaryDirectory(prefix="bm-hf-") as cache, tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, env=_environment(cache), stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        try:
            _await_ready(process, port)
            extra = {} if engine == "transformers" else {"ignore_eos": True}  # it refuses what it does not know
            yield Target(f"http://127.0.0.1:{port}/v1", engine, model, slots, extra)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def offline(engine: str, model: str, slots: int, bodies: list[dict[str, Any]]) -> float | None:
    """Output tokens/s of the engine's own loop; None where it has none here."""
    program = shutil.which(engine)
    if program is None or engine not in {"vllm", "transformers"}:
        return None
    python = Path(program).resolve().with_name("python")  # of the environment that the engine is installed in
    with tempfile.TemporaryDirectory(prefix="bm-hf-") as cache:
        command = [str(python), str(ROOT / "benchmarks" / "offline.py"), engine, model, str(slots)]
        ended = subprocess.run(
            command, input=json.dumps(bodies), env=_environment(cache), capture_output=True, text=True, check=False,
        )  # fmt: skip
    if ended.returncode:
        raise RuntimeError(f"the offline loop of {engine} failed:\n{ended.stderr[-2000:]}")
    said = json.loads(ended.stdout.splitlines()[-1])
    return float(said["tokens"] / said["seconds"])


def _environment(cache: str) -> dict[str, str]:
    """No network, and a cache directory that exists: transformers serve lists no models without one."""
    (Path(cache) / "hub").mkdir()
    offline_only = {"HF_HOME": cache, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    return {**plain_environment(), **offline_only}


def _await_ready(process: subprocess.Popen[bytes], port: int) -> None:
    until = time.monotonic() + READY_S
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).status_code == 200:
                return
        time.sleep(0.1)
    raise RuntimeError("the engine does not start: is it installed?")
