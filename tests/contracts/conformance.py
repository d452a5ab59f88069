"""What each preset comes to in the real thing: every feature and fault, file in, files out, as a matrix.

A whole service runs in a child process; each provider is a simulator that plays it as documented.
`python -m tests.contracts.conformance docs/providers.md` rewrites the matrix there; test_conformance.py
holds it to what a run shows.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonschema_rs
import orjson

from batch.providers.catalog import Catalog
from batch.providers.presets import load_preset, preset_names
from batch.settings import Settings
from batch.simulator.config import Fault
from batch.simulator.personalities import load_personalities
from batch.simulator.server import start_simulator
from tests.contracts.preset_tables import FIRST
from tests.harness.service import Finished, Service, chat, running_service

BEGIN = "<!-- made by tests.contracts.conformance: begin -->"
END = "<!-- made by tests.contracts.conformance: end -->"
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0, "maximum": 150}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
_FORMAT = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": SCHEMA}}
_TOOL = {"type": "function", "function": {"name": "meet", "strict": True, "parameters": SCHEMA}}
_PICTURE = [
    {"type": "text", "text": "What is this?"},
    {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}},
]
FEATURES: dict[str, dict[str, Any]] = {
    "n": {"n": 3},
    "seed": {"seed": 11},
    "n, seed": {"n": 3, "seed": 11},
    "json_schema": {"response_format": _FORMAT},
    "json_schema, n": {"response_format": _FORMAT, "n": 2},
    "json_object": {"response_format": {"type": "json_object"}},
    "tools": {"tools": [_TOOL], "tool_choice": "required"},
    "stop": {"stop": ["a"]},
    "presence_penalty": {"presence_penalty": 0.5},
    "logprobs": {"logprobs": True},
    "max_completion_tokens": {"max_completion_tokens": 5},
    "image": {"content": _PICTURE},
}
STREAMED = ("n", "json_schema", "stop")
MODELS = {  # besides each provider's first
    "xai": ["grok-4.20-non-reasoning"],
    "openai": ["o4-mini"],
    "groq": ["openai/gpt-oss-120b"],
    "anthropic": ["claude-opus-4-7"],
}
PASSING = ("rate_limit", "status", "overloaded", "reset", "truncated_json", "no_choices", "error_in_200")
LASTING = ("context_length", "content_policy")


@dataclass
class Row:
    """One provider and model: what came of each feature and fault, in a word or two."""

    preset: str
    model: str
    cells: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def rows() -> list[Row]:
    """Every preset that has a double, the first-class ones first."""
    played = load_personalities()
    names = sorted((name for name in preset_names() if name in played), key=lambda name: (_rank(name), name))
    return [Row(name, model) for name in names for model in (played[name].models[0], *MODELS.get(name, ()))]


def _rank(name: str) -> tuple[int, int]:
    kinds = ("hosted", "gateway", "engine", "generic")
    return (FIRST.index(name), 0) if name in FIRST else (len(FIRST), kinds.index(load_preset(name).kind))


def measure() -> list[Row]:
    """Run everything once."""
    table = rows()
    with playing() as service:
        waiting = [(row, *_submit(service, row)) for row in table]
        for row, asked, dropping, streamed, faulted in waiting:
            found = service.wait(asked, 120)
            row.cells |= {feature: _judge(row, feature, found) for feature in FEATURES}
            _compare_dropping(row, service.wait(dropping, 120))
            found = service.wait(streamed, 120)
            told = {_judge(row, feature, found, "streamed") for feature in STREAMED}
            row.cells["streamed"] = "error" if told & {"error", "refused"} else "yes"
            found = service.wait(faulted, 120)
            row.cells |= {kind: _fate(found.lines[kind]) for kind in (*PASSING, *LASTING)}
    return table


def _compare_dropping(row: Row, found: Finished) -> None:
    """With on_unsupported = "drop", what was refused is dropped and said so, and everything else is as before."""
    for feature, word in row.cells.items():
        if word != "refused":
            now = _judge(row, feature, found, "dropping")
            row.problems += [f"dropping {feature}: {now}, not {word}"] if now != word else []
        elif found.lines[feature]["error"] is None and found.note(feature).get("dropped"):
            row.cells[feature] += ", or dropped"


@contextlib.contextmanager
def playing() -> Iterator[Service]:
    """A service, and a simulator for each provider."""
    faults = tuple(
        Fault(kind, contains=f"[{kind}]", first=1 if kind in PASSING else None, retry_after="float", retry_after_s=0.1)
        for kind in (*PASSING, *LASTING)
    )
    config = ""
    with contextlib.ExitStack() as stack:
        for name in dict.fromkeys(row.preset for row in rows()):
            simulator = stack.enter_context(
                start_simulator(personality=name, unseeded="fresh", faults=faults, slots=100, queue_max=1000)
            )
            common = f'base_url = "{simulator.base_url}"\napi_key_env = "SIM"\nrequests_per_second = 1000\n'
            common += "tokens_per_minute = 100_000_000\n"
            config += f"[providers.{name}]\n{common}"
            config += f'[providers.{name}-streamed]\npreset = "{name}"\nstream = true\n{common}'
        yield stack.enter_context(running_service(config, SIM="sk-simulated-key"))


def _submit(service: Service, row: Row) -> tuple[str, str, str, str]:
    preset, model = row.preset, row.model
    asked = [chat(name, model, **{"content": f"Tell me of {name}.", **body}) for name, body in FEATURES.items()]
    streamed = [chat(feature, model, f"Stream {feature}.", **FEATURES[feature]) for feature in STREAMED]
    faulted = [chat(kind, model, f"Say something. [{kind}]") for kind in (*PASSING, *LASTING)]
    return (
        service.submit(asked, providers=[preset], on_invalid_line="error_file"),
        service.submit(asked, providers=[preset], on_invalid_line="error_file", on_unsupported="drop"),
        service.submit(streamed, providers=[f"{preset}-streamed"], on_invalid_line="error_file"),
        service.submit(faulted, providers=[preset]),
    )


def _judge(row: Row, feature: str, found: Finished, how: str = "") -> str:
    """The word for one feature's line; what is wrong with a completed one goes to the row's problems."""
    line = found.lines[feature]
    if line["error"] is not None or line["response"]["status_code"] != 200:
        return "refused" if _is_refusal(line) else "error"
    body, note = found.body(feature), found.note(feature)
    problem = _check(feature, body)
    keys = {*feature.split(", ")} | ({"tool_choice"} if feature == "tools" else set())
    emulated = keys & {*note.get("emulated", ())}
    ignored = keys & {*note.get("ignored", ())}
    if problem and not ignored:
        row.problems.append(f"{how} {feature}: {problem}".strip())
    others = sorted(keys - {"seed"} - emulated)
    words = [f"{key} emulated" if others else "emulated" for key in sorted(emulated)]
    if ignored:
        words.append("ignored, said")
    elif others and not emulated:
        words.append(_claim(row, others))
    if "seed" in keys:
        words.append(f"seed {note['seed'].replace('_', ' ')}")
    return ", ".join(dict.fromkeys(words))


def _claim(row: Row, keys: list[str]) -> str:
    """"native" where the preset says so; else it was only sent, and did what it should."""
    settings = Settings(providers={row.preset: {"base_url": "http://127.0.0.1:1/v1"}})  # type: ignore[dict-item]
    card = Catalog.from_settings(settings, environ={}).providers[row.preset].card(row.model)
    known = {"max_completion_tokens": card.max_tokens_field, "image": "vision", "tool_choice": "tools"}
    return "native" if all(card.is_native(known.get(key, key)) for key in keys) else "sent"


def _is_refusal(line: dict[str, Any]) -> bool:
    """True for an error that names what the provider does not take."""
    error = line["error"] or line["response"]["body"].get("error", line["response"]["body"])
    return "does not take" in str(error) or bool(line["batchmill"].get("causes", {}).get("unsupported_param"))


def _check(feature: str, body: dict[str, Any]) -> str:
    """What is wrong with a completed line; empty when it is what was asked for."""
    choices = body["choices"]
    wanted = FEATURES[feature].get("n", 1)
    texts = [choice["message"]["content"] for choice in choices]
    if [choice["index"] for choice in choices] != list(range(wanted)):
        return f"{len(choices)} choices"
    if len(set(map(str, texts))) < wanted:
        return "equal choices"
    if "json_schema" in feature:
        return "" if all(jsonschema_rs.is_valid(SCHEMA, orjson.loads(text)) for text in texts) else "not valid"
    if feature == "json_object":
        return "" if isinstance(orjson.loads(texts[0]), dict) else "no object"
    if feature == "stop":
        return "not stopped" if "a" in texts[0] else ""
    if feature == "logprobs":
        return "" if choices[0].get("logprobs") else "no logprobs"
    if feature == "max_completion_tokens":
        return "" if len(texts[0].split()) <= 5 else "too long"
    if feature == "tools":
        calls = choices[0]["message"].get("tool_calls") or [{"function": {"arguments": "null"}}]
        return "" if jsonschema_rs.is_valid(SCHEMA, orjson.loads(calls[0]["function"]["arguments"])) else "no call"
    return ""


def _fate(line: dict[str, Any]) -> str:
    if line["error"] is not None:
        return f"error {line['error']['code']}"
    response = line["response"]
    return "completed" if response["status_code"] == 200 else f"error {response['status_code']}"


def render(table: list[Row]) -> str:
    """The matrix as Markdown."""
    heads = ["preset", "model", *FEATURES, "streamed"]
    faults = ["preset", *(kind.replace("_", " ") for kind in (*PASSING, *LASTING))]
    parts = [_line(heads), _line(["---"] * len(heads))]
    parts += [_line([f"`{row.preset}`", row.model, *(row.cells[name] for name in heads[2:])]) for row in table]
    parts += ["", _line(faults), _line(["---"] * len(faults))]
    first = {row.preset: row for row in reversed(table)}
    parts += [
        _line([f"`{name}`", *(first[name].cells[kind] for kind in (*PASSING, *LASTING))])
        for name in dict.fromkeys(row.preset for row in table)
    ]
    return "\n".join(parts)


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def rewrite(text: str, table: list[Row]) -> str:
    """`text` with this matrix between the markers."""
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n\n{render(table)}\n\n{END}{tail}"


def main(path: Path) -> None:
    table = measure()
    for row in table:
        for problem in row.problems:
            print(f"{row.preset} {row.model}: {problem}", file=sys.stderr)
    path.write_text(rewrite(path.read_text(encoding="utf-8"), table), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
