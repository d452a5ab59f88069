"""Which requests share the beginning of their prompt, as one number to sort by.

Owns: prefix_key. Requests with equal keys begin with the same text, apart from rare collisions, which cost
a little order and nothing else. May not touch: how the order is made (operations/slicing.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import orjson

BLOCKS = (512, 4096)  # characters of the last user turn that count when it is longer than them
_HEAD_BITS, _BLOCK_BITS = 31, 16


def prefix_key(body: Mapping[str, Any]) -> int:
    """63 bits: tools and messages before the last user turn, then that turn's first blocks.

    So requests over one long document stand together whether it is a message of its own or the
    beginning of the question's. 0: nothing worth sharing.
    """
    head, turn = _parts(body)
    key = _bits(orjson.dumps(head), _HEAD_BITS) if head else 0
    for size in BLOCKS:
        block = _bits(turn[:size].encode("utf-8", "surrogatepass"), _BLOCK_BITS) if len(turn) > size else 0
        key = key << _BLOCK_BITS | block
    return key


def _parts(body: Mapping[str, Any]) -> tuple[list[Any], str]:
    messages = body.get("messages", body.get("input"))
    if isinstance(messages, str):
        return [], messages
    messages = messages if isinstance(messages, list) else []
    turns = [i for i, message in enumerate(messages) if isinstance(message, dict) and message.get("role") == "user"]
    if not turns:
        return [], ""
    head = [*(body.get("tools") or ()), *messages[: turns[-1]]]
    return head, _text(messages[turns[-1]].get("content"))


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "".join(part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str))


def _bits(data: bytes, bits: int) -> int:
    """Never 0, which stands for nothing."""
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "big") % ((1 << bits) - 1) + 1
