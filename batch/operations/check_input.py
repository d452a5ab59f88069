"""Check an input file before anything is sent: every problem with its line, and what the file will take.

Owns: the walk over the lines, the same rules as ingest, and the warnings that need no provider's answer.
`batchmill check` prints it; `run` prints it first. May not touch: the database, the network.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from batch.clock import SYSTEM_CLOCK
from batch.completions.cards import Card
from batch.completions.plan import PlanOptions, plan_line
from batch.completions.rules import CHAT, check_body, misspelt_keys
from batch.completions.schema import SchemaCache
from batch.completions.tokens import estimate, max_output_tokens
from batch.domain.errors import InvalidRequest, UnknownModel
from batch.domain.line import InputLine, LineProblem, merge_defaults, parse_line
from batch.domain.options import BatchOptions
from batch.files.jsonl import GZIP_MAGIC, inflate, iter_lines
from batch.files.local_file import read_blocks
from batch.operations.provider_forecast import LaneForecast, time_needed
from batch.operations.warn_window import Forecast
from batch.providers.catalog import Catalog, Hop, Route
from batch.providers.models import resolve_or_ask
from batch.settings import Settings

MAX_PROBLEMS = 1_000
MAX_NAMED_LINES = 100


@dataclass(frozen=True, slots=True)
class Finding:
    """One problem: `line` is 1-based, None for the file as a whole."""

    line: int | None
    code: str
    message: str
    param: str | None


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
    problems: list[Finding] = field(default_factory=list)
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
            self.problems.append(Finding(line, code, message, param))

    def warn(self, kind: str, line: int, message: str) -> None:
        self.warnings.setdefault(kind, Warned(message)).add(line)

    @property
    def time(self) -> Forecast | None:
        """At the known limits; None when no rate is known."""
        return time_needed(self.lanes.values())

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
            bound = time_needed([other for other in self.lanes.values() if _share_limits(lane, other)])
            if bound is not None and bound.seconds > window_s:
                late += lane.lines * (1 - window_s / bound.seconds)
        return int(late)

    def to_json(self) -> dict[str, Any]:
        bound = self.time
        return {
            "requests": self.requests,
            "problem_count": self.problem_count,
            "problems": [
                {"line": p.line, "code": p.code, "message": p.message, "param": p.param} for p in self.problems
            ],
            "with_n": {str(n): number for n, number in sorted(self.with_n.items())},
            "with_json_schema": self.with_schema,
            "with_seed": self.with_seed,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "cost_usd": self.cost_usd,
            "seconds": bound and round(bound.seconds, 1),
            "binding_limit": bound and bound.limit,
            "providers": [lane.to_json() for lane in self.lanes.values()],
            "warnings": [
                {"kind": kind, "message": w.message, "count": w.count, "lines": w.lines}
                for kind, w in self.warnings.items()
            ],
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
        self._options = options
        self._plan_options = PlanOptions(
            on_unsupported=options.on_unsupported,
            schema_retries=options.schema_retries,
            grow_max_tokens=options.grow_max_tokens,
        )
        self._endpoint = endpoint
        self._schemas = SchemaCache()
        self._routes: dict[tuple[str, str | None], Route | UnknownModel] = {}
        self._seen: dict[str, int] = {}
        self._models: set[str] = set()
        self.found = InputCheck()

    def check(self, blocks: Iterable[bytes]) -> InputCheck:
        for raw in iter_lines(blocks, max_line_bytes=self._settings.max_line_bytes):
            self.found.requests += 1
            if raw.data is None:
                limit = self._settings.max_line_bytes
                self.found.report(raw.number, "line_too_long", f"The line is longer than {limit:,} bytes.", None)
                continue
            line = parse_line(raw.data, self._endpoint)
            if isinstance(line, LineProblem):
                self.found.report(raw.number, line.code, line.message, line.param)
            else:
                self._check_line(raw.number, line)
        if not self.found.requests:
            self.found.report(None, "empty_file", "The input file holds no request.", None)
        if self.found.requests > self._settings.max_requests_per_batch:
            limit = self._settings.max_requests_per_batch
            self.found.report(
                None, "too_many_requests", f"More than {limit:,} requests (max_requests_per_batch).", None
            )
        return self.found

    def _check_line(self, number: int, line: InputLine) -> None:
        first = self._seen.setdefault(line.custom_id, number)
        if first != number:
            self.found.report(
                number,
                "duplicate_custom_id",
                f"The custom_id '{line.custom_id}' stands on line {first} already.",
                "custom_id",
            )
            return
        body, _ = merge_defaults(line.body, line.body_bytes, self._options.defaults)
        problems = check_body(body, self._endpoint, self._schemas)
        for problem in problems:
            self.found.report(number, problem.code, problem.message, problem.param)
        if problems or (line.model is None and not isinstance(body.get("model"), str)):
            return
        self._count(number, body)
        self._place(number, body, line.override.get("provider"))

    def _count(self, number: int, body: dict[str, Any]) -> None:
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

    def _place(self, number: int, body: dict[str, Any], own_provider: Any) -> None:
        """Find the first provider of the route that can serve the line, and count it there."""
        model = str(body["model"])
        self._check_single_model(number, model)
        route = self._route(model, own_provider if isinstance(own_provider, str) else None)
        if isinstance(route, UnknownModel):
            self.found.report(number, route.code, route.message, "body.model")
            return
        refusal: InvalidRequest | None = None
        for hop in route.hops:
            lane = self._lane(hop)
            try:
                plan = plan_line(body, self._card(hop), self._plan_options, endpoint=self._endpoint)
            except InvalidRequest as error:
                refusal = refusal or error
                continue
            input_tokens, output_tokens = estimate(body, endpoint=self._endpoint)
            self.found.input_tokens += input_tokens
            self.found.output_tokens += output_tokens
            lane.add(plan, body, input_tokens, output_tokens)
            self.found.lanes.setdefault((hop.provider, hop.model), lane)
            self._check_context(number, body, input_tokens, plan.card)
            return
        assert refusal is not None
        self.found.report(number, refusal.code, refusal.message, refusal.param)

    def _check_single_model(self, number: int, model: str) -> None:
        if self._settings.strict_single_model:
            self._models.add(model)
            if len(self._models) > 1 and model != next(iter(self._models)):
                self.found.report(
                    number,
                    "mismatched_model",
                    f"The model '{model}' differs from the first line's (strict_single_model).",
                    "body.model",
                )

    def _check_context(self, number: int, body: dict[str, Any], input_tokens: int, card: Card) -> None:
        room = card.context_tokens
        if room is not None and input_tokens + (max_output_tokens(body) or 0) > room:
            self.found.warn("context", number, f"the model's context of {room:,} tokens")

    def _route(self, model: str, own_provider: str | None) -> Route | UnknownModel:
        key = (model, own_provider)
        if key not in self._routes:
            try:
                providers = [own_provider] if own_provider else self._options.providers
                self._routes[key] = resolve_or_ask(self._catalog, model, SYSTEM_CLOCK, providers=providers)
            except UnknownModel as error:
                self._routes[key] = error
        return self._routes[key]

    def _card(self, hop: Hop) -> Card:
        return self._catalog.providers[hop.provider].card(hop.model)

    def _lane(self, hop: Hop) -> LaneForecast:
        lane = self.found.lanes.get((hop.provider, hop.model))
        if lane is not None:
            return lane
        provider = self._catalog.providers[hop.provider]
        return LaneForecast(
            hop.provider,
            hop.model,
            provider.plan,
            provider.limits(hop.model),
            provider.price(hop.model),
            provider.missing_key,
        )


def _share_limits(one: LaneForecast, other: LaneForecast) -> bool:
    return one is other or (one.provider == other.provider and one.limits.scope == "key")
