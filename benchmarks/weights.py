"""A model to measure an engine with, where none is at hand and nothing can be fetched: random weights.

python -m benchmarks.weights DIR [--size toy|1b]: a Llama of random bfloat16 numbers with a byte-level tokenizer,
as vLLM, SGLang and transformers load it. Owns: its shapes and its files; needs nothing but Python. What it
says is noise, at the price of a real model of its size; it never stops by itself.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import string
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

Shape = tuple[int, ...]
SIZES = {  # hidden, layers, heads, key heads, inner
    "toy": (64, 2, 4, 2, 128),
    "1b": (2048, 16, 32, 8, 8192),
}
CONTEXT_TOKENS = 8192
_ONE = b"\x80\x3f"  # 1.0 as bfloat16
_SMALL = bytes(0x3C | byte & 0x80 for byte in range(256))  # upper bytes: either sign, 0.008 to 0.031
_BLOCK = 1 << 24
_TEMPLATE = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.weights", description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--size", choices=sorted(SIZES), default="1b")
    given = parser.parse_args(arguments)
    count = make_model(given.directory, given.size)
    print(f"{given.directory}: {count / 1e6:,.1f} M parameters")
    return 0


def make_model(directory: Path, size: str) -> int:
    """Write it, unless it stands there already; the number of its parameters."""
    directory.mkdir(parents=True, exist_ok=True)
    vocabulary, merges = _vocabulary()
    tensors = dict(_tensors(size, len(vocabulary)))
    if not (directory / "config.json").exists():
        with (directory / "model.safetensors").open("wb") as file:
            _write_tensors(file, tensors)
        _write(directory / "tokenizer.json", _tokenizer(vocabulary, merges))
        _write(directory / "tokenizer_config.json", {
            "tokenizer_class": "PreTrainedTokenizerFast", "chat_template": _TEMPLATE, "pad_token": "<pad>",
            "model_max_length": CONTEXT_TOKENS,
        })  # fmt: skip
        _write(directory / "generation_config.json", {"pad_token_id": 0})
        _write(directory / "config.json", _config(size, len(vocabulary)))
    return sum(math.prod(shape) for shape in tensors.values())


def _config(size: str, words: int) -> dict[str, Any]:
    hidden, layers, heads, key_heads, inner = SIZES[size]
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16", "vocab_size": words,
        "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": key_heads, "intermediate_size": inner, "max_position_embeddings": CONTEXT_TOKENS,
        "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 500_000.0, "tie_word_embeddings": True,
        "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0,
    }  # fmt: skip


def _tensors(size: str, words: int) -> Iterator[tuple[str, Shape]]:
    hidden, layers, heads, key_heads, inner = SIZES[size]
    keys = hidden // heads * key_heads
    yield "model.embed_tokens.weight", (words, hidden)
    for number in range(layers):
        layer = f"model.layers.{number}."
        for name, shape in {
            "self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden), "self_attn.o_proj": (hidden, hidden),
            "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden), "mlp.down_proj": (hidden, inner),
            "input_layernorm": (hidden,), "post_attention_layernorm": (hidden,),
        }.items():  # fmt: skip
            yield f"{layer}{name}.weight", shape
    yield "model.norm.weight", (hidden,)


def _write_tensors(file: BinaryIO, tensors: dict[str, Shape]) -> None:
    """The safetensors format: the length of a JSON header, the header, the numbers one after the other."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in tensors.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    file.write(len(text).to_bytes(8, "little") + text)
    chance = random.Random(1)
    for shape in tensors.values():
        size = 2 * math.prod(shape)
        if len(shape) == 1:  # norms
            file.write(_ONE * (size // 2))
            continue
        for start in range(0, size, _BLOCK):
            numbers = bytearray(chance.randbytes(min(_BLOCK, size - start)))
            numbers[1::2] = numbers[1::2].translate(_SMALL)
            file.write(numbers)


def _vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Every byte, and two and three letters in a row with or without a space before: 19,000 tokens."""
    letters, starts = string.ascii_lowercase, "Ġ" + string.ascii_lowercase
    merges = [*itertools.product(starts, letters)]
    merges += [(first + second, third) for (first, second), third in itertools.product(merges[:], letters)]
    words = ["<pad>", *_byte_characters(), *(first + second for first, second in merges)]
    return {word: number for number, word in enumerate(words)}, merges


def _byte_characters() -> list[str]:
    """The visible stand-in of each byte in byte-level tokenizers."""
    visible = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = iter(range(256, 512))
    return [chr(byte if byte in visible else next(hidden)) for byte in range(256)]


def _tokenizer(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> dict[str, Any]:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    pad = {"id": 0, "content": "<pad>", "special": True, "single_word": False, "lstrip": False, "rstrip": False,
           "normalized": False}  # fmt: skip
    return {
        "version": "1.0", "added_tokens": [pad], "normalizer": None, "pre_tokenizer": byte_level,
        "post_processor": None, "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": merges},
    }  # fmt: skip


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
