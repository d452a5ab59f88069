"""What an engine does by its own offline loop: PROGRAM'S-PYTHON benchmarks/offline.py ENGINE MODEL SLOTS < requests.

Owns: one timed run inside the engine's own environment, of which this file imports nothing else. Standard input
is a JSON list of chat-completion bodies of one max_tokens; the last row of standard output {"seconds", "tokens"}.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

Chats = list[list[dict[str, Any]]]


def main() -> None:
    engine, model, slots = sys.argv[1], sys.argv[2], int(sys.argv[3])
    bodies = json.load(sys.stdin)
    run = {"vllm": _vllm, "transformers": _transformers}[engine]
    seconds, tokens = run(model, slots, [body["messages"] for body in bodies], bodies[0]["max_tokens"])
    print(json.dumps({"seconds": seconds, "tokens": tokens}))


def _vllm(model: str, slots: int, chats: Chats, max_tokens: int) -> tuple[float, int]:
    from vllm import LLM, SamplingParams  # type: ignore[import-not-found]

    engine = LLM(model=model, max_num_seqs=slots, enable_prefix_caching=True)
    sampling = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
    engine.chat(chats[:slots], sampling, use_tqdm=False)  # kernels are compiled and graphs captured
    began = time.perf_counter()
    answers = engine.chat(chats, sampling, use_tqdm=False)
    return time.perf_counter() - began, sum(len(answer.outputs[0].token_ids) for answer in answers)


def _transformers(model: str, slots: int, chats: Chats, max_tokens: int) -> tuple[float, int]:
    import torch  # type: ignore[import-not-found]
    import transformers as t  # type: ignore[import-not-found]

    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = t.AutoTokenizer.from_pretrained(model)
    loaded = t.AutoModelForCausalLM.from_pretrained(model, dtype="bfloat16").to(device)
    prompts = [tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"] for chat in chats]
    sampling = t.GenerationConfig(max_new_tokens=max_tokens, do_sample=False, pad_token_id=0, eos_token_id=-1)
    small = t.ContinuousBatchingConfig(page_size=64, num_blocks=64 * slots, max_batch_tokens=64 * slots)
    batching = small if device == "cpu" else None  # a card's memory says it
    loaded.generate_batch(prompts[:slots], sampling, batching)
    began = time.perf_counter()
    answers = loaded.generate_batch(prompts, sampling, batching)
    return time.perf_counter() - began, sum(len(answer.generated_tokens) for answer in answers.values())


if __name__ == "__main__":
    main()
