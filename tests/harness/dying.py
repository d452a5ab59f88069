"""Kill −9 at a seam: an operation runs in a process of its own, which dies at a chosen call.

`python -m tests.harness.dying` is that process. What it leaves behind is what a crash leaves: nothing is cleaned up.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from batch.operations.world import World
from tests.harness.servers import ROOT, clean_environment, python


def die_at(world: World, seam: str, operation: str, *arguments: Any, call: int = 1) -> None:
    """Run `operation` ("module:function", given a world first) until the `call`-th call of `seam` is about to begin.

    Both worlds share the database and the files. AssertionError when the process ended otherwise.
    """
    plan = {
        "database_url": world.settings.resolved_database_url, "directory": str(world.settings.resolved_data_dir),
        "seam": seam, "call": call, "operation": operation, "arguments": arguments,
    }  # fmt: skip
    done = subprocess.run(
        python("-m", "tests.harness.dying", json.dumps(plan)),
        cwd=ROOT, env=clean_environment(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, f"{seam} was not reached: {done.returncode} {done.stderr[-2000:]}"


def _main() -> None:
    from tests.harness.worlds import make_world

    plan = json.loads(sys.argv[1])
    module, name = _find(plan["seam"])
    setattr(module, name, _deadly(getattr(module, name), plan["call"]))
    operations, verb = _find(plan["operation"])
    getattr(operations, verb)(make_world(plan["database_url"], Path(plan["directory"])), *plan["arguments"])


def _find(place: str) -> tuple[Any, str]:
    """ "package.module:Class.method" → what holds it, and its name."""
    module, _, path = place.partition(":")
    *owners, name = path.split(".")
    holder: Any = importlib.import_module(module)
    for owner in owners:
        holder = getattr(holder, owner)
    return holder, name


def _deadly(function: Callable[..., Any], call: int) -> Callable[..., Any]:
    left = call

    def dying(*arguments: Any, **named: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **named)

    return dying


if __name__ == "__main__":
    _main()
