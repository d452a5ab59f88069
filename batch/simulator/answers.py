"""What the simulated model says: deterministic by (messages, seed, choice index).

Owns: digests, words, the simulator's own token count, logprobs, truncation and stop strings.
May not touch: HTTP and faults. One word of prose is one token; JSON and prompts count 4 bytes a token.
"""

from __future__ import annotations

import hashlib
from typing import Any

_SYLLABLES = ("ba", "ce", "di", "fo", "gu", "ha", "ke", "li", "mo", "nu", "pa", "re", "si", "to", "vu", "za")
WORDS = tuple(first + second for first in _SYLLABLES for second in _SYLLABLES)


def digest_of(content: bytes) -> bytes:
    """SHA-256: the identity of a request's messages, also shown in the log."""
    return hashlib.sha256(content).digest()


def choice_key(content: bytes, seed: int | None, index: int, salt: int = 0) -> bytes:
    """The source of everything that one choice says."""
    return hashlib.blake2b(b"%s|%d|%d|%d" % (content, -1 if seed is None else seed, index, salt)).digest()


def prose(key: bytes, tokens: int) -> str:
    """`tokens` words."""
    drawn = hashlib.shake_128(key).digest(tokens)
    return " ".join([WORDS[byte] for byte in drawn])


def tokens_in(text: str, *, is_json: bool) -> int:
    return (len(text) + 3) // 4 if is_json else text.count(" ") + 1 if text else 0


def cut_to(text: str, tokens: int, *, is_json: bool) -> str:
    """The first `tokens` of `text`."""
    return text[: tokens * 4] if is_json else " ".join(text.split(" ")[:tokens])


def cut_at_stop(text: str, stops: list[str]) -> str:
    """Everything before the first stop string; the same text where none occurs."""
    places = [place for stop in stops if stop and (place := text.find(stop)) >= 0]
    return text[: min(places)] if places else text


def prompt_tokens(messages_bytes: int) -> int:
    return 3 + messages_bytes // 4


def logprobs_of(text: str, top: int) -> dict[str, Any]:
    """OpenAI's shape: an entry per word, with `top` alternatives."""
    content = []
    for position, word in enumerate(text.split(" ") if text else ()):
        token = word if position == 0 else " " + word
        logprob = -0.01 * (1 + len(word))
        alternatives = [{"token": token, "logprob": logprob, "bytes": list(token.encode())}]
        alternatives += [
            {"token": f" alt{i}", "logprob": logprob - i, "bytes": list(f" alt{i}".encode())} for i in range(1, top)
        ]
        content.append({
            "token": token, "logprob": logprob, "bytes": list(token.encode()), "top_logprobs": alternatives[:top],
        })  # fmt: skip
    return {"content": content, "refusal": None}
