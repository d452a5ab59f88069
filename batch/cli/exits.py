"""Exit codes of the command line, in one list.

Owns: the numbers and the exception that carries one through a verb. Scripts rely on these.
"""

from __future__ import annotations

OK = 0
LINES_FAILED = 1  # finished, with error lines
BAD_INPUT = 2  # bad input or configuration; nothing was sent
WAITS_FOR_PERSON = 3  # paused longer than --max-pause; state kept
BUDGET_REACHED = 4  # state kept; raise --budget and run again
INTERRUPTED = 130  # ^C; state kept


class Leave(Exception):
    """End the command with this exit code; everything worth saying has been said."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code
