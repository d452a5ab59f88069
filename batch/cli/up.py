"""`batchmill up` and `batchmill worker`: the service in the foreground.

Owns: the start-up table, the loop that ticks the stack, the signals that end it.
May not touch: how children are started (supervisor.py).
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any

import typer

from batch.cli import local_model, options
from batch.cli.console import note, on_terminal, say_facts, say_json
from batch.cli.datadir import DataDir
from batch.cli.supervisor import (
    TICK_S,
    Plan,
    Stack,
    catalog_of,
    child_environment,
    require_free_port,
    worker_arguments,
)
from batch.cli.wording import key_hint
from batch.clock import SYSTEM_CLOCK
from batch.domain.errors import InvalidConfiguration
from batch.operations.bells import CALLS_QUEUE, JOBS_QUEUE
from batch.providers.provider import Provider
from batch.settings import load_settings

PARTS = {
    "api": frozenset({"api"}),
    "worker": frozenset({"workers", "jobs"}),
    "beat": frozenset({"beat"}),
}


def up(
    workers: options.Workers = None,
    only: Annotated[
        str | None,
        typer.Option("--only", metavar="PART", help="Just api, worker, beat, or the workers of one PROVIDER."),
    ] = None,
    with_local_model: options.LocalModel = False,
    host: Annotated[str | None, typer.Option("--host", help="Address to listen on (default 127.0.0.1).")] = None,
    port: Annotated[int | None, typer.Option("--port", help="Port of the API (default 8484).")] = None,
    as_json: options.Json = False,
    data_dir: options.DataDir = None,
    config: options.Config = None,
) -> None:
    """Run the whole service in the foreground: API, queue, workers. ^C ends all of it."""
    settings = load_settings(config, workers=workers, host=host, port=port, data_dir=data_dir)
    companions = (local_model.companion(),) if with_local_model else ()
    plan = _narrowed(Plan(settings, config=config, companions=companions, log_to_files=on_terminal()), only)
    data = DataDir(settings.resolved_data_dir)
    data.make()
    if only is None:
        data.lock({"kind": "up"})
    else:
        data = _part_of(data, only)
    if "api" in plan.parts:
        require_free_port(settings.host, settings.port)
    _serve(Stack(plan, data), data, only, as_json=as_json)


def _narrowed(plan: Plan, only: str | None) -> Plan:
    """To the part or the provider that --only names. Raises InvalidConfiguration."""
    providers = catalog_of(plan).providers
    if only is None or only in PARTS:
        parts = plan.parts if only is None else PARTS[only]  # no beat: jobs workers ring by their own timers
        return replace(plan, parts=parts, queues=provider_queues(providers))
    if only not in providers:
        known = ", ".join([*PARTS, *providers])
        raise InvalidConfiguration(f"--only {only}: no such part or provider; there are {known}", param="only")
    queue = providers[only].queue
    if queue == CALLS_QUEUE:
        raise InvalidConfiguration(
            f'--only {only}: this provider shares the queue "{CALLS_QUEUE}"\n'
            f'give it one of its own:  [providers.{only}]  queue = "{only}"',
            param="only",
        )
    return replace(plan, parts=frozenset({"workers"}), queues=(queue,))


def provider_queues(providers: Mapping[str, Provider]) -> tuple[str, ...]:
    """The default queue and those that providers have for themselves."""
    return (CALLS_QUEUE, *sorted({provider.queue for provider in providers.values()} - {CALLS_QUEUE}))


def _part_of(data: DataDir, only: str) -> DataDir:
    """A part shares the data directory; its logs, and what it remembers of children, are its own.

    The same part started twice gets a second folder; a later start takes the first that nobody holds.
    """
    for number in itertools.count(1):
        part = DataDir(data.path / "parts" / (only if number == 1 else f"{only}-{number}"))
        part.make()
        if part.try_lock({"kind": f"up --only {only}"}):
            return part
    raise AssertionError("unreachable")


def _serve(stack: Stack, data: DataDir, only: str | None, *, as_json: bool) -> None:
    stopping = _until_told_to_stop()
    note(f"data       {stack.plan.settings.resolved_data_dir}", style="bold")
    stack.start()
    try:
        if only is None:
            data.describe({"kind": "up", "address": stack.address})
        if as_json:
            say_json({"data_dir": stack.plan.settings.resolved_data_dir, "api": stack.address, "pids": stack.pids()})
        else:
            say_facts(start_table(stack, only))
        while not stopping:
            stack.tick()
            SYSTEM_CLOCK.sleep(TICK_S)
        note(f"stopping: calls in flight may land for {stack.plan.settings.drain_s:g} s; ^C again ends at once")
    finally:
        stack.stop(drain=len(stopping) < 2)
        data.unlock()
    note("stopped; nothing is lost, the next start continues")


def _until_told_to_stop() -> list[int]:
    """A list that is empty until SIGINT or SIGTERM came; a second one raises out of the wait."""
    seen: list[int] = []

    def stop(number: int, _frame: Any) -> None:
        seen.append(number)
        if len(seen) == 2:
            raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    return seen


def start_table(stack: Stack, only: str | None) -> list[tuple[str, str]]:
    """What runs and what is missing, in a few rows."""
    settings, parts = stack.plan.settings, stack.plan.parts
    rows = []
    if "api" in parts:
        rows.append(("api", f"{stack.address}/v1   docs {stack.address}/docs"))
    if "workers" in parts:
        jobs = " and one for jobs" if "jobs" in parts else ""
        rows.append(("workers", f"{settings.workers} for {', '.join(stack.plan.queues)}{jobs}"))
    if only is None:
        broker = "BATCHMILL_REDIS_URL" if settings.redis_url else f"embedded Valkey on {settings.valkey_socket}"
        rows.append(("broker", broker))
        rows.append(
            ("database", "PostgreSQL" if settings.database_url and "postgres" in settings.database_url else "SQLite")
        )
    rows += _provider_rows(stack.plan)
    if stack.plan.log_to_files:
        rows.append(("logs", f"{stack.logs}/"))
    if "api" in parts:
        rows.append(("try", f"batchmill submit FILE.jsonl   or an OpenAI client with base_url={stack.address}/v1"))
    return rows


def _provider_rows(plan: Plan) -> list[tuple[str, str]]:
    """One row: the providers that can be used, then one row per provider without its key."""
    providers = catalog_of(plan).providers
    models = {name: given["models"] for companion in plan.companions for name, given in companion.providers.items()}
    ready = [name + (f" ({', '.join(models[name])})" if name in models else "")
             for name, provider in providers.items() if provider.missing_key is None]  # fmt: skip
    none = "none yet: set a key such as XAI_API_KEY, write batchmill.toml, or add --local-model"
    missing = [(name, provider.missing_key) for name, provider in providers.items() if provider.missing_key]
    return [
        ("providers", ", ".join(ready) or none),
        *(("", f"{name}: no key, {key_hint(key)}") for name, key in missing),
    ]


def worker(
    queues: Annotated[
        str, typer.Option("-Q", "--queues", help="Celery queues to serve.")
    ] = f"{CALLS_QUEUE},{JOBS_QUEUE}",
    pool: Annotated[str | None, typer.Option("-P", "--pool", help="Celery pool (default: the app's).")] = None,
    name: Annotated[str, typer.Option("-n", "--name", help="Name of this worker.")] = "worker",
    data_dir: options.DataDir = None,
    config: options.Config = None,
) -> None:
    """Run one ordinary Celery worker of this app (for process managers of your own)."""
    settings = load_settings(config, data_dir=data_dir)
    arguments = worker_arguments(name, tuple(queues.split(",")), settings.log_level) + (["-P", pool] if pool else [])
    command = [sys.executable, "-m", "celery", *arguments]
    os.execve(sys.executable, command, child_environment(Plan(settings, config=config)))  # noqa: S606 - becomes it
