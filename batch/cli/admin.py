"""`batchmill admin`: operation by whoever holds the database. Owns the arguments; the work is operations'.

These commands open the database themselves and see every project; they need no server.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from batch.cli import exits, options
from batch.cli.console import note, report, say, say_facts, say_json
from batch.cli.home import make_home, open_home
from batch.cli.wording import date_time, dollars, plural
from batch.clock import SYSTEM_CLOCK
from batch.domain.states import is_terminal
from batch.operations import keys as key_operations
from batch.operations.deliver_webhooks import replay_webhook
from batch.operations.doctor import examine
from batch.operations.pause_batch import pause_batch, resume_batch
from batch.operations.pause_provider import pause_provider, resume_provider
from batch.operations.replay_batch import Replay, compare_replay, find_batch, replay_batch
from batch.operations.world import World, open_world
from batch.settings import load_settings
from batch.storage.projects import DEFAULT_PROJECT

app = typer.Typer(
    help="Operate the service: keys, migrations, pauses, health.",
    no_args_is_help=True,
    epilog="Example: batchmill admin keys create --project nightly",
)
keys = typer.Typer(
    help="API keys. While there is none, the server listens on loopback only and asks for none.",
    no_args_is_help=True,
    epilog="Example: batchmill admin keys list",
)
app.add_typer(keys, name="keys")

_MARKS = {"ok": "ok", "warning": "warning", "wrong": "WRONG"}
Limit = Annotated[int | None, typer.Option(metavar="N", help="At most; 0 lifts it.", min=0)]
Target = Annotated[str, typer.Argument(metavar="BATCH|PROVIDER", help="batch_…, NAME or NAME/MODEL.")]


def _world(data_dir: Path | None, config: Path | None) -> closing[World]:
    return closing(open_home(load_settings(config, data_dir=data_dir)))


@keys.command("create", epilog="Example: batchmill admin keys create --project nightly --name laptop")
def create(
    project: Annotated[str, typer.Option("--project", help="Made if there is none of that name.")] = DEFAULT_PROJECT,
    name: Annotated[str, typer.Option("--name", help="To know it by in the list.")] = "key",
    as_json: options.Json = False,
    data_dir: options.DataDir = None,
    config: options.Config = None,
) -> None:
    """Make a key and print it, once. From then on the API asks for keys."""
    with _world(data_dir, config) as world:
        made = key_operations.create_key(world, project=project, name=name)
    if as_json:
        say_json(asdict(made))
    else:
        say(made.key)
        note(f"{made.public_id}, project {made.project}. It is not shown again; only its hash is kept.")


@keys.command("list", epilog="Example: batchmill admin keys list --project nightly")
def list_keys(
    project: Annotated[str | None, typer.Option("--project", help="Only this project's.")] = None,
    as_json: options.Json = False,
    data_dir: options.DataDir = None,
    config: options.Config = None,
) -> None:
    """List keys by their last four characters."""
    with _world(data_dir, config) as world:
        found = key_operations.list_keys(world, project=project)
    if as_json:
        say_json([row._asdict() for row in found])
        return
    if not found:
        note("no keys: the API asks for none and listens on loopback only")
    for row in found:
        used = f"last used {date_time(row.last_used_at / 1000)}" if row.last_used_at else "never used"
        state = "revoked" if row.revoked_at else used
        say(f"{row.public_id}   …{row.hint}   {row.project}   {row.name}   {state}")


@keys.command("revoke", epilog="Example: batchmill admin keys revoke key_3f…")
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="KEY_ID", help="As `keys list` shows it.")],
    as_json: options.Json = False,
    data_dir: options.DataDir = None,
    config: options.Config = None,
) -> None:
    """Refuse a key from now on."""
    with _world(data_dir, config) as world:
        was_live = key_operations.revoke_key(world, key_id)
    text = f"{key_id} is revoked" if was_live else f"{key_id} was revoked already"
    report(as_json, text, id=key_id, revoked=True, was_live=was_live)


@app.command("limits", epilog="Example: batchmill admin limits nightly --requests-per-minute 600 --providers xai,mx4")
def limits(
    project: Annotated[str, typer.Argument(metavar="PROJECT", help="Made if there is none of that name.")],
    enqueued_requests: Limit = None,
    enqueued_tokens: Limit = None,
    storage_bytes: Limit = None,
    requests_per_minute: Limit = None,
    allowed: Annotated[
        str | None, typer.Option("--providers", metavar="NAMES", help='Only these, by comma; "" lifts it.')
    ] = None,
    max_priority: Annotated[str | None, typer.Option("--max-priority", help="high, normal or low.")] = None,
    as_json: options.Json = False,
    data_dir: options.DataDir = None,
    config: options.Config = None,
) -> None:
    """What a project may use, and what it has spent; without options, as it is now. 0 lifts a limit."""
    given = {
        "enqueued_requests": enqueued_requests, "enqueued_tokens": enqueued_tokens,
        "storage_bytes": storage_bytes, "requests_per_minute": requests_per_minute,
    }  # fmt: skip
    names = None if allowed is None else [name.strip() for name in allowed.split(",") if name.strip()]
    with _world(data_dir, config) as world:
        changed = {name: value for name, value in given.items() if value is not None}
        found = key_operations.set_project_limits(
            world, project, limits=changed, allowed_providers=names, max_priority=max_priority
        )
        cost, unpriced = key_operations.project_cost(world, project)
    if as_json:
        say_json(asdict(found) | {"cost_usd": cost, "unpriced_lines": unpriced})
        return
    spent = "unknown" if cost is None else dollars(cost)
    spent += f", price unknown for {plural(unpriced, 'line')}" if unpriced and cost is not None else ""
    numbers = [f"{found.limits[name]:,}" if name in found.limits else "no limit" for name in given]
    rows = list(zip((name.replace("_", " ") for name in given), numbers, strict=True))
    say_facts([*rows, ("providers", ", ".join(found.allowed_providers or ("all",))), ("priority", found.max_priority),
               ("spent", spent)])  # fmt: skip


@app.command("migrate", epilog="Example: batchmill admin migrate")
def migrate(as_json: options.Json = False, data_dir: options.DataDir = None, config: options.Config = None) -> None:
    """Bring the database to this version's tables. `up` does it by itself."""
    make_home(load_settings(config, data_dir=data_dir))
    report(as_json, "the database is up to date", migrated=True)


@app.command("doctor", epilog="Example: batchmill admin doctor")
def doctor(as_json: options.Json = False, data_dir: options.DataDir = None, config: options.Config = None) -> None:
    """Check every invariant of the database and the files; say what is wrong and what would mend it."""
    with closing(open_world(load_settings(config, data_dir=data_dir))) as world:
        findings = examine(world)
    if as_json:
        say_json([asdict(finding) for finding in findings])
    else:
        rows: list[tuple[str, str]] = []
        for finding in findings:
            rows.append((f"{_MARKS[finding.verdict]:<9}{finding.check}", finding.detail))
            rows += [("", f"mend: {finding.mend}")] if finding.mend else []
        say_facts(rows)
    if any(finding.verdict == "wrong" for finding in findings):
        raise exits.Leave(exits.LINES_FAILED)


@app.command("pause", epilog="Example: batchmill admin pause xai")
def pause(
    target: Target, as_json: options.Json = False, data_dir: options.DataDir = None, config: options.Config = None
) -> None:
    """Send nothing new for a batch, or to a provider, until resumed."""
    with _world(data_dir, config) as world:
        if target.startswith("batch_"):
            pause_batch(world, find_batch(world, target).project_id, target)
            report(as_json, f"{target} is paused; go on: batchmill admin resume {target}", paused=target)
            return
        provider, _, model = target.partition("/")
        number = pause_provider(world, provider, model=model or None)
        text = f"{target}: {plural(number, 'model')} paused; go on: batchmill admin resume {target}"
        report(as_json, text, paused=target, models=number)


@app.command("resume", epilog="Example: batchmill admin resume batch_67f0a1… --budget 25")
def resume(
    target: Target,
    budget: Annotated[
        float | None, typer.Option("--budget", metavar="USD", help="A new budget for the batch.", min=0)
    ] = None,
    max_failure_share: Annotated[
        float | None, typer.Option("--max-failure-share", parser=options.share, metavar="SHARE", help="E.g. 5%.")
    ] = None,
    as_json: options.Json = False,
    data_dir: options.DataDir = None,
    config: options.Config = None,
) -> None:
    """Lift the pause of a batch or a provider."""
    with _world(data_dir, config) as world:
        if target.startswith("batch_"):
            project_id = find_batch(world, target).project_id
            resume_batch(world, project_id, target, budget_usd=budget, max_failure_share=max_failure_share)
            report(as_json, f"{target} goes on", resumed=target)
            return
        provider, _, model = target.partition("/")
        number = resume_provider(world, provider, model=model or None)
        report(as_json, f"{target}: {plural(number, 'pause')} lifted", resumed=target, models=number)


@app.command("replay", epilog="Example: batchmill admin replay batch_67f0a1… --sample 50")
def replay(
    target: Annotated[str, typer.Argument(metavar="BATCH|WEBHOOK_ID", help="batch_… or a delivery's webhook-id.")],
    sample: Annotated[int, typer.Option("--sample", min=1, max=10_000, help="Answers to ask for again.")] = 50,
    as_json: options.Json = False,
    data_dir: options.DataDir = None,
    config: options.Config = None,
) -> None:
    """Ask for a sample of a batch's answers again and compare; or deliver a webhook again, also one given up."""
    with _world(data_dir, config) as world:
        if not target.startswith("batch_"):
            replay_webhook(world, target)
            report(as_json, f"{target} is due again", replayed=target)
            return
        again = replay_batch(world, target, sample)
        note(f"{again.public_id} asks again; a running `batchmill up` does the work, ^C leaves it to it")
        while not is_terminal(find_batch(world, again.public_id).status):
            SYSTEM_CLOCK.sleep(1.0)
        found = compare_replay(world, target, again.public_id)
    if as_json:
        say_json(asdict(found))
    else:
        say_facts(_replay_rows(found))


def _replay_rows(found: Replay) -> list[tuple[str, str]]:
    answered = found.same + len(found.different)
    counted = (found.before, found.now)
    prints, now = (", ".join(f"{name} {number}" for name, number in counts.items()) for counts in counted)
    rows = [
        ("same", f"{found.same} of {answered} answers came out the same; a seed was sent with {found.seeded}"),
        ("prints", f"fingerprints then: {prints or 'no answer'}; now: {now or 'no answer'}"),
    ]
    if found.different:
        rows.append(("different", ", ".join(found.different[:10]) + (" …" if len(found.different) > 10 else "")))
    if found.unanswered:
        rows.append(("failed", f"{found.unanswered} of {found.sent} were not answered this time"))
    return rows
