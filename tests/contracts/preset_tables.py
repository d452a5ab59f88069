"""The tables of docs/providers.md, made from the presets so that they cannot drift.

Owns: the text between the markers. `python -m tests.contracts.preset_tables docs/providers.md` rewrites it; a test
compares. May not touch: prose outside the markers.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from batch.completions.cards import Support
from batch.providers.presets import LimitFields, Preset, load_preset, preset_names

BEGIN = "<!-- made by tests.contracts.preset_tables: begin -->"
END = "<!-- made by tests.contracts.preset_tables: end -->"
FEATURE_COLUMNS = (
    "n", "seed", "json_schema", "json_object", "tools", "vision", "stop", "presence_penalty", "logprobs",
)  # fmt: skip
FIRST = ("mx4", "modelbox", "megallm", "xai", "modelux", "openai")
_KINDS = ("hosted", "gateway", "engine", "generic")
_RATE_WORDS = {
    "requests_per_second": "req/s", "requests_per_minute": "req/min", "requests_per_hour": "req/h",
    "requests_per_day": "req/day", "tokens_per_minute": "tok/min", "tokens_per_day": "tok/day",
    "input_tokens_per_minute": "input tok/min", "output_tokens_per_minute": "output tok/min",
    "concurrency": "at once",
}  # fmt: skip


def render() -> str:
    """All tables, as Markdown without the markers."""
    presets = sorted((load_preset(name) for name in preset_names()), key=_order)
    parts = [
        _table(("preset", "what", "key variable", "base URL"), (_address_row(preset) for preset in presets)),
        "### What each can do\n",
        _table(("preset", *FEATURE_COLUMNS), (_feature_row(preset) for preset in presets)),
        "### What holds only for some models\n",
        _table(("preset", "models that match", "differ in"), _model_rows(presets)),
        "### Limits\n",
        _table(("preset", "plan", "models that match", "limits"), _limit_rows(presets)),
        "### What to know of each\n",
        "\n".join(_notes(preset) for preset in presets),
    ]
    return "\n".join(parts)


def rewrite(text: str) -> str:
    """`text` with fresh tables between the markers. Raises ValueError when a marker is missing."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the markers {BEGIN} and {END} must both stand in the page")
    return f"{head}{BEGIN}\n\n{render()}\n{END}{tail}"


def _order(preset: Preset) -> tuple[int, int, str]:
    first = FIRST.index(preset.name) if preset.name in FIRST else len(FIRST)
    return (first, _KINDS.index(preset.kind) if first == len(FIRST) else 0, preset.name)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def _address_row(preset: Preset) -> Sequence[str]:
    variable = f"`{preset.auth.env}`" if preset.auth.env else "none needed"
    return f"`{preset.name}`", preset.title, variable, preset.base_url or preset.base_url_hint


def _feature_row(preset: Preset) -> Sequence[str]:
    return f"`{preset.name}`", *(preset.support.get(name, preset.default).value for name in FEATURE_COLUMNS)


def _model_rows(presets: Iterable[Preset]) -> Iterable[Sequence[str]]:
    for preset in presets:
        for row in preset.model_rows:
            facts = [*_support_words(row.support), *_given_words(row.card.given()), *_limit_words(row.limits)]
            yield f"`{preset.name}`", f"`{row.match}`", ", ".join(facts)


def _support_words(rows: dict[str, Support]) -> list[str]:
    return [f"{name} {value.value}" for name, value in rows.items()]


def _given_words(fields: dict[str, object]) -> list[str]:
    return [f"{name} = {value}" for name, value in fields.items()]


def _limit_rows(presets: Iterable[Preset]) -> Iterable[Sequence[str]]:
    for preset in presets:
        base = _limit_words(preset.limits)
        if base:
            yield f"`{preset.name}`", "", "all", ", ".join(base)
        for name, plan in preset.plans.items():
            shown = f"{name} (default)" if name == preset.plan else name
            shown += f": {plan.note}" if plan.note else ""
            for limits in plan.limits:
                models = f"`{limits.match}`" if limits.match else "all"
                yield f"`{preset.name}`", shown, models, ", ".join(_limit_words(limits))


def _limit_words(limits: LimitFields) -> list[str]:
    return [f"{limits.given()[name]:,.0f} {words}" for name, words in _RATE_WORDS.items() if name in limits.given()]


def _notes(preset: Preset) -> str:
    notes = "".join(f"- {note}\n" for note in preset.notes)
    return f"**{preset.title}** (`{preset.name}`)\n\n{notes}"


def main(paths: Sequence[str]) -> None:
    for path in map(Path, paths):
        path.write_text(rewrite(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
