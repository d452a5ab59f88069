"""The check of an input file, worded for people: facts in, rows of text out. Pure.

Owns: the summary that `check` and `run` print before anything is sent.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from batch.cli.wording import amount, count, dollars, key_hint, listing, plural
from batch.operations.check_input import InputCheck
from batch.operations.provider_forecast import LaneForecast, limit_words, rate_words
from batch.operations.warn_window import duration
from batch.settings import parse_duration

Row = tuple[str, str]


def summary_rows(check: InputCheck, file: Path, window: str | None) -> list[Row]:
    """What the file holds, what each provider does with it, time, cost, warnings."""
    rows: list[Row] = [(file.name, _content(check))]
    for lane in check.lanes.values():
        rows += _lane(lane, with_lines=len(check.lanes) > 1)
    if check.lanes:
        rows += [("time", _time(check)), *_cost(check)]
    rows += _warnings(check, file)
    window_s = parse_duration(window) if window else None
    if window_s is not None and (late := check.lines_beyond(window_s)):
        rows.append(("warning", f"{plural(late, 'line')} would expire: the window is {duration(window_s)}"))
    return rows


def _lane(lane: LaneForecast, *, with_lines: bool) -> list[Row]:
    """ "mx4 / model": limits and price, then what is emulated, dropped, not guaranteed, missing."""
    facts = [f"{lane.model}:"] + ([plural(lane.lines, "line") + ","] if with_lines else [])
    rows = [(lane.provider, f"{' '.join(facts)} {_limits(lane)}; {_price(lane)}")]
    notes = [*_emulated(lane), *_seeds(lane)]
    if notes:
        rows.append(("", "emulated: " + "; ".join(notes) if lane.emulated else "; ".join(notes)))
    for verb, counter in (("dropped", lane.dropped), ("sent, but ignored there", lane.ignored)):
        if counter:
            rows.append(("", f"{verb}: " + ", ".join(f"{key} ({plural(n, 'line')})" for key, n in counter.items())))
    if lane.missing_key:
        rows.append(("", f"no key: {key_hint(lane.missing_key)}"))
    return rows


def _warnings(check: InputCheck, file: Path) -> list[Row]:
    rows = []
    for kind, warned in check.warnings.items():
        if kind == "context":
            verb = "line may exceed" if warned.count == 1 else "lines may exceed"
            text = f"{count(warned.count)} {verb} {warned.message} ({listing(warned.lines)})"
        else:
            text = f"{warned.message} ({plural(warned.count, 'line')}: {listing(warned.lines)})"
        rows.append(("warning", text + (f": batchmill check {file}" if warned.count > 5 else "")))
    return rows


def problem_rows(check: InputCheck, *, limit: int) -> list[Row]:
    """Problems with their lines, at most `limit`; one that many lines share is said once."""
    groups: dict[str, list[int]] = {}
    for problem in check.problems:
        lines = groups.setdefault(_with_param(problem.message, problem.param), [])
        lines += [problem.line] if problem.line is not None else []
    rows = [(_place(lines), text) for text, lines in list(groups.items())[:limit]]
    hidden = len(groups) - len(rows)
    if check.problem_count > len(check.problems):
        told = count(len(check.problems))
        rows.append(("", f"{plural(check.problem_count, 'problem')} in all; the first {told} are told"))
    return [*rows, ("", f"and {plural(hidden, 'kind')} of problem more: --limit {len(groups)}")] if hidden else rows


def _place(lines: list[int]) -> str:
    if not lines:
        return "file"
    return f"line {lines[0]}" if len(lines) == 1 else f"lines {listing(lines)}"


def _with_param(message: str, param: str | None) -> str:
    return message if param is None or param.removeprefix("body.") in message else f"{message} ({param})"


def _content(check: InputCheck) -> str:
    parts = [plural(check.requests, "request")]
    parts += [f"{count(number)} with n={n}" for n, number in sorted(check.with_n.items())[:3]]
    if check.with_schema:
        parts.append(f"{count(check.with_schema)} with json_schema")
    if check.with_seed:
        parts.append(f"{count(check.with_seed)} with seed")
    text = ", ".join(parts)
    if check.input_tokens:
        text += f"; about {amount(check.input_tokens)} tokens in, {amount(check.output_tokens)} out"
    return text


def _limits(lane: LaneForecast) -> str:
    words = rate_words(lane.limits)
    if lane.limits.concurrency is not None:
        words.append(f"{count(lane.limits.concurrency)} at once")
    if not words:
        return "limits unknown, found while running"
    sources = set(lane.limits.sources.values())
    origin = f'preset "{lane.plan}"' if lane.plan and "preset" in sources else ", ".join(sorted(sources))
    return f"limits {', '.join(words)}" + (f" ({origin})" if origin else "")


def _price(lane: LaneForecast) -> str:
    return "price unknown" if lane.price is None else f"about {dollars(lane.cost_usd)}"


def _emulated(lane: LaneForecast) -> Iterable[str]:
    for key, number in lane.emulated.items():
        if key == "n":
            calls = lane.calls_of_fan_out / number
            yield f"n ({calls:.0f} calls a line, {plural(number, 'line')})"
        elif key == "stop":
            yield f"stop (cut here, {plural(number, 'line')})"
        else:
            yield f"{key} (prompt and check, {plural(number, 'line')})"


def _seeds(lane: LaneForecast) -> Iterable[str]:
    if lane.seeds_unsent:
        yield f"seed not sent ({plural(lane.seeds_unsent, 'line')}): it is refused there"
    elif lane.seeds_sent:
        yield "seed sent, not guaranteed"


def _time(check: InputCheck) -> str:
    bound = check.time
    if bound is None:
        return "unknown: no rate limit is known; the speed is found while running"
    if bound.seconds < 1:
        return "no limit slows it down"
    where = f" of {bound.provider}" if len({lane.provider for lane in check.lanes.values()}) > 1 else ""
    return f"about {duration(bound.seconds)}; {limit_words(bound.limit)}{where} is the tightest limit"


def _cost(check: InputCheck) -> list[Row]:
    if len(check.lanes) < 2:
        return []
    cost = check.cost_usd
    return [("cost", "unknown" if cost is None else f"about {dollars(cost)}")]
