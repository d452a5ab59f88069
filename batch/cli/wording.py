"""How numbers, durations and times are worded for people. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime


def count(number: int) -> str:
    """12480 → "12,480"."""
    return f"{number:,}"


def amount(number: float) -> str:
    """Rounded for reading: 950, 5.9 k, 5.9 M, 1.2 G; small numbers stay exact."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size * 9.995 or (unit != "k" and number >= size):
            scaled = number / size
            return f"{scaled:,.0f} {unit}" if scaled >= 100 else f"{scaled:.1f} {unit}"
    return f"{number:,.0f}"


def rate(per_second: float) -> str:
    """Lines a minute or a second, whichever reads better."""
    if per_second >= 20:
        return f"{per_second:,.0f}/s"
    per_minute = per_second * 60
    return f"{per_minute:,.0f}/min" if per_minute >= 100 else f"{per_minute:.1f}/min"


def dollars(usd: float) -> str:
    return f"${usd:,.2f}" if usd >= 0.1 or usd == 0 else f"${usd:.4f}"


def size(size_bytes: int) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.1f} {unit}"
    return f"{size_bytes} bytes"


def clock_time(unix_s: float) -> str:
    """Local hours and minutes, as in "02:14"."""
    return datetime.fromtimestamp(unix_s, UTC).astimezone().strftime("%H:%M")


def date_time(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).astimezone().strftime("%Y-%m-%d %H:%M")


def plural(number: int, noun: str) -> str:
    return f"{count(number)} {noun}" + ("" if number == 1 else "s")


def listing(numbers: Sequence[object], *, limit: int = 5) -> str:
    """Line numbers or names for a sentence: "88, 1203", or "88, 1203, 1300 and 12 more"."""
    shown = ", ".join(str(number) for number in numbers[:limit])
    more = len(numbers) - limit
    return f"{shown} and {count(more)} more" if more > 0 else shown


def key_hint(missing: str) -> str:
    """The mend for Provider.missing_key: a variable's name or a file's path."""
    return f"write it to {missing}" if "/" in missing else f"set {missing}"
