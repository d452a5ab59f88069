"""Everything that a provider can do wrong, the simulator does on demand."""

from __future__ import annotations

import json
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
import pytest

from batch.simulator import Fault, Latency, Limit, Simulator, SimulatorConfig, start_simulator
from batch.simulator.config import FAULT_KINDS
from batch.simulator.headers import HEADER_FAMILIES, duration

ASK: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Say something."}]}
SCHEMA = {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}}
JSON_ASK = {**ASK, "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}}


def post(simulator: Simulator, body: dict[str, Any] = ASK, key: str = "k", **more: Any) -> httpx.Response:
    url = simulator.base_url + "/chat/completions"
    return httpx.post(url, json=body, headers={"authorization": f"Bearer {key}"}, timeout=5, trust_env=False, **more)


def one_fault(kind: str, **settings: Any) -> Any:
    return start_simulator(faults=(Fault(kind, **settings),))


@pytest.mark.parametrize(("kind", "status", "code"), [
    ("rate_limit", 429, "rate_limit_exceeded"), ("daily", 429, "rate_limit_exceeded"),
    ("quota", 429, "insufficient_quota"),
    ("budget", 402, "budget_exceeded"), ("bad_key", 401, "invalid_api_key"), ("forbidden", 403, "permission_denied"),
    ("model_not_found", 404, "model_not_found"), ("context_length", 400, "context_length_exceeded"),
    ("content_policy", 400, "content_policy_violation"), ("overloaded", 529, "overloaded"), ("status", 500, None),
])  # fmt: skip
def test_http_errors_carry_the_status_and_code_of_their_cause(kind: str, status: int, code: str | None) -> None:
    with one_fault(kind) as simulator:
        answer = post(simulator)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


@pytest.mark.parametrize(("form", "header", "value"), [
    ("seconds", "retry-after", "3"), ("float", "retry-after", "2.500"), ("ms", "retry-after-ms", "2500"),
    ("zero", "retry-after", "0"), ("negative", "retry-after", "-1"), ("garbage", "retry-after", "soon"),
    ("none", "retry-after", None), ("body_text", "retry-after", None), ("reset", "x-ratelimit-reset-requests", "2.5s"),
])  # fmt: skip
def test_retry_after_comes_in_every_form(form: Any, header: str, value: str | None) -> None:
    with one_fault("rate_limit", retry_after=form, retry_after_s=2.5) as simulator:
        answer = post(simulator)
    assert answer.headers.get(header) == value
    assert ("try again in 2.5s" in answer.text) == (form == "body_text")


def test_retry_after_as_a_date_is_a_real_date() -> None:
    with one_fault("rate_limit", retry_after="date", retry_after_s=30) as simulator:
        answer = post(simulator)
    assert parsedate_to_datetime(answer.headers["retry-after"]).year > 2000


@pytest.mark.parametrize(("kind", "error"), [
    ("reset", httpx.RemoteProtocolError), ("reset_mid_body", httpx.RemoteProtocolError), ("hang", httpx.ReadTimeout),
])  # fmt: skip
def test_the_transport_breaks_as_told(kind: str, error: type[Exception]) -> None:
    with one_fault(kind) as simulator:
        with pytest.raises((error, httpx.ReadError)):
            patience = httpx.Timeout(10, read=0.3 if kind == "hang" else 10)
            httpx.post(simulator.base_url + "/chat/completions", json=ASK, timeout=patience, trust_env=False)
        assert [record.fault for record in simulator.requests] == [kind]


def test_bodies_come_cut_late_empty_or_as_html() -> None:
    with one_fault("truncated_json") as simulator, pytest.raises(json.JSONDecodeError):
        post(simulator).json()
    with one_fault("slow_body", seconds=0.2) as simulator:
        assert post(simulator).elapsed.total_seconds() >= 0.15
    with one_fault("html") as simulator:
        assert post(simulator).headers["content-type"] == "text/html"
    with one_fault("empty_body") as simulator:
        assert post(simulator).content == b""


@pytest.mark.parametrize(("kind", "path", "value"), [
    ("wrong_n", ("choices", 1, "index"), 1), ("null_content", ("choices", 0, "message", "content"), None),
    ("refusal", ("choices", 0, "message", "content"), None), ("length", ("choices", 0, "finish_reason"), "length"),
    ("content_filter", ("choices", 0, "finish_reason"), "content_filter"),
])  # fmt: skip
def test_an_answer_of_200_is_wrong_in_one_place(kind: str, path: tuple[Any, ...], value: Any) -> None:
    with one_fault(kind) as simulator:
        found = post(simulator).json()
    for step in path:
        found = found[step]
    assert found == value


def test_fewer_choices_than_asked_for_and_none_at_all() -> None:
    with one_fault("wrong_n") as simulator:
        assert len(post(simulator, {**ASK, "n": 3}).json()["choices"]) == 2
    with one_fault("no_choices") as simulator:
        assert post(simulator).json()["choices"] == []


@pytest.mark.parametrize("kind", ["invalid_json", "schema_violation"])
def test_json_is_broken_or_of_another_shape(kind: str) -> None:
    with one_fault(kind) as simulator:
        content = post(simulator, JSON_ASK).json()["choices"][0]["message"]["content"]
    try:
        assert "a" not in json.loads(content)
    except json.JSONDecodeError:
        assert kind != "schema_violation"


def test_an_error_can_stand_in_200_and_in_a_stream() -> None:
    with one_fault("error_in_200") as simulator:
        assert "error" in post(simulator).json()
        streamed = post(simulator, {**ASK, "stream": True})
    assert streamed.status_code == 200
    assert streamed.text.startswith('data: {"error"')


def test_a_script_hits_the_named_arrivals_and_no_others() -> None:
    faults = (Fault("status", on=(1,), status=503), Fault("rate_limit", on=(2,)))
    with start_simulator(faults=faults) as simulator:
        assert [post(simulator).status_code for _ in range(4)] == [200, 503, 429, 200]


def test_a_share_of_requests_fails_and_the_same_ones_again() -> None:
    def statuses() -> list[int]:
        with start_simulator(faults=(Fault("status", rate=0.3),), seed=4) as simulator:
            return [post(simulator).status_code for _ in range(60)]

    first = statuses()
    assert first == statuses()
    assert 8 <= first.count(500) <= 28


def test_first_attempts_fail_and_later_ones_pass() -> None:
    with start_simulator(faults=(Fault("status", first=2),)) as simulator:
        other = {**ASK, "messages": [{"role": "user", "content": "other"}]}
        assert [post(simulator, body).status_code for body in (ASK, ASK, ASK, other)] == [500, 500, 200, 500]


def test_a_fault_may_choose_by_content_and_count() -> None:
    fault = Fault("status", contains="Say", unless="x9", times=1)
    with start_simulator(faults=(fault,)) as simulator:
        assert post(simulator, {**ASK, "model": "x9"}).status_code == 200
        assert [post(simulator).status_code for _ in range(2)] == [500, 200]


def test_keys_are_refused_and_accepted_again_while_it_runs() -> None:
    with start_simulator(valid_keys=("good",)) as simulator:
        assert (post(simulator, key="good").status_code, post(simulator, key="bad").status_code) == (200, 401)
        control = httpx.post(simulator.url + "/control", json={"invalid_keys": ["good"]}, trust_env=False)
        assert control.status_code == 200
        assert post(simulator, key="good").status_code == 401
        simulator.reconfigure(invalid_keys=())
        assert post(simulator, key="good").status_code == 200


def test_the_control_door_tells_totals_and_refuses_nonsense() -> None:
    with start_simulator() as simulator:
        post(simulator)
        door = simulator.url + "/control"
        assert httpx.get(door, trust_env=False).json()["statuses"] == {"200": 1}
        assert httpx.post(door, json={"latenzy": 1}, trust_env=False).status_code == 400
        assert httpx.post(door, json={"port": 1}, trust_env=False).status_code == 400


def test_limits_answer_429_with_headers_and_a_wait() -> None:
    with start_simulator(limits=(Limit("requests", 2), Limit("tokens", 10_000))) as simulator:
        answers = [post(simulator) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert answers[0].headers["x-ratelimit-remaining-requests"] == "1"
    assert 0 < float(answers[2].headers["retry-after-ms"]) <= 30_000
    assert "requests per min (RPM): Limit 2, Used 2" in answers[2].json()["error"]["message"]


@pytest.mark.parametrize("family", sorted(HEADER_FAMILIES - {"none"}))
def test_every_family_of_rate_headers_shows_something(family: str) -> None:
    limits = (Limit("requests", 100), Limit("tokens", 9000), Limit("input_tokens", 9000), Limit("output_tokens", 9000))
    with start_simulator(headers=family, limits=limits) as simulator:
        names = " ".join(post(simulator).headers)
    assert "limit" in names


def test_durations_are_spelled_as_go_spells_them() -> None:
    assert [duration(s) for s in (0.012, 1, 59.56, 360, 3723)] == ["12ms", "1s", "59.56s", "6m0s", "1h2m3s"]


def test_settings_are_read_from_json_and_unknown_ones_named() -> None:
    config = SimulatorConfig.from_mapping({
        "latency": "lognormal:0.2,1", "limits": [{"what": "requests", "amount": 5}], "faults": [{"kind": "hang"}],
        "features": {"n": "ignored"},
    })  # fmt: skip
    assert (config.latency, config.features) == (Latency("lognormal", 0.2, 1.0), (("n", "ignored"),))
    with pytest.raises(ValueError, match="latenzy"):
        SimulatorConfig.from_mapping({"latenzy": 1})
    with pytest.raises(ValueError, match="earthquake"):
        Fault("earthquake")


def test_every_fault_kind_gives_some_answer_or_a_broken_connection() -> None:
    for kind in sorted(FAULT_KINDS - {"hang", "slow_body"}):
        with one_fault(kind) as simulator:
            try:
                post(simulator)
            except httpx.HTTPError:
                assert kind in {"reset", "reset_mid_body"}
            assert simulator.requests[0].fault == kind
