"""The short way: an answer that is passed on as the provider sent it.

Owns: whether a body holds what a plain line needs, and whether a strict client would miss something in it.
May not touch: schemas, several choices; those take the long way in answering.py.
"""

from __future__ import annotations

from typing import Any

from batch.completions.judge import is_silent
from batch.completions.rules import CHAT, EMBEDDINGS, RESPONSES

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
    return type(message) is dict and not is_silent(choice)


def is_complete(data: dict[str, Any], choice: dict[str, Any]) -> bool:
    """True when a whole chat completion has every member that OpenAI always sends."""
    message = choice["message"]
    return (
        message.get("role") == "assistant"
        and "content" in message
        and "refusal" in message
        and "logprobs" in choice
        and bool(choice.get("finish_reason"))
        and choice.get("index") == 0
        and data.get("object") == "chat.completion"
        and bool(data.get("id"))
        and "created" in data
        and bool(data.get("model"))
    )
