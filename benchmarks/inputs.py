"""Input files of a known shape.

Owns: writing JSONL batches whose lines have a given size. The same bytes for the same arguments.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

MODEL = "bench-model"
_WORDS = ("summary", "of", "the", "quarter", "shows", "growth", "in", "every", "region", "but", "one")


def chat_file(path: Path, lines: int, line_bytes: int = 1600, model: str = MODEL, *, first: int = 1) -> Path:
    """`lines` chat-completion requests of about `line_bytes` each, custom_ids "r<number>", text unlike each other."""
    shell = len(_line(first, model, "")) + 8
    with path.open("wb", buffering=1 << 20) as sink:
        for number in range(first, first + lines):
            sink.write(_line(number, model, _text(number, max(8, line_bytes - shell))))
    return path


def _line(number: int, model: str, text: str) -> bytes:
    return (
        f'{{"custom_id": "r{number}", "method": "POST", "url": "/v1/chat/completions", "body": {{"model": "{model}", '
        f'"max_tokens": 64, "messages": [{{"role": "user", "content": "{text}"}}]}}}}\n'
    ).encode()


def _text(number: int, size: int) -> str:
    seed = hashlib.blake2b(b"%d" % number, digest_size=16).hexdigest()
    body = " ".join(_WORDS)
    return f"{number} {seed} {body * (1 + size // len(body))}"[:size]
