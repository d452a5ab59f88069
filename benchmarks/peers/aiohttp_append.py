"""A good hand-written script: aiohttp, a pool of tasks, each answer appended to a file. No limits, retries, resume."""

import argparse
import asyncio
import json
import time
from pathlib import Path

import aiohttp
import orjson
import uvloop


async def process(source, sink, base_url, at_once):
    done = 0
    url = base_url + "/chat/completions"
    headers = {"authorization": "Bearer bench", "content-type": "application/json"}
    connector = aiohttp.TCPConnector(limit=at_once)
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:

        async def work():
            nonlocal done
            for line in source:
                request = orjson.loads(line)
                async with session.post(url, data=orjson.dumps(request["body"])) as response:
                    answer = orjson.loads(await response.read())
                sink.write(orjson.dumps({"custom_id": request["custom_id"], "response": answer}) + b"\n")
                done += 1

        await asyncio.gather(*(work() for _ in range(at_once)))
    return done


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("input")
    parser.add_argument("output")
    parser.add_argument("base_url")
    parser.add_argument("--at-once", type=int, default=128)
    given = parser.parse_args()
    began, cpu = time.perf_counter(), time.process_time()
    with Path(given.input).open("rb") as source, Path(given.output).open("ab") as sink:
        done = uvloop.run(process(source, sink, given.base_url, given.at_once))
    print(json.dumps({"requests": done, "seconds": time.perf_counter() - began, "cpu_s": time.process_time() - cpu}))


main()
