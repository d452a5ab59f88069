"""The usual loop: AsyncOpenAI, a semaphore, gather; answers written at the end."""

import argparse
import asyncio
import json
import time
from pathlib import Path

from openai import AsyncOpenAI


async def process(source, output, base_url, at_once):
    client = AsyncOpenAI(base_url=base_url, api_key="bench", timeout=600)
    gate = asyncio.Semaphore(at_once)

    async def one(request):
        async with gate:
            answer = await client.chat.completions.create(**request["body"])
        return {"custom_id": request["custom_id"], "response": answer.model_dump()}

    rows = await asyncio.gather(*(one(json.loads(line)) for line in source))
    with Path(output).open("w") as sink:
        sink.writelines(json.dumps(row) + "\n" for row in rows)
    return len(rows)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("input")
    parser.add_argument("output")
    parser.add_argument("base_url")
    parser.add_argument("--at-once", type=int, default=128)
    given = parser.parse_args()
    began, cpu = time.perf_counter(), time.process_time()
    with Path(given.input).open() as source:
        done = asyncio.run(process(source, given.output, given.base_url, given.at_once))
    print(json.dumps({"requests": done, "seconds": time.perf_counter() - began, "cpu_s": time.process_time() - cpu}))


main()
