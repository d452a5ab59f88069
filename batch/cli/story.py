"""The explanation of a batch, worded for people. Pure: facts in, rows of text out.

Owns: the tone of `status` (shown in the README). Users read "xai / grok-4.3", never the word lane.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.text import Text

from batch.cli.console import facts
from batch.cli.wording import clock_time, count, date_time, dollars, listing, plural, rate
from batch.operations.warn_window import duration

_STYLES = {"paused": "bold yellow", "failed": "red", "rejected": "red", "idle": "bold yellow", "warning": "yellow"}
_SAID = {"reasked": "re-asked"}
_COUNTS = ("completed", "failed", "waiting", "cancelled", "expired")


def tell(story: Mapping[str, Any]) -> list[Text]:
    """Headline, counts, then one row for each thing worth knowing."""
    rows = [headline(story), count_row(story["counts"])]
    return rows + facts(details(story), indent="  ", styles=_STYLES)


def headline(story: Mapping[str, Any]) -> Text:
    state = str(story["status"])
    stopped = paused_providers(story)
    if story["paused"]:
        state += ", PAUSED"
    elif stopped:
        state += ", PAUSED on " + ", ".join(dict.fromkeys(name.partition(" / ")[0] for name in stopped))
    colour = {"completed": "green", "failed": "red", "cancelled": "yellow", "expired": "yellow"}.get(
        story["status"], "cyan"
    )
    return Text.assemble(
        (story["file"], "bold"), "   ", story["id"], "   ", (state, "yellow" if "PAUSED" in state else colour)
    )


def count_row(counts: Mapping[str, int]) -> Text:
    return Text("  " + "   ".join(f"{count(counts[name])} {name}" for name in _COUNTS))


def paused_providers(story: Mapping[str, Any]) -> list[str]:
    """ "xai / grok-4.3" for each provider whose pause holds lines of this batch."""
    return [f"{lane['provider']} / {lane['model']}" for lane in story["lanes"] if lane["paused"]]


def details(story: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [*_pauses(story), *_rejections(story), *_failures(story)]
    if story["idle"]:
        rows.append(("idle", story["idle"]))
    answers = answer_facts(story["answers"])
    if answers:
        rows.append(("answers", "   ".join(answers)))
    if money := money_facts(story):
        rows.append(("cost", money))
    rows += [("warning", str(warning.get("message", warning) if isinstance(warning, dict) else warning))
             for warning in story["warnings"]]  # fmt: skip
    rows += _times(story)
    if story["parent"]:
        rows.append(("retry of", story["parent"]))
    return rows


def _pauses(story: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = []
    if story["paused"]:
        rows += [("paused", _batch_pause(story)), ("", f"batchmill admin resume {story['id']}{_raise_hint(story)}")]
    for lane in story["lanes"]:
        paused = lane["paused"]
        if not paused:
            continue
        until = paused["until"]
        tried = "it waits until resumed" if until is None else f"tried again at {clock_time(until)}"
        reason = paused["reason"] or paused["code"] or "paused"
        rows.append(
            ("paused", f"{lane['provider']} / {lane['model']}: {reason.rstrip('.')}. No line failed for it; {tried}.")
        )
        if paused["mend"]:
            rows.append(("", paused["mend"]))
    return rows


def _batch_pause(story: Mapping[str, Any]) -> str:
    reason = story["pause_reason"]
    if reason == "budget":
        budget, spent = dollars(story["budget_usd"] or 0), dollars(story["cost_usd"] or 0)
        return f"the budget of {budget} allows no further line ({spent} spent)"
    if reason == "failures":
        return "more lines failed than max_failure_share allows"
    if reason == "person":
        return "by a person"
    return str(reason or "by a person")


def _raise_hint(story: Mapping[str, Any]) -> str:
    return {"budget": " --budget USD", "failures": " --max-failure-share SHARE"}.get(str(story["pause_reason"]), "")


def _rejections(story: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for error in story["errors"]:
        place = f"line {error['line']}: " if error["line"] is not None else ""
        rows.append(("rejected" if not rows else "", f"{place}{error['message']}"))
    more = story["error_count"] - len(story["errors"])
    return [*rows, ("", f"and {plural(more, 'problem')} more: batchmill check FILE shows them")] if more > 0 else rows


def _failures(story: Mapping[str, Any]) -> list[tuple[str, str]]:
    groups = []
    for group in story["failures"]:
        lines = list(group["lines"])
        shown = listing(lines) if len(lines) == group["count"] else f"{listing(lines)}, …"
        groups.append(f"{count(group['count'])} {group['code']} (line{'s' if group['count'] > 1 else ''} {shown})")
    return [("failed", "   ".join(groups))] if groups else []


def answer_facts(report: Mapping[str, Any]) -> list[str]:
    """The batch's counted facts ("emulated:n" → 133) as short phrases, in a fixed order."""
    groups: dict[str, dict[str, int]] = {}
    for name, number in report.items():
        if isinstance(number, int) and not name.startswith("failed:"):  # those are told by line
            kind, _, what = name.partition(":")
            groups.setdefault(kind, {})[what] = number
    phrases = [f"{what} emulated {count(number)}" for what, number in groups.pop("emulated", {}).items()]
    schema = groups.pop("schema", {})
    if schema:
        phrases.append(
            "schema " + ", ".join(f"{_SAID.get(what, what)} {count(number)}" for what, number in schema.items())
        )
    for kind in ("dropped", "reused"):
        phrases += [f"{what or kind} {kind} {count(number)}".replace(f"{kind} {kind}", kind)
                    for what, number in groups.pop(kind, {}).items()]  # fmt: skip
    if refused := groups.pop("refused", {}):
        phrases.append(f"refused {count(sum(refused.values()))}")
    prints = groups.pop("fingerprint", {})
    if served := groups.pop("served", {}):
        names = ", ".join(served) if len(served) <= 3 else f"{len(served)} models"
        phrases.append(f"served by {names}" + (f" ({plural(len(prints), 'fingerprint')})" if prints else ""))
    if engines := groups.pop("engine", {}):
        phrases.append("on " + ", ".join(engines))
    for kind, rows in groups.items():
        phrases += [f"{kind} {what} {count(number)}".replace("  ", " ") for what, number in rows.items()]
    return phrases


def money_facts(story: Mapping[str, Any]) -> str:
    usage, parts = story["usage"], []
    billed = usage["billed_input_tokens"] + usage["billed_output_tokens"]
    if usage["input_tokens"] or usage["output_tokens"]:
        parts.append(f"{count(usage['input_tokens'])} tokens in, {count(usage['output_tokens'])} out")
    if billed > usage["input_tokens"] + usage["output_tokens"]:
        parts.append(f"billed {count(usage['billed_input_tokens'])} in, {count(usage['billed_output_tokens'])} out")
    done = story["counts"]["completed"] + story["counts"]["failed"]
    if done and story["cost_usd"] is not None and story["unpriced_lines"] < done:
        parts.append(dollars(story["cost_usd"]))
    if story["unpriced_lines"]:
        parts.append(f"price unknown for {plural(story['unpriced_lines'], 'line')}")
    if story["budget_usd"] is not None:
        parts.append(f"budget {dollars(story['budget_usd'])}")
    return "   ".join(parts)


def _times(story: Mapping[str, Any]) -> list[tuple[str, str]]:
    if story["ended_at"]:
        took = duration(story["ended_at"] - story["created_at"])
        return [("ended", f"{date_time(story['ended_at'])}, after {took}")]
    parts = [f"created {date_time(story['created_at'])}"]
    if story["expires_at"]:
        parts.append(f"expires {date_time(story['expires_at'])}")
    if story["eta_s"]:
        parts.append(f"{rate(story['rate_per_s'])}, about {duration(story['eta_s'])} to go")
    return [("time", "   ".join(parts))]
