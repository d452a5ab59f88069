"""Managed engines: the server processes of [providers.NAME.launch], started by the worker that serves them.

Owns: ManagedEngine — one worker process of a machine runs the replicas (a file lock says which), the others
use their addresses; ports, the environment's allow-list, restarts with back-off, the clean end.
A tether (batch.cli.tethered) ends an engine whose worker was killed. May not touch: calls, the database.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import re
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

import orjson

from batch.clock import Clock
from batch.settings import LaunchConfig, process_environment
from batch.telemetry import emit
from workers.engines import TICK_S, Engine

LOG_ROWS = 40
STOP_S = 4.0              # of a stop that are waited for; the tether ends what needs longer
TERM_S = 30.0             # between SIGTERM and SIGKILL of the whole group
QUICK_RESTARTS = 3
SLOW_RESTART_S = 60.0
STABLE_S = 60.0           # serving for so long, its ends are counted anew
LOOK_S = 2.0
UNWELL_S = 30.0           # out by its health for so long, a process that still runs is started again
_ALLOWED = re.compile(
    r"PATH|HOME|USER|LANG|LC_.*|TZ|TMPDIR|LD_LIBRARY_PATH|VIRTUAL_ENV|PYTHONPATH|PYTHONUNBUFFERED|XDG_.*|OMP_.*|MKL_.*"
    r"|CUDA_.*|NVIDIA_.*|NCCL_.*|HIP_.*|ROCR_.*|HSA_.*|GGML_.*|LLAMA_.*|VLLM_.*|SGLANG_.*|SGL_.*|OLLAMA_.*|HF_.*"
    r"|HUGGINGFACE_.*|TRANSFORMERS_.*|TORCH.*|PYTORCH_.*|TRITON_.*|FLASHINFER_.*|SSL_CERT_.*|(?i:https?|no)_proxy"
)
_SECRET = re.compile(r"key|token|secret|password", re.IGNORECASE)


class ManagedEngine:
    """run() until stop(). `failed` hears why the engine does not start, each time that it is given up for a while."""

    def __init__(
        self, engine: Engine, launch: LaunchConfig, data_dir: Path, clock: Clock, failed: Callable[[str], None]
    ) -> None:
        self._engine = engine
        self._launch = launch
        self._clock = clock
        self._failed = failed
        place = data_dir / "engines" / f"{engine.name}-{socket.gethostname()}"
        self._lock, self._addresses = place.with_name(f"{place.name}.lock"), place.with_name(f"{place.name}.json")
        self._replicas: list[_Replica] = []
        self._running: asyncio.Task[None] | None = None
        engine.is_starting = True
        engine.started_by = shown_command(launch.command)

    def start(self) -> None:
        self._running = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """SIGTERM, a few seconds, the end; whatever still lives is ended by its tether."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
        await asyncio.gather(*(replica.stop() for replica in self._replicas))

    async def _run(self) -> None:
        self._lock.parent.mkdir(parents=True, exist_ok=True)
        with self._lock.open("w") as lock:
            while not _is_mine(lock):
                self._follow()
                await self._clock.sleep_async(LOOK_S)
            self._replicas = [_Replica(self, index) for index in range(self._launch.replicas)]
            await asyncio.gather(*(replica.keep() for replica in self._replicas))

    def _follow(self) -> None:
        """Another process of this machine runs the replicas: theirs are the addresses."""
        with contextlib.suppress(OSError, orjson.JSONDecodeError):
            self._engine.serve_at(orjson.loads(self._addresses.read_bytes()))

    def moved(self) -> None:
        """A replica has a new port."""
        urls = [replica.url for replica in self._replicas if replica.url]
        self._addresses.write_bytes(orjson.dumps(urls))
        self._engine.serve_at(urls)

    async def is_ready(self, url: str) -> bool:
        replica = next((replica for replica in self._engine.replicas if replica.base_url == url), None)
        return replica is not None and await self._engine.look(replica)

    def trouble(self, url: str) -> str:
        """Why the replica there is out; empty while it serves."""
        return next((r.reason for r in self._engine.replicas if r.base_url == url and not r.is_up), "")

    def gave_up(self, index: int, reason: str) -> None:
        self._engine.is_starting = False  # from now on the lanes' circuits decide, and lines may go elsewhere
        self._failed(f"engine {self._engine.name}, replica {index}: {reason}")


class _Replica:
    """One engine process and its next one."""

    def __init__(self, owner: ManagedEngine, index: int) -> None:
        self.url = ""
        self._owner = owner
        self._index = index
        self._name = owner._engine.name
        self._launch = owner._launch
        self._clock = owner._clock
        self._said: deque[str] = deque(maxlen=LOG_ROWS)
        self._process: asyncio.subprocess.Process | None = None
        self._tether: int | None = None
        self._is_ready = False

    async def keep(self) -> None:
        """Start it, and again when it ends: at once, after 2 and 4 s, then every minute."""
        ends = 0
        while True:
            began = self._clock.monotonic()
            try:
                ended = await self._live_once()
            except OSError as error:
                ended = f"cannot be started: {error.strerror}"
            emit("engine_ended", provider=self._name, replica=self._index, reason=ended)
            ends = 1 if self._is_ready and self._clock.monotonic() - began > STABLE_S else ends + 1
            if ends > QUICK_RESTARTS:
                self._owner.gave_up(self._index, f"{ended}; {' / '.join(list(self._said)[-3:])}"[:500])
            wait_s = SLOW_RESTART_S if ends > QUICK_RESTARTS else 2.0 ** (ends - 1) if ends > 1 else 0.0
            await self._clock.sleep_async(wait_s)

    async def _live_once(self) -> str:
        """From start to end; the reason of the end."""
        process = await self._start()
        assert process.stdout is not None
        listening = asyncio.get_running_loop().create_task(self._listen(process.stdout))
        ending = asyncio.get_running_loop().create_task(process.wait())
        try:
            return await self._await_ready(ending) or await self._await_end(ending)
        finally:
            await self.stop()
            listening.cancel()
            ending.cancel()

    async def _start(self) -> asyncio.subprocess.Process:
        port = _free_port()
        self.url, self._is_ready = f"http://127.0.0.1:{port}/v1", False
        fill = {"{port}": str(port), "{index}": str(self._index)}
        command = [_filled(word, fill) for word in self._launch.command]
        read_end, self._tether = os.pipe()
        tethered = [sys.executable, "-m", "batch.cli.tethered", str(read_end), str(TERM_S), "--", *command]
        emit("engine_starting", provider=self._name, replica=self._index, command=shown_command(command))
        try:
            self._process = await asyncio.create_subprocess_exec(
                *tethered, env=_environment(self._launch.env, fill), stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, start_new_session=True,
                pass_fds=(read_end,), limit=1 << 20,
            )  # fmt: skip
        finally:
            os.close(read_end)
        self._owner.moved()
        return self._process

    async def _await_ready(self, ending: asyncio.Task[int]) -> str:
        """Empty when it serves; else why it never will."""
        until = self._clock.monotonic() + self._launch.ready_s
        while self._clock.monotonic() < until:
            if ending.done():
                return f"ended with code {ending.result()} before it was ready"
            if await self._owner.is_ready(self.url):
                self._is_ready = True
                emit("engine_ready", provider=self._name, replica=self._index, base_url=self.url)
                return ""
            await self._clock.sleep_async(0.2)
        return f"not ready after {self._launch.ready_s:g} s"

    async def _await_end(self, ending: asyncio.Task[int]) -> str:
        """Of its process; or it stays out by its health, as an engine does whose inner loop has died."""
        well_at = self._clock.monotonic()
        while not (await asyncio.wait({ending}, timeout=TICK_S))[0]:
            trouble = self._owner.trouble(self.url)
            if not trouble:
                well_at = self._clock.monotonic()
            elif self._clock.monotonic() - well_at >= UNWELL_S:
                return f"out for {UNWELL_S:g} s ({trouble})"
        return f"ended with code {ending.result()}"

    async def _listen(self, stream: asyncio.StreamReader) -> None:
        """Its log is shown while it starts; afterwards it may hold prompts, and only its last rows are kept."""
        while True:
            try:
                row = (await stream.readline()).decode(errors="replace").rstrip()
            except ValueError:  # a row of a megabyte
                continue
            if not row and stream.at_eof():
                return
            self._said.append(row)
            if not self._is_ready:
                emit("engine_says", provider=self._name, replica=self._index, text=row[:500])

    async def stop(self) -> None:
        process, self._process = self._process, None
        if self._tether is not None:
            os.close(self._tether)  # SIGTERM now, SIGKILL for the group after TERM_S, whatever becomes of us
            self._tether = None
        if process is None:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_S):
                await process.wait()
        if process.returncode is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)  # what it may have left of its own children


def shown_command(command: list[str]) -> str:
    """The command line for people: what follows an option that names a secret is left out."""
    shown, hides = [], False
    for word in command:
        name, equals, _ = word.partition("=")
        is_option = word.startswith("-") and _SECRET.search(name) is not None
        shown.append("***" if hides else f"{name}=***" if is_option and equals else word)
        hides = is_option and not equals
    return " ".join(shown)


def _environment(extra: Mapping[str, str], fill: Mapping[str, str]) -> dict[str, str]:
    """What an engine may know of ours, and what its table sets; no provider's key."""
    kept = {name: value for name, value in process_environment().items() if _ALLOWED.fullmatch(name)}
    return {**kept, **{name: _filled(value, fill) for name, value in extra.items()}}


def _filled(text: str, fill: Mapping[str, str]) -> str:
    for name, value in fill.items():
        text = text.replace(name, value)
    return text


def _is_mine(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _free_port() -> int:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
