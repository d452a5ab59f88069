"""Asking again for an answer that was wrong, with what was wrong about it.

Owns: Reask and the messages that carry it: the original prompt, the last bad answer, at most five errors.
Earlier attempts are left out. A wrong tool call is answered under its own tool_call_id. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from batch.completions.cards import SchemaMode
from batch.completions.ladder import NATIVE_RUNGS, Shape, instruction

MAX_ANSWER_CHARACTERS = 60_000


@dataclass(slots=True)
class Reask:
    """The bad answer's message as received, and the errors found in it."""

    message: dict[str, Any]
    errors: list[str]


def with_reask(
    messages: list[Any], reask: Reask, shape: Shape | None, rung: SchemaMode | None
) -> list[Any]:
    """`messages` (already with the rung's instruction) and the correction after them."""
    listed = "\n".join(f"- {error}" for error in reask.errors[:5])
    tool_calls = reask.message.get("tool_calls")
    if tool_calls and rung != "tool":
        text = f"Not run. The arguments are not valid:\n{listed}\nCall again with these errors fixed."
        corrections = [{"role": "tool", "tool_call_id": call.get("id"), "content": text} for call in tool_calls]
        return [*messages, {"role": "assistant", "content": None, "tool_calls": tool_calls}, *corrections]
    text = _answer_text(reask.message, rung)
    correction = f"Your answer is not valid:\n{listed}\nGive the whole answer again with these errors fixed."
    if shape is not None and rung in NATIVE_RUNGS:
        # Only the response format has shown the schema so far, and it may have been ignored.
        correction += f" {instruction(shape)}"
    return [
        *messages,
        {"role": "assistant", "content": text or "(no answer)"},
        {"role": "user", "content": correction},
    ]


def _answer_text(message: dict[str, Any], rung: SchemaMode | None) -> str:
    text = message.get("content")
    if rung == "tool" and message.get("tool_calls"):
        text = (message["tool_calls"][0].get("function") or {}).get("arguments")
    return text[:MAX_ANSWER_CHARACTERS] if isinstance(text, str) else ""
