"""The bare client loop: the product's own HTTP transport and nothing else, as the floor to compare with.

Owns: a program that reads a batch file, posts every body, keeps nothing: python -m benchmarks.bare IN URL KIND.
Prints one JSON object: requests, seconds, cpu_s. The scripts in peers/ print the same.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from pathlib import Path

import orjson
import uvloop

from batch.providers.catalog import Catalog
from batch.providers.transport import UpstreamRequest, make_transport
from batch.settings import load_settings


async def post_all(bodies: list[bytes], base_url: str, kind: str, at_once: int) -> int:
    """How many were answered with 200."""
    settings = load_settings(environ={}, providers={"bench": {"base_url": base_url, "models": ["m"]}})
    provider = Catalog.from_settings(settings, environ={}).providers["bench"]
    transport = make_transport(kind, provider, settings)  # type: ignore[arg-type]
    headers = {"content-type": "application/json", "authorization": "Bearer bench"}
    good, waiting = 0, iter(bodies)

    async def loop() -> None:
        nonlocal good
        for body in waiting:
            request = UpstreamRequest(base_url + "/chat/completions", headers, body, 60.0)
            answer = await transport.send(request)
            good += answer.status == 200

    await asyncio.gather(*(loop() for _ in range(at_once)))
    await transport.close()
    return good


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("input", type=Path)
    parser.add_argument("base_url")
    parser.add_argument("kind", choices=["direct", "httpx"])
    parser.add_argument("--at-once", type=int, default=128)
    given = parser.parse_args()
    with given.input.open("rb") as lines:
        bodies = [orjson.dumps(orjson.loads(line)["body"]) for line in lines]
    began, cpu = time.perf_counter(), time.process_time()
    good = uvloop.run(post_all(bodies, given.base_url, given.kind, given.at_once))
    if good != len(bodies):
        raise SystemExit(f"{len(bodies) - good} of {len(bodies)} failed")
    told = {"requests": good, "seconds": time.perf_counter() - began, "cpu_s": time.process_time() - cpu}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
