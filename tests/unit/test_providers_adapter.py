"""One call through the adapter: what is sent, what an answer becomes, what is never shown."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from batch.domain.outcome import Failure, FailureKind, Outcome, Success
from batch.providers.adapter import Adapter, join_url
from batch.providers.catalog import Catalog
from batch.providers.transport import HttpxSeam
from batch.settings import Settings
from tests.harness.clock import FakeClock

KEY = "sk-very-secret-key-1234"
CHAT = "/v1/chat/completions"
BODY = b'{"model":"m","messages":[]}'
COMPLETION = {
    "id": "c1",
    "object": "chat.completion",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hi"}}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4},
}


class Wire:
    """A provider that answers by a table and remembers what it was sent."""

    def __init__(self, status: int = 200, body: Any = COMPLETION, headers: dict[str, str] | None = None) -> None:
        self.sent: list[httpx.Request] = []
        content = body if isinstance(body, bytes) else orjson.dumps(body)
        self._answer = (status, content, {"content-type": "application/json"} | (headers or {}))

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.sent.append(request)
        status, content, headers = self._answer
        return httpx.Response(status, content=content, headers=headers)


def adapter_for(
    name: str, wire: Wire, environ: dict[str, str] | None = None, clock: FakeClock | None = None, **config: Any
) -> Adapter:
    variable = {"azure": "AZURE_OPENAI_API_KEY"}.get(name, f"{name.upper()}_API_KEY")
    settings = Settings(providers={name: config})
    catalog = Catalog.from_settings(settings, environ={variable: KEY} if environ is None else environ)
    watch = clock or FakeClock()
    seam = HttpxSeam(httpx.MockTransport(wire), 1_000_000, watch)
    return Adapter(catalog.providers[name], seam, watch, secrets=catalog.secrets)


def call(adapter: Adapter, body: bytes = BODY, **more: Any) -> Outcome:
    return asyncio.run(adapter.call(CHAT, body, **more))


def failed(outcome: Outcome) -> Failure:
    assert isinstance(outcome, Failure)
    return outcome


def succeeded(outcome: Outcome) -> Success:
    assert isinstance(outcome, Success)
    return outcome


def test_a_call_goes_to_the_base_plus_the_endpoint_with_the_key() -> None:
    """The batch endpoint's /v1 is the base's, not the path's."""
    wire = Wire()
    answer = succeeded(call(adapter_for("xai", wire)))
    request = wire.sent[0]
    assert str(request.url) == "https://api.x.ai/v1/chat/completions"
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert request.content == BODY
    assert answer.body == orjson.dumps(COMPLETION)
    assert answer.data == COMPLETION


def test_azure_sends_its_key_in_its_own_header() -> None:
    wire = Wire()
    call(adapter_for("azure", wire, base_url="https://r.openai.azure.com/openai/v1"))
    assert wire.sent[0].headers["api-key"] == KEY
    assert "authorization" not in wire.sent[0].headers


@pytest.mark.parametrize(
    ("base", "path", "url"),
    [
        ("https://h/v1", "/v1/chat/completions", "https://h/v1/chat/completions"),
        ("https://h/v1/", "/chat/completions", "https://h/v1/chat/completions"),
        ("https://h", "/v1/embeddings", "https://h/embeddings"),
        ("https://h/x?api-version=1", "/v1/chat/completions", "https://h/x/chat/completions?api-version=1"),
    ],
)
def test_the_base_is_used_as_written(base: str, path: str, url: str) -> None:
    assert join_url(base, path) == url


def test_a_404_hints_at_a_missing_v1() -> None:
    wire = Wire(404, {"detail": "Not Found"})
    failure = failed(call(adapter_for("xai", wire, base_url="http://gpu1:8000")))
    assert failure.kind is FailureKind.MODEL_NOT_FOUND
    assert "at http://gpu1:8000/chat/completions: does base_url lack /v1?" in failure.message


def test_no_configured_key_is_shown_in_an_error() -> None:
    """Some providers repeat the key in their message."""
    wire = Wire(401, {"error": {"message": f"Incorrect API key provided: {KEY}.", "code": "invalid_api_key"}})
    failure = failed(call(adapter_for("xai", wire)))
    assert failure.kind is FailureKind.BAD_KEY
    assert KEY not in repr(failure)
    assert "[key]" in failure.message


def test_a_missing_key_is_told_without_a_call() -> None:
    wire = Wire()
    failure = failed(call(adapter_for("xai", wire, environ={})))
    assert (failure.kind, failure.sent) == (FailureKind.BAD_KEY, False)
    assert "XAI_API_KEY" in failure.message
    assert wire.sent == []


def test_a_mended_key_file_is_seen_within_seconds(tmp_path: Path) -> None:
    """No restart is needed: the file is read anew."""
    key_file = tmp_path / "key"
    key_file.write_text("old-key-0001\n")
    wire, clock = Wire(), FakeClock()
    adapter = adapter_for("mx4", wire, environ={}, clock=clock, api_key_file=key_file)
    call(adapter)
    key_file.write_text("new-key-0002\n")
    clock.advance(6)
    call(adapter)
    assert [r.headers["authorization"] for r in wire.sent] == ["Bearer old-key-0001", "Bearer new-key-0002"]


def test_a_key_of_two_lines_is_told_without_a_call_and_without_the_key(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("first-line\nsecond-line\n")
    wire = Wire()
    failure = failed(call(adapter_for("mx4", wire, environ={}, api_key_file=tmp_path / "key")))
    assert (failure.kind, wire.sent) == (FailureKind.BAD_KEY, [])
    assert "second-line" not in failure.message


def test_modelux_headers_are_kept_under_both_spellings_and_tell_the_cost() -> None:
    told = {"x-modelux-provider": "openai", "x-modelux-cost-usd": "0.0012", "x-modelux-config-version": "7"}
    answer = succeeded(call(adapter_for("modelux", Wire(headers=told | {"set-cookie": "s"}))))
    assert answer.cost_usd == 0.0012
    assert answer.headers == told | {"x-modelux-provider-used": "openai"}


def test_xai_ticks_and_openrouter_dollars_are_costs() -> None:
    ticks = COMPLETION | {"usage": {"cost_in_usd_ticks": 12_000_000}}
    assert succeeded(call(adapter_for("xai", Wire(body=ticks)))).cost_usd == pytest.approx(0.0012)
    dollars = COMPLETION | {"usage": {"cost": 0.5}}
    assert succeeded(call(adapter_for("openrouter", Wire(body=dollars)))).cost_usd == 0.5
    assert succeeded(call(adapter_for("xai", Wire()))).cost_usd is None


def test_an_error_inside_a_200_is_a_failure_of_its_inner_code() -> None:
    wire = Wire(body={"error": {"code": 429, "message": "slow down"}})
    failure = failed(call(adapter_for("openrouter", wire)))
    assert (failure.kind, failure.status) == (FailureKind.RATE_LIMIT, 200)


@pytest.mark.parametrize(
    ("body", "words"),
    [(b"<b>hello</b>", "no JSON"), (b"[]", "no object"), (b'{"choices":[]}', "without choices"), (b"", "no JSON")],
)
def test_a_200_that_is_no_completion_is_a_bad_answer(body: bytes, words: str) -> None:
    """The message tells what came, never its text."""
    failure = failed(call(adapter_for("xai", Wire(body=body))))
    assert failure.kind is FailureKind.BAD_ANSWER
    assert words in failure.message
    assert "hello" not in failure.message


def test_blank_lines_before_the_answer_are_no_part_of_it() -> None:
    """DeepSeek keeps the line alive with them."""
    wire = Wire(body=b"\n\n\n" + orjson.dumps(COMPLETION))
    assert succeeded(call(adapter_for("deepseek", wire))).body == orjson.dumps(COMPLETION)


def test_a_stream_becomes_the_one_object() -> None:
    events = b"".join(
        b"data: " + orjson.dumps({"id": "c", "model": "m", "choices": [{"index": 0, **part}]}) + b"\n\n"
        for part in (
            {"delta": {"role": "assistant", "content": "he"}},
            {"delta": {"content": "llo"}, "finish_reason": "stop"},
        )
    )
    wire = Wire(body=events + b"data: [DONE]\n\n", headers={"content-type": "text/event-stream"})
    answer = succeeded(call(adapter_for("xai", wire), stream=True))
    assert answer.data["choices"][0]["message"]["content"] == "hello"
    assert orjson.loads(answer.body) == answer.data


def test_an_error_event_in_a_stream_is_classified() -> None:
    events = b'data: {"error":{"message":"Overloaded","type":"overloaded_error"}}\n\n'
    wire = Wire(body=events, headers={"content-type": "text/event-stream"})
    assert failed(call(adapter_for("openrouter", wire), stream=True)).kind is FailureKind.OVERLOADED


def test_a_stream_that_breaks_off_is_a_bad_answer() -> None:
    events = b'data: {"choices":[{"index":0,"delta":{"content":"he"}}]}\n\n'
    wire = Wire(body=events, headers={"content-type": "text/event-stream"})
    assert failed(call(adapter_for("xai", wire), stream=True)).kind is FailureKind.BAD_ANSWER


def test_a_budget_failure_names_its_scope() -> None:
    """Only the lines that draw on the same budget wait."""
    wire = Wire(402, {"message": "over", "budget": {"name": "b", "period_resets_at": "2026-12-01T00:00:00Z"}})
    adapter = adapter_for("modelux", wire)
    assert failed(call(adapter, b'{"mlx:end_user":"alice"}')).scope == "end_user:alice"
    assert failed(call(adapter, b'{"mlx:tags":{"team":"x","job":"y"}}')).scope == "tags:job=y,team=x"
    assert failed(call(adapter, b"{}")).scope is None


def test_rate_headers_and_request_ids_are_handed_on() -> None:
    told = {"x-ratelimit-remaining-requests": "7", "x-request-id": "req_9", "retry-after": "3"}
    answer = succeeded(call(adapter_for("mx4", Wire(headers=told))))
    assert answer.request_id == "req_9"
    assert answer.rate_headers == {"x-ratelimit-remaining-requests": "7", "retry-after": "3"}
    failure = failed(call(adapter_for("mx4", Wire(429, {}, told))))
    assert (failure.request_id, failure.retry_after_s) == ("req_9", 3.0)
