"""A parallel processor in the style of OpenAI's cookbook: one loop that tracks capacity and sleeps 1 ms a turn.

Written for this comparison after the published pattern: requests and tokens are counted down from per-minute
capacities, each call is a task of its own, each answer opens the output file and appends to it, failures
go back to a retry queue, a rate-limit error pauses everything for 15 s.
"""

import argparse
import asyncio
import json
import time
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

PAUSE_AFTER_RATE_LIMIT_S = 15
SLEEP_PER_LOOP_S = 0.001


@dataclass
class Status:
    started: int = 0
    in_progress: int = 0
    succeeded: int = 0
    failed: int = 0
    last_rate_limit: float = 0.0


@dataclass
class Request:
    task_id: int
    body: dict
    tokens: int
    attempts_left: int
    metadata: dict
    results: list = field(default_factory=list)

    async def call(self, session, url, headers, retries, output, status):
        error = None
        try:
            async with session.post(url=url, headers=headers, json=self.body) as response:
                answer = await response.json()
            if "error" in answer:
                error = answer
                if "rate limit" in answer["error"].get("message", "").lower():
                    status.last_rate_limit = time.time()
        except Exception as failure:
            error = failure
        if error is None:
            append([self.body, answer, self.metadata], output)
            status.succeeded += 1
            status.in_progress -= 1
            return
        self.results.append(error)
        if self.attempts_left:
            retries.put_nowait(self)
        else:
            append([self.body, [str(e) for e in self.results], self.metadata], output)
            status.failed += 1
            status.in_progress -= 1


def append(data, path):
    with Path(path).open("a") as sink:
        sink.write(json.dumps(data) + "\n")


async def process(source, output, base_url, per_minute, tokens_per_minute):
    retries, status, calls = asyncio.Queue(), Status(), set()
    requests_left, tokens_left = per_minute, tokens_per_minute
    updated, upcoming, more = time.time(), None, True
    url, headers = base_url + "/chat/completions", {"Authorization": "Bearer bench"}
    async with aiohttp.ClientSession() as session:
        while True:
            if upcoming is None:
                if not retries.empty():
                    upcoming = retries.get_nowait()
                elif more:
                    line = next(source, None)
                    if line is None:
                        more = False
                    else:
                        data = json.loads(line)
                        size = sum(len(m["content"]) for m in data["body"]["messages"]) // 4
                        tokens = size + data["body"].get("max_tokens", 15)
                        upcoming = Request(status.started, data["body"], tokens, 5, {"id": data["custom_id"]})
                        status.started += 1
                        status.in_progress += 1
            now = time.time()
            passed = now - updated
            requests_left = min(requests_left + per_minute * passed / 60, per_minute)
            tokens_left = min(tokens_left + tokens_per_minute * passed / 60, tokens_per_minute)
            updated = now
            if upcoming and requests_left >= 1 and tokens_left >= upcoming.tokens:
                requests_left -= 1
                tokens_left -= upcoming.tokens
                upcoming.attempts_left -= 1
                call = asyncio.create_task(upcoming.call(session, url, headers, retries, output, status))
                calls.add(call)
                call.add_done_callback(calls.discard)
                upcoming = None
            if status.in_progress == 0 and not more:
                break
            await asyncio.sleep(SLEEP_PER_LOOP_S)
            since = time.time() - status.last_rate_limit
            if since < PAUSE_AFTER_RATE_LIMIT_S:
                await asyncio.sleep(PAUSE_AFTER_RATE_LIMIT_S - since)
    return status.succeeded


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("input")
    parser.add_argument("output")
    parser.add_argument("base_url")
    parser.add_argument("--at-once", type=int, default=0, help="not used: the pattern has no such limit")
    parser.add_argument("--rpm", type=float, default=1e9)
    parser.add_argument("--tpm", type=float, default=1e12)
    given = parser.parse_args()
    began, cpu = time.perf_counter(), time.process_time()
    with Path(given.input).open() as source:
        done = asyncio.run(process(iter(source), given.output, given.base_url, given.rpm, given.tpm))
    print(json.dumps({"requests": done, "seconds": time.perf_counter() - began, "cpu_s": time.process_time() - cpu}))


main()
