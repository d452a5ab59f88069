"""Public identifiers: prefixed text outside, bigint inside.

Owns: the shape of each id (CONTRACT shapes: file- + 22 base62, batch_ + 32 hex, ...).
"""

from __future__ import annotations

import hashlib

from batch.clock import SYSTEM_CLOCK, Clock

_BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def new_file_id(clock: Clock = SYSTEM_CLOCK) -> str:
    number = int.from_bytes(clock.randbytes(17), "big")
    digits = []
    for _ in range(22):
        number, digit = divmod(number, 62)
        digits.append(_BASE62[digit])
    return "file-" + "".join(digits)


def new_id(prefix: str, clock: Clock = SYSTEM_CLOCK) -> str:
    """`prefix` + 32 hex digits; prefixes: batch_, upload_, part_, evt_, wh_, proj_, key_, req_."""
    return prefix + clock.randbytes(16).hex()


def line_id(batch_public_id: str, line: int) -> str:
    """The id of an output line: the same for the same line, however often files are written."""
    digest = hashlib.blake2b(f"{batch_public_id}:{line}".encode(), digest_size=16)
    return "batch_req_" + digest.hexdigest()
