"""LiteLLM's batch_completion: a list of messages, a thread pool."""

import argparse
import json
import os
import time
from pathlib import Path

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # no download at import
import litellm


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("input")
    parser.add_argument("output")
    parser.add_argument("base_url")
    parser.add_argument("--at-once", type=int, default=128)
    given = parser.parse_args()
    with Path(given.input).open() as source:
        requests = [json.loads(line) for line in source]
    began, cpu = time.perf_counter(), time.process_time()
    answers = litellm.batch_completion(
        model="openai/" + requests[0]["body"]["model"],
        messages=[request["body"]["messages"] for request in requests],
        max_tokens=requests[0]["body"]["max_tokens"],
        api_base=given.base_url,
        api_key="bench",
        max_workers=given.at_once,
    )
    good = [answer for answer in answers if not isinstance(answer, Exception)]
    with Path(given.output).open("w") as sink:
        for request, answer in zip(requests, answers, strict=True):
            sink.write(json.dumps({"custom_id": request["custom_id"], "response": answer.model_dump()}) + "\n")
    seconds, cpu_s = time.perf_counter() - began, time.process_time() - cpu
    print(json.dumps({"requests": len(good), "seconds": seconds, "cpu_s": cpu_s}))


main()
