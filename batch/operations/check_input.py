"""Check an input file before anything is sent: every problem with its line, and what the file will take.

Owns: the walk over the lines, the same rules as ingest, and the warnings that need no provider's answer.
`batchmill check` prints it; `run` prints it first. May not touch: the database, the network.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from batch.completions.plan import Plan
from batch.completions.rules import CHAT, misspelt_keys
from batch.completions.tokens import estimate, max_output_tokens
from batch.domain.line import InputLine, LineProblem
from batch.domain.options import BatchOptions
from batch.files.jsonl import GZIP_MAGIC, RawLine, inflate, iter_lines
from batch.files.local_file import read_blocks
from batch.operations.accept_line import LineGate
from batch.operations.provider_forecast import LaneForecast
from batch.operations.routing import RouteBook
from batch.operations.warn_window import Forecast, forecast
from batch.providers.catalog import Catalog, Hop
from batch.settings import Settings
from batch.storage.batches import BatchError

MAX_PROBLEMS = 1_000
MAX_NAMED_LINES = 100


@dataclass(slots=True)
class Warned:
    """Lines that will run but may not do what was meant; the first hundred by number."""

    message: str
    count: int = 0
    lines: list[int] = field(default_factory=list)

    def add(self, line: int) -> None:
        self.count += 1
        if len(self.lines) < MAX_NAMED_LINES:
            self.lines.append(line)


@dataclass(slots=True)
class InputCheck:
    """What a file holds. `with_n` counts lines by n > 1. Tokens are estimates of one prompt per line."""

    requests: int = 0
    problems: list[BatchError] = field(default_factory=list)
    problem_count: int = 0
    with_n: Counter[int] = field(default_factory=Counter)
    with_schema: int = 0
    with_seed: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    lanes: dict[tuple[str, str], LaneForecast] = field(default_factory=dict)
    warnings: dict[str, Warned] = field(default_factory=dict)

    @property
    def is_valid(self) -> bool:
        return self.problem_count == 0

    def report(self, line: int | None, code: str, message: str, param: str | None) -> None:
        self.problem_count += 1
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(BatchError(code, message, param, line))

    def warn(self, kind: str, line: int, message: str) -> None:
        self.warnings.setdefault(kind, Warned(message)).add(line)

    @property
    def time(self) -> Forecast | None:
        """At the known limits; None when no rate is known."""
        return forecast(lane.load for lane in self.lanes.values())

    @property
    def cost_usd(self) -> float | None:
        """Estimated dollars; None when a price is unknown."""
        if any(lane.price is None for lane in self.lanes.values()):
            return None
        return sum(lane.cost_usd for lane in self.lanes.values())

    def lines_beyond(self, window_s: float) -> int:
        """Lines that would not be done within the window at the known limits."""
        late = 0.0
        for lane in self.lanes.values():
            bound = forecast(other.load for other in self.lanes.values() if _share_limits(lane, other))
            if bound is not None and bound.seconds > window_s:
                late += lane.lines * (1 - window_s / bound.seconds)
        return int(late)

    def to_json(self) -> dict[str, Any]:
        bound = self.time
        return {
            "requests": self.requests,
            "problem_count": self.problem_count,
            "problems": [problem._asdict() for problem in self.problems],
            "with_n": {str(n): number for n, number in sorted(self.with_n.items())},
            "with_json_schema": self.with_schema,
            "with_seed": self.with_seed,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "cost_usd": self.cost_usd,
            "seconds": bound and round(bound.seconds, 1),
            "binding_limit": bound and bound.limit,
            "providers": [lane.to_json() for lane in self.lanes.values()],
            "warnings": [{"kind": kind, **asdict(warned)} for kind, warned in self.warnings.items()],
        }


def check_input(
    path: Path,
    catalog: Catalog,
    settings: Settings,
    *,
    options: BatchOptions | None = None,
    endpoint: str = CHAT,
) -> InputCheck:
    """Read the whole file (gzip or not) in constant memory but for custom_ids. Raises OSError."""
    return _Checker(catalog, settings, options or BatchOptions(), endpoint).check(open_lines(path, settings))


def open_lines(path: Path, settings: Settings) -> Iterator[bytes]:
    """The file's bytes, decompressed where it is gzip."""
    with path.open("rb") as source:
        packed = source.read(2) == GZIP_MAGIC
    return inflate(read_blocks(path), max_bytes=settings.max_file_bytes) if packed else read_blocks(path)


class _Checker:
    def __init__(self, catalog: Catalog, settings: Settings, options: BatchOptions, endpoint: str) -> None:
        self._catalog = catalog
        self._settings = settings
        self._book = RouteBook(catalog, settings, endpoint, options, self._enlist)
        self._gate = LineGate(self._book)
        self._hops: dict[Hop, int] = {}
        self._seen: dict[str | None, int] = {}
        self.found = InputCheck()

    def check(self, blocks: Iterable[bytes]) -> InputCheck:
        for raw in iter_lines(blocks, max_line_bytes=self._settings.max_line_bytes):
            self.found.requests += 1
            self._check_line(raw)
        if not self.found.requests:
            self.found.report(None, "empty_file", "The input file holds no request.", None)
        limit = self._settings.max_requests_per_batch
        if self.found.requests > limit:
            message = f"More than {limit:,} requests (max_requests_per_batch)."
            self.found.report(None, "too_many_requests", message, None)
        return self.found

    def _enlist(self, hops: Sequence[Hop]) -> list[tuple[int, dict[str, Any]]]:
        """Nothing is kept, and nothing was learned: a number for each is enough."""
        return [(self._hops.setdefault(hop, len(self._hops)), {}) for hop in hops]

    def _check_line(self, raw: RawLine) -> None:
        read = self._gate.read(raw)
        problems = read if isinstance(read, list) else []
        custom_id = read[0].custom_id
        first = raw.number if custom_id is None else self._seen.setdefault(custom_id, raw.number)
        if first != raw.number:
            message = f"The custom_id '{custom_id}' stands on line {first} already."
            problems = [LineProblem("duplicate_custom_id", message, "custom_id"), *problems]
        elif not isinstance(read, list):
            problems = self._count(raw.number, *read)
        for problem in problems:
            self.found.report(raw.number, problem.code, problem.message, problem.param)

    def _count(self, number: int, line: InputLine, body: dict[str, Any]) -> list[LineProblem]:
        """What the line asks for, at the first provider of its route that can serve it."""
        found, n = self.found, body.get("n") or 1
        if n > 1:
            found.with_n[n] += 1
            if body.get("temperature") == 0:
                found.warn("n_at_temperature_0", number, "n > 1 at temperature 0: the choices may all be equal")
        response_format = body.get("response_format")
        found.with_schema += isinstance(response_format, dict) and response_format.get("type") == "json_schema"
        found.with_seed += body.get("seed") is not None
        for written, meant in misspelt_keys(body):
            found.warn(f"misspelt:{written}", number, f"{written} does nothing; did you mean {meant}?")
        route = self._gate.place(line, body)
        planned = route if isinstance(route, LineProblem) else self._book.plan(body, route)
        if isinstance(planned, LineProblem):
            return [planned]
        self._forecast(number, body, *planned)
        return []

    def _forecast(self, number: int, body: dict[str, Any], hop: Hop, plan: Plan) -> None:
        input_tokens, output_tokens = estimate(body, endpoint=self._book.endpoint)
        self.found.input_tokens += input_tokens
        self.found.output_tokens += output_tokens
        lane = self.found.lanes.get((hop.provider, hop.model))
        if lane is None:
            provider = self._catalog.providers[hop.provider]
            limits, price = provider.limits(hop.model), provider.price(hop.model)
            lane = LaneForecast(hop.provider, hop.model, provider.plan, limits, price, provider.missing_key)
            self.found.lanes[hop.provider, hop.model] = lane
        lane.add(plan, body, input_tokens, output_tokens)
        room = plan.card.context_tokens
        if room is not None and input_tokens + (max_output_tokens(body) or 0) > room:
            self.found.warn("context", number, f"the model's context of {room:,} tokens")


def _share_limits(one: LaneForecast, other: LaneForecast) -> bool:
    return one is other or (one.provider == other.provider and one.limits.scope == "key")
