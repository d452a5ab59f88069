"""Running other people's clients, and the bare loop, on the same file and upstream.

Owns: the peers' environments (made once, kept beside the system's temporary files), their installation,
and reading what each run tells about itself. A peer that cannot be installed is reported, not hidden.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import venv
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import progress
from benchmarks.stack import ROOT, plain_environment

PEERS: dict[str, tuple[str, ...]] = {
    "aiohttp_append": ("aiohttp", "orjson", "uvloop"),
    "cookbook": ("aiohttp",),
    "openai_semaphore": ("openai",),
    "litellm_batch": ("litellm",),
}
SHOWN = {
    "aiohttp_append": "aiohttp script, appends to a file",
    "cookbook": "cookbook-style parallel processor",
    "openai_semaphore": "AsyncOpenAI with a semaphore",
    "litellm_batch": "LiteLLM batch_completion",
}


@dataclass(frozen=True)
class Run:
    """`cpu_s` is the client's own process."""

    requests: int
    seconds: float
    cpu_s: float

    @property
    def rate(self) -> float:
        return self.requests / self.seconds

    @property
    def cpu_us(self) -> float:
        return self.cpu_s / self.requests * 1e6


class PeerMissing(Exception):
    """Its packages cannot be installed here; the message says why in one line."""


def run_peer(name: str, source: Path, base_url: str, *, at_once: int = 128, timeout_s: float = 300) -> Run:
    """One run of peers/NAME.py; raises PeerMissing or RuntimeError."""
    with tempfile.TemporaryDirectory(prefix="bm-peer-") as directory:
        script = ROOT / "benchmarks" / "peers" / f"{name}.py"
        output = str(Path(directory) / "out.jsonl")
        command = [str(_environment(name)), str(script), str(source), output, base_url, "--at-once", str(at_once)]
        return _told(command, timeout_s)


def run_bare(kind: str, source: Path, base_url: str, *, at_once: int = 128, timeout_s: float = 300) -> Run:
    """The product's own transport without the product: kind "direct" or "httpx"."""
    command = [sys.executable, "-m", "benchmarks.bare", str(source), base_url, kind, "--at-once", str(at_once)]
    return _told(command, timeout_s)


def _told(command: list[str], timeout_s: float) -> Run:
    done = subprocess.run(
        command, cwd=ROOT, env=plain_environment(), capture_output=True, text=True, timeout=timeout_s, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{command[1]} failed:\n{done.stderr[-2000:]}")
    return Run(**json.loads(done.stdout.strip().splitlines()[-1]))


def _environment(name: str) -> Path:
    """The Python of the peer's own environment."""
    home = Path(tempfile.gettempdir()) / f"batchmill-peers-{sys.version_info[0]}.{sys.version_info[1]}" / name
    python, stamp = home / "bin" / "python", home / ".installed"
    if stamp.exists():
        return python
    progress(f"installing {', '.join(PEERS[name])} into {home}")
    venv.create(home, with_pip=True, clear=True)
    command = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *PEERS[name]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        raise PeerMissing(done.stderr.strip().splitlines()[-1][:200] if done.stderr.strip() else "pip failed")
    stamp.touch()
    return python
