"""The short way: an answer that is passed on as the provider sent it.

Owns: whether a body holds what a plain line needs, and its bytes, mended only where a strict client would
miss something. May not touch: schemas, several choices; those take the long way in answering.py.
"""

from __future__ import annotations

from typing import Any

import orjson

from batch.completions.merge import merge_body, record_call
from batch.completions.normalise import is_normal, mend_choice, mend_usage
from batch.completions.plan import Plan
from batch.completions.rules import CHAT, EMBEDDINGS, RESPONSES
from batch.domain.outcome import Success

_LIST_OF = {EMBEDDINGS: "data", RESPONSES: "output"}


def is_whole(data: dict[str, Any], endpoint: str) -> bool:
    """True when the body holds its one choice (or its embeddings, or its output)."""
    if endpoint != CHAT:
        return isinstance(data.get(_LIST_OF[endpoint]), list)
    given = data.get("choices")
    if type(given) is not list or len(given) != 1:
        return False
    choice = given[0]
    message = choice.get("message") if type(choice) is dict else None
    return type(message) is dict and (message.get("content") is not None or _says_otherwise(choice, message))


def whole_body(success: Success, plan: Plan) -> bytes:
    """The provider's own bytes where nothing is missing from them, else the same object completed."""
    if plan.endpoint != CHAT:
        return success.body
    data, choice = success.data, success.data["choices"][0]
    usage = mend_usage(data)
    if (
        is_normal(choice)
        and choice.get("index") == 0
        and usage is data.get("usage")
        and data.get("object") == "chat.completion"
        and data.get("id")
        and "created" in data
        and data.get("model")
    ):
        return success.body
    record = record_call(success, usage, plan.card.provider, (0,), reask=False, seed=None)
    return orjson.dumps(merge_body([record], {0: 0}, [mend_choice(choice, 0)]))


def _says_otherwise(choice: dict[str, Any], message: dict[str, Any]) -> bool:
    return any(message.get(key) for key in ("tool_calls", "refusal", "function_call", "audio")) or choice.get(
        "finish_reason"
    ) in ("length", "content_filter")
