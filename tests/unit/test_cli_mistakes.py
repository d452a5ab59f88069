"""A user's mistake: one clear message on stderr, exit code 2, never a traceback."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from batch.cli import exits
from batch.cli.app import run_command
from batch.cli.datadir import DataDir
from batch.cli.delivery import deliver
from batch.cli.home import Home
from batch.cli.supervisor import Plan
from batch.settings import Settings, load_settings

REQUEST = {
    "custom_id": "a",
    "method": "POST",
    "url": "/v1/chat/completions",
    "body": {"model": "grok-4.3", "messages": [{"role": "user", "content": "Hello"}]},
}


@pytest.fixture(autouse=True)
def newcomer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty directory and no key, no setting in the environment."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.endswith("_API_KEY") or name.startswith("BATCHMILL_"):
            monkeypatch.delenv(name)
    (tmp_path / "in.jsonl").write_text(json.dumps(REQUEST) + "\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "nope.jsonl", "-o", "out.jsonl"], "file 'nope.jsonl' does not exist"),
        (["run", "in.jsonl"], "Missing option"),
        (["run", "in.jsonl", "-o", "in.jsonl"], "is the input itself"),
        (["run", "in.jsonl", "-o", "no/where.jsonl"], "no such directory"),
        (["run", "in.jsonl", "-o", "/proc/out.jsonl"], "cannot write in /proc"),
        (["run", "in.jsonl", "-o", "out.jsonl", "--dry-run"], "set XAI_API_KEY"),
        (["run", "in.jsonl", "-o", "out.jsonl", "--allow-failed", "3"], "is no share"),
        (["run", "in.jsonl", "-o", "out.jsonl", "--option", "priorty=low"], "Did you mean 'priority'?"),
        (["run", "in.jsonl", "-o", "out.jsonl", "--endpoint", "/v1/foo"], "not served"),
        (["check", "in.jsonl", "--config", "nope.toml"], "no such file"),
        (["chek"], "Did you mean 'check'?"),
        (["up", "--only", "foo"], "no such part or provider"),
        (["up", "--port", "70000"], "--port: Input should be"),
        (["up", "--port", "0", "--host", "0.0.0.0"], "without API keys the server listens on loopback only"),
        (["status", "--server", "localhost"], "not a URL"),
        (["status", "--server", "http://127.0.0.1:9"], "no server answers"),
        (["submit", "in.jsonl", "--window", "3y"], "is no duration"),
        (["prepare", "in.jsonl", "--template", "{text}", "--model", "m"], 'no column "text"'),
        (["prepare", "in.jsonl", "--template", "{custom_id}"], "no model"),
        (["providers", "xai"], "no provider called xai"),
    ],
)
def test_a_mistake_gets_one_message_and_exit_code_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message names the place and the mend."""
    assert run_command(arguments) == exits.BAD_INPUT
    told = capsys.readouterr().err
    assert words in told.replace("\n       ", " ")
    assert "Traceback" not in told


def test_a_wrong_configuration_names_the_nearest_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For files and for variables alike."""
    (tmp_path / "batchmill.toml").write_text("[providers.xai]\nrequests_per_sec = 3\n")
    assert run_command(["check", "in.jsonl"]) == exits.BAD_INPUT
    assert "did you mean requests_per_second?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("WORKERS", "many", "BATCHMILL_WORKERS: Input should be a valid integer"),
        ("WEBHOOK_URLS", "https://x", "BATCHMILL_WEBHOOK_URLS: lists and tables are JSON there"),
        ("DATABASE_URL", "postgresql://me:secret@127.0.0.1:9/x", "database 127.0.0.1:9: connection failed"),
        ("DATABASE_URL", "postgres", "not a database URL"),
        ("FILES_URL", "file:///proc/nope", "files_url /proc/nope"),
        ("REDIS_URL", "foo://x", "redis_url: write redis://"),
    ],
)
def test_a_wrong_variable_is_told_before_anything_starts(
    name: str, value: str, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By its place, with no password and no child's traceback."""
    monkeypatch.setenv(f"BATCHMILL_{name}", value)
    assert run_command(["up", "--port", "0"]) == exits.BAD_INPUT
    told = capsys.readouterr().err
    assert words in told and "secret" not in told


def test_a_file_that_is_no_database_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also by a command that only looks."""
    (tmp_path / ".batchmill").mkdir()
    (tmp_path / ".batchmill" / "batchmill.db").write_text("not a database")
    for command in (["up", "--port", "0"], ["admin", "doctor"]):
        assert run_command(command) == exits.BAD_INPUT
        assert "file is not a database" in capsys.readouterr().err


def test_an_option_wins_over_a_variable_and_a_variable_over_the_file(tmp_path: Path) -> None:
    """Tables are merged key by key."""
    config = tmp_path / "batchmill.toml"
    config.write_text("port = 1\nworkers = 2\n[providers.xai]\nconcurrency = 3\nplan = 'T1'\n")
    environ = {"BATCHMILL_PORT": "4", "BATCHMILL_WORKERS": "5", "BATCHMILL_PROVIDERS": '{"xai":{"concurrency":6}}'}
    settings = load_settings(config, environ=environ, port=7)
    assert (settings.port, settings.workers) == (7, 5)
    assert (settings.providers["xai"].concurrency, settings.providers["xai"].plan) == (6, "T1")


def test_nothing_asked_is_answered_with_help(capsys: pytest.CaptureFixture[str]) -> None:
    """And with no empty error below it."""
    assert run_command([]) == exits.BAD_INPUT
    told = capsys.readouterr()
    assert "Usage: batchmill" in told.out and told.err == ""


def test_a_rehearsal_needs_no_key(capsys: pytest.CaptureFixture[str]) -> None:
    """The file is checked as for somebody who has one."""
    assert run_command(["run", "in.jsonl", "-o", "out.jsonl", "--simulate", "--dry-run"]) == exits.OK
    assert "limits 30 requests/s" in capsys.readouterr().err


def test_a_data_directory_that_cannot_be_written_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the option that chooses another."""
    monkeypatch.setenv("XAI_API_KEY", "x")
    assert run_command(["run", "in.jsonl", "-o", "out.jsonl", "--data-dir", "/proc/nowhere"]) == exits.BAD_INPUT
    assert "--data-dir DIR" in capsys.readouterr().err


def test_every_command_has_help_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    """The example is a line to copy."""
    verbs = ["run", "submit", "status", "results", "cancel", "retry", "check", "prepare", "providers", "up", "worker"]
    groups = [[verb] for verb in verbs] + [
        ["admin", verb] for verb in ("migrate", "doctor", "pause", "resume", "replay")
    ]
    groups += [["admin", "keys", verb] for verb in ("create", "list", "revoke")]
    for words in groups:
        assert run_command([*words, "--help"]) == exits.OK
        assert "Example: batchmill " + " ".join(words) in capsys.readouterr().out, words


def test_check_prints_json_when_asked(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One document with the facts that the text words."""
    monkeypatch.setenv("XAI_API_KEY", "x")
    assert run_command(["check", "in.jsonl", "--json"]) == exits.OK
    told = json.loads(capsys.readouterr().out)
    assert (told["requests"], told["problem_count"], told["providers"][0]["provider"]) == (1, 0, "xai")


def test_what_the_operator_does_is_told_as_json_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    """Everything that prints has --json."""
    assert run_command(["admin", "migrate", "--json"]) == exits.OK
    assert run_command(["admin", "keys", "create", "--json"]) == exits.OK
    told = capsys.readouterr().out
    key_id = json.loads(told[told.index("}") + 1 :])["public_id"]
    assert run_command(["admin", "keys", "revoke", key_id, "--json"]) == exits.OK
    assert json.loads(capsys.readouterr().out) == {"id": key_id, "revoked": True, "was_live": True}


def test_answers_that_cannot_be_written_are_no_input_mistake(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The name in the message is the one that the person gave; the answers wait for the same command."""
    out = tmp_path / "gone" / "out.jsonl"
    home = Home(Plan(Settings(data_dir=tmp_path)), DataDir(tmp_path))
    with pytest.raises(exits.Leave) as left:
        deliver(home, None, [], out, tmp_path / "err", None, "/v1/chat/completions")
    home.stop()
    assert left.value.code == exits.WAITS_FOR_PERSON
    assert f"{out}: No such file or directory" in capsys.readouterr().err


def test_whatever_command_comes_first_the_data_directory_is_its_owners_alone(tmp_path: Path) -> None:
    """Prompts and hashes of keys lie in it."""
    for number, command in enumerate((["admin", "migrate"], ["admin", "doctor"], ["providers", "--live"])):
        place = tmp_path / str(number)
        run_command([*command, "--data-dir", str(place)])
        assert place.stat().st_mode & 0o777 == 0o700, command
