"""The answer that was asked for, from whoever gives it: routing, seeds, schemas, gateways, costs.

One service, several simulated providers, many small batches.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jsonschema_rs
import orjson
import pytest

from batch.simulator.config import Fault
from batch.simulator.server import Simulator, start_simulator
from tests.contracts.conformance import SCHEMA
from tests.harness.servers import ROOT, clean_environment, python
from tests.harness.service import Finished, Service, chat, running_service
from tests.harness.waiting import eventually

FORMAT = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": SCHEMA}}
FAULTS: dict[str, tuple[Fault, ...]] = {
    "modelux": (
        Fault("budget", contains='"mlx:end_user":"ann"', retry_after_s=600.0),
        Fault("status", contains="all upstreams are down"),
    ),
    "small": (Fault("context_length"),),
    "capped": (Fault("daily", retry_after="none"),),
    "deaf": tuple(  # three kinds of broken first answers, 30 % together
        Fault(kind, rate=0.11, unless="Your answer is not valid")
        for kind in ("invalid_json", "schema_violation", "null_content")
    ),
}
PRESETS = {"small": "openai", "capped": "openai", "hourly": "openai", "deaf": "openai-compatible", "hopeful": "openai"}
PLAYED = {"small": "openai", "capped": "openai", "hourly": "openai", "hopeful": "deaf"}
MORE = {
    "openai": 'price = {"gpt-priced" = {input = 2.0, output = 8.0}}\n',
    "hourly": "requests_per_hour = 5\n",
}
ROUTES = """
[[routes]]
match = "shared-*"
providers = ["small", "openai"]
[[routes]]
match = "alone-*"
providers = ["small", "openai"]
fallback = "never"
[[routes]]
match = "patient-*"
providers = ["capped", "openai"]
[[routes]]
match = "hasty-*"
providers = ["capped", "openai"]
fallback = "on_wait:1m"
[[routes]]
match = "hourly-*"
providers = ["hourly", "openai"]
fallback = "on_wait:1m"
"""


@dataclass
class Town:
    service: Service
    upstream: dict[str, Simulator]
    config: str

    def run(self, lines: list[dict[str, Any]], **options: Any) -> Finished:
        return self.service.run(lines, **options)

    def bodies(self, name: str, text: str) -> list[dict[str, Any]]:
        """The bodies that reached a provider and hold `text`, in order of arrival."""
        found = [record.body for record in self.upstream[name].requests]
        return [body for body in found if text in orjson.dumps(body).decode()]


@pytest.fixture(scope="module")
def town() -> Iterator[Town]:
    names = ("openai", "mx4", "modelux", "xai", "mistral", "small", "capped", "hourly", "deaf", "hopeful", "vllm")
    with contextlib.ExitStack() as stack:
        upstream, config = {}, ROUTES
        for name in names:
            sim = upstream[name] = stack.enter_context(
                start_simulator(personality=PLAYED.get(name, name), unseeded="fresh", log_bodies=True,
                                faults=FAULTS.get(name, ()), models=("served-here",) if name == "vllm" else ())
            )  # fmt: skip
            config += f'[providers.{name}]\npreset = "{PRESETS.get(name, name)}"\nbase_url = "{sim.base_url}"\n'
            config += f'api_key_env = "SIM"\nrequests_per_second = 2000\ntokens_per_minute = 1e9\n{MORE.get(name, "")}'
        service = stack.enter_context(running_service(config, SIM="sk-simulated-key"))
        yield Town(service, upstream, config)


def test_another_provider_answers_where_the_first_cannot(town: Town) -> None:
    """But not for `fallback = "never"`, and not a seeded line: its answer would not be the same again."""
    found = town.run([chat("free", "shared-1"), chat("seeded", "shared-1", seed=1), chat("never", "alone-1")])
    assert found.note("free")["provider"] == "openai"
    for custom_id in ("seeded", "never"):
        assert found.lines[custom_id]["response"]["status_code"] == 400
        assert found.note(custom_id)["provider"] == "small"


def test_a_line_a_batch_a_prefix_and_a_slug_choose_their_provider(town: Town) -> None:
    lines = [
        chat("line", "m", batchmill={"provider": "mx4"}), chat("batch", "m"), chat("own-model", "grok-3"),
        chat("prefixed", "mistral/mistral-small-latest"),
    ]  # fmt: skip
    assert town.run(lines[:2], providers=["xai/grok-3"]).note("batch")["model"] == "grok-3"
    found = town.run([lines[0], *lines[2:], chat("slug", "@support")])
    answered = {custom_id: found.note(custom_id)["provider"] for custom_id in found.lines}
    assert answered == {"line": "mx4", "own-model": "xai", "prefixed": "mistral", "slug": "modelux"}


def test_an_engine_is_asked_for_its_models_when_nobody_lists_one(town: Town) -> None:
    assert town.run([chat("a", "served-here")]).note("a")["provider"] == "vllm"


def test_a_used_up_day_waits_unless_the_route_says_for_how_long(town: Town) -> None:
    waiting = town.service.submit([chat("waits", "patient-1")])
    assert town.run([chat("moves", "hasty-1")], timeout_s=90).note("moves")["provider"] == "openai"
    batch = town.service.client.get(f"/v1/batches/{waiting}").json()
    assert (batch["status"], batch["request_counts"]["completed"]) == ("in_progress", 0)
    town.service.client.post(f"/v1/batches/{waiting}/cancel")


def test_an_hour_of_ones_own_that_is_used_up_moves_lines_as_well(town: Town) -> None:
    """The limit is kept here: nobody has answered 429."""
    found = town.run([chat(f"h{i}", "hourly-1") for i in range(12)], timeout_s=90)
    served = sorted(found.note(custom_id)["provider"] for custom_id in found.lines)
    assert served == ["hourly"] * served.count("hourly") + ["openai"] * served.count("openai")
    assert 1 <= served.count("hourly") <= 5
    assert found.batch["request_counts"]["completed"] == 12


def test_seeds_count_up_and_take_the_providers_name(town: Town) -> None:
    found = town.run([chat("a", "mistral/mistral-small-latest", "count seeds", n=3, seed=40)])
    assert sorted(body["random_seed"] for body in town.bodies("mistral", "count seeds")) == [40, 41, 42]
    by_choice = {entry["choices"][0]: entry["seed"] for entry in found.note("a")["upstream"]}
    assert by_choice == {0: 40, 1: 41, 2: 42}


def test_a_gateways_cache_is_bypassed_only_where_it_would_repeat_itself(town: Town) -> None:
    """Its headers, its cost and its configuration's version stand on the line and in the report."""
    own = {"mlx:cache": {"ttl": 60}, "mlx:tags": {"team": "a"}}
    found = town.run([chat("one", "@r", "alone here", **own), chat("three", "@r", "in threes", n=3, **own)])
    assert town.bodies("modelux", "alone here")[0]["mlx:cache"] == {"ttl": 60}
    threes = town.bodies("modelux", "in threes")
    assert [body["mlx:cache"] for body in threes] == [{"ttl": 60, "skip": True}] * 3
    assert all(body["mlx:tags"] == {"team": "a"} for body in threes)
    assert found.note("three")["overridden"] == ["mlx:cache"]
    assert len({choice["message"]["content"] for choice in found.body("three")["choices"]}) == 3
    headers = found.note("one")["headers"]
    assert headers["x-modelux-provider"] == headers["x-modelux-provider-used"] == "openai"
    assert found.note("one")["cost_usd"] == float(headers["x-modelux-cost-usd"])
    assert found.report["config_version:7"] == 2


def test_a_gateway_that_retries_by_itself_is_tried_less_often(town: Town) -> None:
    assert town.run([chat("a", "@r", "all upstreams are down")]).note("a")["attempts"] == 3


def test_a_budget_holds_only_the_lines_of_its_scope(town: Town) -> None:
    users = [f"{name}{i}" for name in ("ann", "bob") for i in (1, 2)]
    lines = [chat(user, "@r", f"I am {user}", **{"mlx:end_user": user[:3]}) for user in users]
    batch_id = town.service.submit(lines)

    def counts() -> dict[str, Any]:
        return dict(town.service.client.get(f"/v1/batches/{batch_id}").json()["request_counts"])

    eventually(lambda: counts()["completed"] == 2, 30, what="bob's lines")
    assert counts() == {"total": 4, "completed": 2, "failed": 0}
    assert town.run([chat("c", "@r", "carl")]).note("c")["provider"] == "modelux"
    town.service.client.post(f"/v1/batches/{batch_id}/cancel")


def test_a_cost_is_known_or_null_and_never_zero_by_mistake(town: Town) -> None:
    lines = [chat("priced", "openai/gpt-priced"), chat("listed", "openai/gpt-4o-mini"), chat("unknown", "mx4/m"),
             chat("told", "xai/grok-3")]  # fmt: skip
    found = town.run(lines)
    usage = found.body("priced")["usage"]
    wanted = (2.0 * usage["prompt_tokens"] + 8.0 * usage["completion_tokens"]) / 1e6
    assert found.note("priced")["cost_usd"] == pytest.approx(wanted)
    assert found.note("listed")["cost_usd"] > 0
    assert "cost_usd" not in found.note("unknown")
    assert found.note("told")["cost_usd"] == found.body("told")["usage"]["cost_in_usd_ticks"] / 1e10
    shown = found.batch["batchmill"]
    known = sum(found.note(custom_id)["cost_usd"] for custom_id in ("priced", "listed", "told"))
    assert (shown["cost_usd"], shown["unpriced_lines"]) == (pytest.approx(known), 1)
    only_unknown = town.run([chat("unknown", "mx4/m")])
    assert only_unknown.batch["batchmill"]["cost_usd"] is None


def test_what_a_batch_does_not_want_emulated_is_refused_by_name(town: Town) -> None:
    lines = [chat("n", "mx4/m", n=2), chat("stop", "xai/grok-4.3", stop=["x"]), chat("fine", "mx4/m")]
    found = town.run(lines, on_unsupported="reject", on_invalid_line="error_file")
    refused = {custom_id: line["error"]["message"] for custom_id, line in found.lines.items() if line["error"]}
    assert set(refused) == {"n", "stop"}
    assert "mx4 does not take n > 1" in refused["n"] and "xai does not take 'stop' for grok-4.3" in refused["stop"]


def test_duplicates_are_answered_once_where_that_changes_nothing(town: Town) -> None:
    lines = [chat(f"d{i}", "mx4/m", "the same", temperature=0) for i in range(3)]
    lines.append(chat("other", "mx4/m", "the same"))
    found = town.run(lines, dedupe=True)
    assert len(town.bodies("mx4", "the same")) == 2
    assert len({found.body(f"d{i}")["choices"][0]["message"]["content"] for i in range(3)}) == 1
    assert found.report["deduplicated"] == 2


@pytest.mark.parametrize("endpoint", ["/v1/embeddings", "/v1/responses"])
def test_other_endpoints_go_the_same_way(town: Town, endpoint: str) -> None:
    model = "openai/text-embedding-3-small" if endpoint.endswith("embeddings") else "openai/gpt-4o-mini"
    line = {"custom_id": "a", "method": "POST", "url": endpoint, "body": {"model": model, "input": "words"}}
    body = town.run([line], endpoint=endpoint).body("a")
    assert len(body["data"][0]["embedding"]) > 0 if "embed" in endpoint else body["output"][0]["content"][0]["text"]


def test_what_answers_taught_serves_the_next_batch(town: Town) -> None:
    """A provider that claims schemas and ignores them costs a few extra calls once, not for ever."""
    lines = [chat(f"a{i}", "hopeful/m", f"Who is {i}?", response_format=FORMAT) for i in range(12)]
    first = town.run(lines)
    assert first.batch["request_counts"]["completed"] == 12
    before = len(town.upstream["hopeful"].requests)
    assert town.run(lines).batch["request_counts"]["completed"] == 12
    assert len(town.upstream["hopeful"].requests) - before == 12 < before


def test_a_careless_upstream_costs_few_calls_and_no_line(town: Town) -> None:
    """It ignores n, seed and response_format and spoils 30 % of its first answers."""
    lines = [chat(f"c{i}", "deaf/m", f"Person {i}.", response_format=FORMAT, n=2, seed=100 * i) for i in range(250)]
    before = town.upstream["deaf"].witness.totals()
    found = town.run(lines, timeout_s=120)
    after = town.upstream["deaf"].witness.totals()
    assert found.batch["request_counts"]["completed"] >= 0.995 * len(lines)
    seeds: dict[str, list[int]] = {}
    for body in town.bodies("deaf", "Person "):
        seeds.setdefault(body["messages"][-1 if len(body["messages"]) < 3 else 1]["content"], []).append(body["seed"])
    calls = after["requests"] - before["requests"]
    assert calls <= 1.5 * 2 * len(lines)
    assert calls > 2 * len(lines)
    for i, line in enumerate(lines):
        if found.lines[line["custom_id"]]["error"] is None:
            texts = [choice["message"]["content"] for choice in found.body(line["custom_id"])["choices"]]
            assert len(texts) == 2 and all(jsonschema_rs.is_valid(SCHEMA, orjson.loads(text)) for text in texts)
        first, second, *more = sorted(seeds[f"Person {i}."])
        assert (first, second) == (100 * i, 100 * i + 1)
        assert all(seed % 1_000_000 in (first, second) for seed in more)
    billed = found.batch["batchmill"]["billed"]
    assert billed["input_tokens"] == after["prompt_tokens"] - before["prompt_tokens"]
    assert billed["output_tokens"] == after["completion_tokens"] - before["completion_tokens"]
    for name, tokens in billed.items():  # and the lines' own bills add up to it
        assert tokens == sum(line["batchmill"]["billed"][name] for line in found.lines.values())


def test_a_probe_learns_what_a_provider_does_and_says_what_it_cost(town: Town) -> None:
    asked = ["providers", "openai", "check", "--probe", "--model", "gpt-4o-mini", "--json"]
    config = str(town.service.directory / "batchmill.toml")
    command = python("-m", "batch.cli.app", *asked, "--config", config)
    env = clean_environment(SIM="sk-simulated-key")
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=True)
    [shown] = orjson.loads(done.stdout)
    probe = shown["probe"]
    assert {finding["feature"]: finding["support"] for finding in probe["findings"]}["n"] == "native"
    assert probe["calls"] == 9 and probe["tokens"] > 0 and probe["cost_usd"] > 0
