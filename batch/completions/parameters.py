"""The keys of a chat completion body: which OpenAI defines, and which values mean nothing.

Owns: OPENAI_KEYS, neutral values (leaving them out changes nothing), and what kind of parts a body holds.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from batch.completions.rules import RULES

OPENAI_KEYS = frozenset(RULES)

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "parallel_tool_calls": (True,),
    "modalities": (["text"],),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "stream": (False,),
    "temperature": (1,),
    "top_p": (1,),
    "tool_choice": ("auto",),
    "tools": ([],),
    "metadata": ({},),
    "verbosity": ("medium",),
    "n": (1,),
}

_PART_FEATURES = {"image_url": "vision", "input_audio": "audio", "file": "files"}


def is_neutral(key: str, value: Any) -> bool:
    """True when leaving the key out means the same by OpenAI's defaults."""
    return value is None or value in _NEUTRAL.get(key, ())


def part_features(messages: Iterable[Any]) -> set[str]:
    """The features ("vision", "audio", "files") that the content parts need."""
    found: set[str] = set()
    for message in messages:
        content = message.get("content") if type(message) is dict else None
        if type(content) is list:
            kinds = [part.get("type") for part in content if isinstance(part, dict)]
            found |= {_PART_FEATURES[kind] for kind in kinds if kind in _PART_FEATURES}
    return found
