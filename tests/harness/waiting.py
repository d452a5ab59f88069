"""Waiting without sleeping blindly: poll a predicate until it holds, or fail with what was seen last."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

PATIENCE = 4  # a busy machine is not a fault: bounds are for what never comes, and nothing asserts on time


def eventually(predicate: Callable[[], T], timeout_s: float = 10.0, every_s: float = 0.02, what: str = "") -> T:
    """The predicate's first truthy value. AssertionError with its last value after PATIENCE × `timeout_s`."""
    deadline = time.monotonic() + timeout_s * PATIENCE
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s * PATIENCE:g} s: {what or predicate!r}; last seen: {value!r}")
        time.sleep(every_s)
