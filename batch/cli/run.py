"""`batchmill run`: one file in, one file out, in the foreground; the same command continues.

Owns: the arguments, the order of the steps, what is printed between them. The watch over the running
batch is watch.py's, the record of what made OUT is runs.py's.
"""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from batch.cli import exits, local_model, options, rehearsal
from batch.cli.check import STYLES
from batch.cli.check_report import problem_rows, summary_rows
from batch.cli.console import STDERR, note, on_terminal, say_facts, say_json
from batch.cli.datadir import DataDir
from batch.cli.delivery import RunResult, deliver, tell_result
from batch.cli.home import Home
from batch.cli.runs import RunRecord, Runs, hash_file
from batch.cli.supervisor import Plan, catalog_of
from batch.cli.up import provider_queues
from batch.cli.watch import watch
from batch.cli.wording import count, key_hint
from batch.completions.rules import CHAT
from batch.domain.errors import BatchmillError, InvalidConfiguration, InvalidRequest, NotFound
from batch.domain.options import BatchOptions
from batch.domain.states import is_terminal
from batch.files.local_file import write_atomically
from batch.operations.cancel_batch import cancel_batch
from batch.operations.check_input import InputCheck, check_input, open_lines
from batch.operations.create_batch import create_batch
from batch.operations.explain_batch import explain_batch
from batch.operations.reuse_answers import KeptAnswers, digest_requests, unchanged_answers, without_kept
from batch.operations.upload import FileUpload
from batch.providers.catalog import Catalog
from batch.settings import Settings, load_settings, parse_duration

_MAX_PAUSE_WITHOUT_TERMINAL_S = 600.0


@dataclass(frozen=True)
class Job:
    """What one command line asks for."""

    source: Path
    out: Path
    err: Path
    endpoint: str
    window: str | None
    options: dict[str, Any]
    plan: Plan
    max_pause_s: float | None
    budget_usd: float | None
    force: bool
    reuse: bool

    @property
    def settings(self) -> Settings:
        return self.plan.settings


def run(
    source: options.Source,
    out: Annotated[Path, typer.Option("-o", "--output", help="Answers go here.", dir_okay=False)],
    err: Annotated[
        Path | None,
        typer.Option("-e", "--errors", help="Error lines go here (default OUT.errors.jsonl)."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check, say what would be done, and stop.")] = False,
    simulate: Annotated[
        bool, typer.Option("--simulate", help="Play the file against simulated providers with the real ones' limits.")
    ] = False,
    with_local_model: options.LocalModel = False,
    force: Annotated[bool, typer.Option("--force", help="Start anew, whatever OUT holds.")] = False,
    reuse: Annotated[bool, typer.Option("--reuse", help="Keep OUT's answers to lines that did not change.")] = False,
    budget: Annotated[
        float | None, typer.Option("--budget", metavar="USD", help="Stop when so much is spent.", min=0)
    ] = None,
    allow_failed: Annotated[
        float | None, typer.Option(parser=options.share, metavar="SHARE", help="Exit 0 up to this share of errors.")
    ] = None,
    max_pause: Annotated[
        str | None,
        typer.Option(parser=options.duration, metavar="DURATION",
                     help="Leave when a person is awaited so long (10m without a terminal)."),
    ] = None,
    window: options.Window = None,
    endpoint: options.Endpoint = CHAT,
    option: options.Option = None,
    workers: options.Workers = None,
    as_json: options.Json = False,
    data_dir: options.DataDir = None,
    config: options.Config = None,
) -> None:  # fmt: skip
    """Run one file to its end: check, send, show progress, write. Run the same command again to continue."""
    settings = load_settings(config, workers=workers, data_dir=data_dir)
    default_pause = None if on_terminal() else _MAX_PAUSE_WITHOUT_TERMINAL_S
    max_pause_s = parse_duration(max_pause) if max_pause else default_pause
    err = err or out.with_name(f"{out.stem}.errors.jsonl")
    companions = (local_model.companion(),) if with_local_model and not simulate else ()
    plan = Plan(settings, parts=frozenset({"workers", "jobs"}), config=config, companions=companions)
    job = Job(source, out, err, endpoint, window, options.pairs(option), plan, max_pause_s, budget, force, reuse)
    _check_places(job)
    if not simulate:
        note(f"data        {settings.resolved_data_dir}")
    if dry_run:
        found, _ = _look(job, simulate=simulate)
        if as_json:
            say_json(found.to_json())
        return
    result = _rehearse(job) if simulate else _run(job)
    raise exits.Leave(tell_result(result, allow_failed=allow_failed or 0.0, as_json=as_json))


def _check_places(job: Job) -> None:
    """Before anything is spent: what would be written at the end can be written."""
    BatchOptions.parse(job.options)
    for place, option in ((job.out, "-o"), (job.err, "-e")):
        if place.resolve() == job.source.resolve():
            raise InvalidRequest(f"{option} {place} is the input itself")
        if not place.parent.is_dir():
            raise InvalidRequest(f"{option} {place}: no such directory: {place.parent}")
        try:
            tempfile.TemporaryFile(dir=place.parent).close()
        except OSError as error:
            raise InvalidRequest(f"{option} {place}: cannot write in {place.parent}: {error.strerror}") from None
    if job.out.resolve() == job.err.resolve():
        raise InvalidRequest(f"-o and -e are the same file: {job.out}")


def _look(job: Job, *, simulate: bool = False) -> tuple[InputCheck, Catalog]:
    """Print what the check found; leave when nothing may be sent. A rehearsal needs no key."""
    catalog = catalog_of(job.plan)
    found = _check(job, catalog)
    if simulate and any(problem.code == "model_not_found" for problem in found.problems):
        pretended = rehearsal.pretended_catalog(job.settings)
        again = _check(job, pretended)
        found, catalog = (again, pretended) if again.is_valid else (found, catalog)
    say_facts(summary_rows(found, job.source, job.window), styles=STYLES, to=STDERR)
    if not found.is_valid:
        say_facts(problem_rows(found, limit=10), to=STDERR)
        raise InvalidRequest(f"{job.source} cannot be run as it is; nothing was sent")
    unpriced = sorted({lane.provider for lane in found.lanes.values() if lane.price is None})
    if job.budget_usd is not None and unpriced:
        raise InvalidConfiguration(
            f"--budget needs prices, and none is known for {', '.join(unpriced)}\n"
            f'state one:  [providers.{unpriced[0]}]  price = {{"*" = {{input = 0.5, output = 1.5}}}}  # $ per M tokens'
        )
    missing = sorted({lane.missing_key for lane in found.lanes.values() if lane.missing_key})
    if missing and not simulate:
        raise InvalidConfiguration(f"no key: {', '.join(map(key_hint, missing))}; nothing was sent")
    return found, catalog


def _check(job: Job, catalog: Catalog) -> InputCheck:
    wanted = BatchOptions.parse(job.options)
    return check_input(job.source, catalog, job.settings, options=wanted, endpoint=job.endpoint)


def _rehearse(job: Job) -> RunResult:
    """The whole run in a temporary data directory, against simulators; answers go beside OUT."""
    found, catalog = _look(job, simulate=True)
    out = job.out.with_name(f"{job.out.stem}.simulated{job.out.suffix}")
    err = job.err.with_name(f"{job.err.stem}.simulated{job.err.suffix}")
    note(f"simulated   no provider is asked; made-up answers go to {out}")
    with tempfile.TemporaryDirectory(prefix="batchmill-", ignore_cleanup_errors=True) as place:
        companions = rehearsal.companions(found.lanes.values(), catalog, Path(place))
        settings = job.settings.model_copy(
            update={"data_dir": Path(place), "database_url": None, "redis_url": None, "files_url": None}
        )
        plan = replace(job.plan, settings=settings, companions=companions)
        return _run(replace(job, out=out, err=err, plan=plan, force=True, reuse=False), looked=True)


def _run(job: Job, *, looked: bool = False) -> RunResult:
    data = DataDir(job.settings.resolved_data_dir)
    data.make()
    runs = Runs(data.path)
    shaping = {"endpoint": job.endpoint, "window": job.window, **job.options}
    wanted = RunRecord(str(job.out.absolute()), str(job.source), hash_file(job.source), shaping)
    replaced = runs.find(job.out)
    record = runs.begin(wanted, force=job.force, reuse=job.reuse)
    home = Home(replace(job.plan, queues=provider_queues(catalog_of(job.plan).providers)), data)
    try:
        record, story = _standing(home, record)
        if record.batch_id is None and not looked:
            _look(job)
        kept = _remember(job, runs, record)
        if story is None or not is_terminal(story["status"]):
            home.start()
            if replaced is not None and replaced.batch_id is not None and record.batch_id is None:
                with contextlib.suppress(BatchmillError):  # what OUT belonged to must not go on spending
                    cancel_batch(home.world, home.project.id, replaced.batch_id)
            batch_id = _batch_of(job, home, runs, record, kept)
            if batch_id is not None:
                story = watch(home, batch_id, max_pause_s=job.max_pause_s, budget_usd=job.budget_usd)
        source = open_lines(job.source, job.settings)
        return deliver(home, story, source, job.out, job.err, kept, job.endpoint)
    finally:
        home.stop()


def _standing(home: Home, record: RunRecord) -> tuple[RunRecord, dict[str, Any] | None]:
    """The record and how its batch fares. A batch that is gone, or whose file was refused, begins anew."""
    if record.batch_id is None:
        return record, None
    story = None
    with contextlib.suppress(NotFound):
        story = explain_batch(home.world, home.project.id, record.batch_id)
    if story is None or story["status"] == "failed":
        return replace(record, batch_id=None, serial=record.serial + 1), None
    done = story["counts"]["completed"] + story["counts"]["failed"]
    note(f"continues   {record.batch_id}   {count(done)}/{count(story['counts']['total'])}")
    return record, story


def _remember(job: Job, runs: Runs, record: RunRecord) -> KeptAnswers | None:
    """Save the record with the digests of its input; copy the answers that stay. Nothing on a continuation."""
    out, kept_file = Path(record.out), runs.kept(Path(record.out))
    if record.batch_id is None:
        if record.reuses and out.exists() and runs.digests(out).exists():
            lines = unchanged_answers(runs.digests(out), open_lines(job.source, job.settings), out, job.endpoint)
            write_atomically(kept_file, lines)
        write_atomically(runs.digests(out), digest_requests(open_lines(job.source, job.settings), job.endpoint))
        runs.save(record)
    if not (record.reuses and kept_file.exists()):
        return None
    kept = KeptAnswers.load(kept_file)
    note(f"reuse       {len(kept.places):,} answers of unchanged lines are kept")
    return kept


def _batch_of(job: Job, home: Home, runs: Runs, record: RunRecord, kept: KeptAnswers | None) -> str | None:
    """The batch of this record, made when there is none yet. None when every answer is kept already."""
    if record.batch_id is not None:
        return record.batch_id
    blocks = open_lines(job.source, job.settings)
    lines = blocks if kept is None else without_kept(blocks, kept, job.endpoint)
    has_lines = False
    with FileUpload(home.world, home.project.id) as upload:
        for block in lines:
            has_lines = has_lines or block != b"\n"
            upload.append(block)
        if not has_lines:
            return None
        stored = upload.finish(purpose="batch", filename=_jsonl_name(job.source))
    given = dict(job.options)
    if job.budget_usd is not None:
        given["budget_usd"] = job.budget_usd
    body = {
        "input_file_id": stored.public_id,
        "endpoint": job.endpoint,
        "completion_window": job.window,
        **({"options": given} if given else {}),
    }
    batch = create_batch(home.world, home.project, body, idempotency_key=record.key)
    runs.save(replace(record, batch_id=batch.public_id))
    return batch.public_id


def _jsonl_name(source: Path) -> str:
    """The upload's name; one that says nothing of JSON would be refused there."""
    return source.name if source.suffix in {".jsonl", ".ndjson", ".json"} else f"{source.stem}.jsonl"
