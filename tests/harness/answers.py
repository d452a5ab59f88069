"""Answers of an imagined provider, and a loop that plays one line against them.

Owns: complete() and play(). For tests of batch/completions, which makes no calls itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from batch.completions.answering import Answering
from batch.completions.answers import Answer, LineFailure
from batch.completions.calls import Call
from batch.completions.cards import Card
from batch.completions.plan import PlanOptions, plan_line
from batch.completions.schema import SchemaCache
from batch.domain.outcome import Success

SCHEMAS = SchemaCache()
PROMPT = [{"role": "user", "content": "Name a number."}]


def complete(*contents: str | dict[str, Any] | None, finish: str = "stop", **body: Any) -> Success:
    """HTTP 200 with one choice per entry: a content, or a whole message."""
    choices = []
    for index, content in enumerate(contents):
        message = content if isinstance(content, dict) else {"role": "assistant", "content": content}
        message = {"role": "assistant", "content": None, "refusal": None, **message}
        choices.append({"index": index, "message": message, "logprobs": None, "finish_reason": finish})
    spoken = 5 * len(contents)
    usage = {"prompt_tokens": 10, "completion_tokens": spoken, "total_tokens": 10 + spoken}
    data = {"id": "chatcmpl-1", "object": "chat.completion", "created": 7, "model": "m-1", "choices": choices,
            "usage": usage, **body}  # fmt: skip
    raw = orjson.dumps(data)
    return Success(200, raw, orjson.loads(raw), latency_s=0.5, request_id="req-1")


@dataclass
class Played:
    """How a line went: its end, and the bodies that were sent."""

    end: Answer | LineFailure
    sent: list[dict[str, Any]] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    line: Answering | None = None

    @property
    def body(self) -> dict[str, Any]:
        assert isinstance(self.end, Answer), self.end
        return dict(orjson.loads(self.end.body))

    @property
    def contents(self) -> list[str | None]:
        return [choice["message"]["content"] for choice in self.body["choices"]]


Upstream = Sequence[Success] | Callable[[dict[str, Any]], Success | str]


def play(body: dict[str, Any], card: Card, upstream: Upstream, **options: Any) -> Played:
    """Run one line to its end. `upstream` is a list of answers in order, or a function of the sent body that
    returns an answer, or the name of a parameter that it refuses with 400."""
    endpoint = options.pop("endpoint", "/v1/chat/completions")
    raw = orjson.dumps(body)
    plan = plan_line(body, card, PlanOptions(**options), endpoint=endpoint)
    line = Answering(body, raw, plan, schemas=SCHEMAS)
    answers = iter(upstream) if not callable(upstream) else None
    played = Played(LineFailure("unfinished", "", {}), line=line)
    while not line.is_done:
        calls = line.next_calls()
        assert calls, "a line that is not done must have something to ask"
        for call in calls:
            sent = orjson.loads(call.body)
            played.sent.append(sent)
            played.calls.append(call)
            outcome = next(answers) if answers is not None else upstream(sent)  # type: ignore[operator]
            if isinstance(outcome, str):
                assert line.demote(call, outcome), f"400 on {outcome} stands"
            else:
                line.accept(call, outcome)
    played.end = line.finish()
    return played
