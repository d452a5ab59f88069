"""The check of an input file: every problem with its line, and what the file will take."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from batch.domain.options import BatchOptions
from batch.operations.check_input import InputCheck, check_input
from batch.providers.catalog import Catalog
from batch.settings import Settings

ENVIRONMENT = {"MX4_API_KEY": "x", "XAI_API_KEY": "x"}


def line(custom_id: str, **body: Any) -> dict[str, Any]:
    given = {"model": "mx4-atlas-core", "messages": [{"role": "user", "content": "Hello"}], **body}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": given}


@pytest.fixture
def checked(tmp_path: Path) -> Any:
    def check(*lines: Any, **options: Any) -> InputCheck:
        path = tmp_path / "in.jsonl"
        path.write_text("".join((text if isinstance(text, str) else json.dumps(text)) + "\n" for text in lines))
        settings = Settings()
        catalog = Catalog.from_settings(settings, ENVIRONMENT)
        return check_input(path, catalog, settings, options=BatchOptions.parse(options))

    return check


def test_every_bad_line_is_reported_with_its_number(checked: Any) -> None:
    """Blank lines count; the first problem does not hide the next."""
    found = checked(line("a"), "", "{", line("a"), line("b", temperature=3), line("c", model="no-such/model-1"))
    assert [(p.line, p.code) for p in found.problems] == [
        (3, "invalid_json_line"), (4, "duplicate_custom_id"), (5, "invalid_value"), (6, "model_not_found"),
    ]  # fmt: skip


def test_a_fan_out_is_counted_in_calls_and_tokens(checked: Any) -> None:
    """n = 3 where n is emulated sends the prompt three times."""
    plain, fanned = checked(line("a")), checked(line("a", n=3))
    (one,), (three,) = plain.lanes.values(), fanned.lanes.values()
    assert (one.calls, three.calls) == (1, 3)
    assert three.input_tokens == 3 * one.input_tokens
    assert three.emulated == {"n": 1}


def test_the_tightest_limit_binds(checked: Any) -> None:
    """Of 100 requests, 10,000 tokens a minute and 1,000 requests an hour."""
    found = checked(*[line(f"r{i}", max_tokens=500) for i in range(200)])
    assert found.time is not None
    assert found.time.limit == "tokens_per_minute"
    assert found.time.seconds > 300


def test_lines_beyond_the_window_are_counted(checked: Any) -> None:
    """So that nobody starts a file that cannot finish unawares."""
    found = checked(*[line(f"r{i}", max_tokens=500) for i in range(200)])
    assert 0 < found.lines_beyond(60) < 200
    assert found.lines_beyond(86_400) == 0


def test_what_does_nothing_is_warned_of(checked: Any) -> None:
    """camelCase keys and n > 1 at temperature 0 run, but not as meant."""
    found = checked(line("a", presencePenalty=1), line("b", n=2, temperature=0))
    assert {kind: warned.lines for kind, warned in found.warnings.items()} == {
        "misspelt:presencePenalty": [1],
        "n_at_temperature_0": [2],
    }


def test_a_parameter_that_nobody_can_serve_is_a_problem_when_the_batch_rejects(checked: Any) -> None:
    """`on_unsupported = reject` refuses what would be emulated."""
    assert checked(line("a", n=3)).is_valid
    assert not checked(line("a", n=3), on_unsupported="reject").is_valid


def test_what_ingest_would_refuse_is_found_here(tmp_path: Path) -> None:
    """The shape of `batchmill`, a URL that an own engine must not fetch, a second provider that is never asked."""
    picture = [{"type": "image_url", "image_url": {"url": "http://10.0.0.1/secret.png"}}]
    lines = [
        {**line("a", model="m"), "batchmill": {"providers": ["own"]}},
        line("b", model="m", messages=[{"role": "user", "content": picture}]),
        line("c", model="first", n=3),
        line("d", model="second", n=3),
    ]
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(text) + "\n" for text in lines))
    hops = ["mx4/mx4-atlas-core", "openai/gpt-4o"]
    settings = Settings.model_validate({
        "providers": {"own": {"base_url": "http://127.0.0.1:9/v1", "models": ["m"]}},
        "routes": [
            {"match": "first", "providers": hops, "fallback": "never"}, {"match": "second", "providers": hops},
        ],
    })  # fmt: skip
    catalog = Catalog.from_settings(settings, {**ENVIRONMENT, "OPENAI_API_KEY": "x"})
    found = check_input(path, catalog, settings, options=BatchOptions(on_unsupported="reject"))
    assert [(p.line, p.code) for p in found.problems] == [
        (1, "invalid_value"), (2, "private_url"), (3, "invalid_request"),
    ]  # fmt: skip
    assert found.lanes["openai", "gpt-4o"].lines == 1


def test_an_empty_file_is_a_problem_of_the_file(checked: Any) -> None:
    """It has no line to name."""
    assert [(p.line, p.code) for p in checked("").problems] == [(None, "empty_file")]


def test_gzip_is_seen_through(tmp_path: Path) -> None:
    """By its first bytes, whatever the name says."""
    path = tmp_path / "in.jsonl"
    path.write_bytes(gzip.compress((json.dumps(line("a")) + "\n").encode()))
    settings = Settings()
    assert check_input(path, Catalog.from_settings(settings, ENVIRONMENT), settings).requests == 1
