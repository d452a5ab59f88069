"""The simulator as a running server: in a thread for tests, or in the foreground as a program.

Owns: the event loop, the listening socket, reconfiguring while it runs (also over HTTP, from loopback only:
GET /control tells totals, POST takes SimulatorConfig's keys to change, "forget": true empties the log), stopping.
May not touch: what is answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Self

import orjson
import uvloop

from batch.simulator.config import SimulatorConfig
from batch.simulator.exchange import Exchange
from batch.simulator.personalities import personality
from batch.simulator.protocol import Connection, Head, Reply
from batch.simulator.queueing import Slots
from batch.simulator.witness import Record, Witness

_FIXED = {"host", "port", "log_path", "keep_log"}


def start_simulator(**settings: Any) -> Simulator:
    """Start one in a thread and return when it listens. Settings are SimulatorConfig's; use it as a context."""
    simulator = Simulator(SimulatorConfig(**settings))
    simulator.start()
    return simulator


class Simulator:
    """A simulated provider. Thread-safe: its own loop serves; others read the witness and reconfigure."""

    def __init__(self, config: SimulatorConfig) -> None:
        self._loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
        self._thread: threading.Thread | None = None
        self._peers: set[Connection] = set()
        self._slots = Slots(*_slots_of(config))
        self.witness = Witness(config.log_path, keep=config.keep_log)
        self._exchange = Exchange(config, self.witness, self._slots)
        self.port = config.port

    @property
    def config(self) -> SimulatorConfig:
        return self._exchange.config

    @property
    def url(self) -> str:
        """Without a path: http://127.0.0.1:PORT."""
        host = self.config.host if ":" not in self.config.host else f"[{self.config.host}]"
        return f"http://{host}:{self.port}"

    @property
    def base_url(self) -> str:
        """What a client's base_url wants: the URL with the personality's own prefix."""
        return self.url + self._exchange.person.prefixes[0]

    @property
    def requests(self) -> list[Record]:
        """Every request answered so far, in order of arrival."""
        return self.witness.records()

    def start(self) -> None:
        """Serve from a daemon thread; returns when the socket listens, raises OSError when it cannot."""
        listening: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(listening,), name="simulator", daemon=True)
        self._thread.start()
        listening.result()

    def serve(self, on_listening: Callable[[Simulator], None]) -> None:
        """Serve in this thread until `stop` is called, for instance from a signal handler."""
        try:
            server = self._loop.run_until_complete(self._listen())
            on_listening(self)
            self._loop.run_forever()
            self._loop.run_until_complete(self._close(server))
        finally:
            self._loop.close()

    def reconfigure(self, **changes: Any) -> None:
        """Change settings while it runs: connections stay, limits and faults start anew, the log goes on."""
        self.apply(dataclasses.replace(self.config, **changes))

    def apply(self, config: SimulatorConfig) -> None:
        """As reconfigure, with a whole configuration; returns when it holds."""
        exchange = Exchange(config, self.witness, self._slots)
        if self._thread is None or threading.current_thread() is self._thread:
            self._install(exchange)
            return
        done = threading.Event()
        self._loop.call_soon_threadsafe(self._install, exchange)
        self._loop.call_soon_threadsafe(done.set)
        done.wait(10)

    def stop(self) -> None:
        """Close every connection and end the thread; harmless when repeated."""
        with contextlib.suppress(RuntimeError):  # it is closed
            self._loop.call_soon_threadsafe(self._loop.stop)
        if self._thread is not None and threading.current_thread() is not self._thread:
            self._thread.join(10)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _install(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._slots.resize(*_slots_of(exchange.config))

    def _answer(self, head: Head, body: bytes, connection: Connection) -> Reply:
        return self._control(head, body, connection) if head.path == "/control" else self._exchange.answer(head, body)

    def _control(self, head: Head, body: bytes, connection: Connection) -> Reply:
        """403 to callers from elsewhere; 400 with the reason for what cannot be set."""
        if connection.peer not in {"127.0.0.1", "::1"}:
            return Reply(403, b'{"error":"control is for loopback only"}')
        if head.method == "POST":
            try:
                self._change(orjson.loads(body))
            except (ValueError, TypeError) as error:
                return Reply(400, orjson.dumps({"error": str(error)}))
        return Reply(200, orjson.dumps({**self.witness.totals(), "personality": self.config.personality}))

    def _change(self, values: Any) -> None:
        if not isinstance(values, dict):
            raise ValueError("send an object of settings")
        if fixed := sorted(set(values) & _FIXED):
            raise ValueError(f"{', '.join(fixed)}: cannot change while it runs")
        if values.pop("forget", False):
            self.witness.forget()
        if values:
            self.apply(self.config.updated(values))

    def _run(self, listening: Future[None]) -> None:
        try:
            self.serve(lambda _: listening.set_result(None))
        except (OSError, ValueError) as error:  # handed to the thread that called start()
            listening.set_exception(error)

    async def _listen(self) -> asyncio.Server:
        heads: dict[bytes, Head] = {}

        def connect() -> Connection:
            return Connection(self._answer, self._slots, self._peers, heads)

        server = await self._loop.create_server(
            connect, self.config.host, self.config.port, backlog=4096, reuse_address=True
        )
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def _close(self, server: asyncio.Server) -> None:
        server.close()
        for peer in list(self._peers):
            peer.transport.abort()
        await asyncio.sleep(0)  # noqa: TID251 - lets the aborted transports say goodbye; waits for nothing
        self.witness.close()


def _slots_of(config: SimulatorConfig) -> tuple[int | None, int | None]:
    """How many run and wait: as told, else as the personality does."""
    person = personality(config.personality)
    return config.slots or person.slots, person.queue_max if config.queue_max is None else config.queue_max
