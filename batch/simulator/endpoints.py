"""Everything beside chat completions: models, health, gauges, embeddings, responses.

Owns: their paths and shapes. Embeddings and responses are read as chats, so that keys, limits, faults
and the log treat all three alike, and their answers are reshaped at the end.
May not touch: decisions; exchange.py makes them.
"""

from __future__ import annotations

import base64
import hashlib
import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import orjson

from batch.simulator.chat import Completion
from batch.simulator.checks import Asked
from batch.simulator.errors import error_body, invalid
from batch.simulator.protocol import Reply

if TYPE_CHECKING:
    from batch.simulator.exchange import Exchange

PATHS: Mapping[str, str] = {
    "/chat/completions": "chat",
    "/embeddings": "embeddings",
    "/responses": "responses",
    "/models": "models",
}
_DIMENSIONS = 16
_STARTED = 1_700_000_000


def get(kind: str | None, path: str, exchange: Exchange) -> Reply:
    """Any GET: models, health, gauges, one model, or 404."""
    person, slots = exchange.person, exchange.slots
    if kind == "models":
        names = [*person.models, *exchange.config.models]
        return _json({"object": "list", "data": [_model(name, person.name) for name in names]})
    if path in {"/health", "/ready", "/ping", "/"}:
        return _json({"status": "ok"})
    if path == "/metrics" and person.metrics is not None:
        text = _GAUGES[person.metrics].format(
            running=slots.running, waiting=slots.waiting, name=person.models[0],
            tokens=exchange.witness.completion_tokens, kv=slots.running / (slots.size or 1),
        )  # fmt: skip
        return Reply(200, text.encode(), content_type="text/plain; version=0.0.4")
    if path == "/version":
        return _json({"version": "simulated"})
    if name := unquote(path.partition("/models/")[2]):
        return _json(_model(name, person.name))
    problem = invalid(f"Not found: GET {path.split('?')[0][:200]}", status=404)
    return _json(error_body(person.errors, problem), 404)


def _model(name: str, owner: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": _STARTED, "owned_by": owner}


def _json(value: Any, status: int = 200) -> Reply:
    return Reply(status, orjson.dumps(value))


def as_chat(kind: str, body: Any) -> Any:
    """The chat that an embeddings or responses body amounts to; the body itself when it is no object."""
    if not isinstance(body, dict):
        return body
    if kind == "embeddings":
        return {
            "model": body.get("model"),
            "messages": [{"role": "user", "content": body["input"]}] if body.get("input") else [],
        }
    given = body.get("input")
    messages = list(given) if isinstance(given, list) else [{"role": "user", "content": given}] if given else []
    if body.get("instructions"):
        messages.insert(0, {"role": "system", "content": body["instructions"]})
    chat = {"model": body.get("model"), "messages": messages}
    for name, chat_name in (("temperature",) * 2, ("top_p",) * 2, ("max_output_tokens", "max_completion_tokens")):
        if body.get(name) is not None:
            chat[chat_name] = body[name]
    told = body.get("text")
    form = told.get("format") if isinstance(told, dict) else None
    if isinstance(form, dict) and form.get("type") == "json_schema":
        chat["response_format"] = {"type": "json_schema", "json_schema": {k: v for k, v in form.items() if k != "type"}}
    elif isinstance(form, dict):
        chat["response_format"] = form
    return chat


def reshape(kind: str, body: Any, asked: Asked, completion: Completion) -> None:
    """Turn the chat.completion into what `kind` answers; `body` is the body as received."""
    if kind == "embeddings":
        _to_embeddings(body, asked, completion)
    elif kind == "responses":
        _to_response(asked, completion)


def _to_embeddings(body: Mapping[str, Any], asked: Asked, completion: Completion) -> None:
    given = body["input"]
    texts = given if isinstance(given, list) and given and not isinstance(given[0], int) else [given]
    dimensions = body.get("dimensions") or _DIMENSIONS
    data = []
    for index, text in enumerate(texts):
        vector: Any = _embedding(orjson.dumps(text), int(dimensions))
        if body.get("encoding_format") == "base64":
            vector = base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
        data.append({"object": "embedding", "index": index, "embedding": vector})
    tokens = completion.input_tokens
    completion.output_tokens = 0
    completion.data = {
        "object": "list", "data": data, "model": asked.model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }  # fmt: skip


def _embedding(content: bytes, dimensions: int) -> list[float]:
    """A unit-ish vector, the same for the same text."""
    drawn = struct.unpack(f"{dimensions}h", hashlib.shake_128(content).digest(dimensions * 2))
    return [round(number * 1.7 / (dimensions**0.5 * 32768), 6) for number in drawn]


def _to_response(asked: Asked, completion: Completion) -> None:
    chat = completion.data
    output = []
    for choice in chat["choices"][:1]:
        message = choice["message"]
        part = {"type": "output_text", "text": message["content"], "annotations": []}
        if message.get("refusal"):
            part = {"type": "refusal", "refusal": message["refusal"]}
        output.append({
            "type": "message", "id": "msg" + chat["id"][8:], "role": "assistant", "status": "completed",
            "content": [part],
        })  # fmt: skip
    cut = any(choice["finish_reason"] == "length" for choice in chat["choices"])
    completion.data = {
        "id": "resp" + chat["id"][8:], "object": "response", "created_at": chat["created"], "model": asked.model,
        "status": "incomplete" if cut else "completed", "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None, "output": output,
        "usage": {
            "input_tokens": completion.input_tokens, "output_tokens": completion.output_tokens,
            "total_tokens": completion.input_tokens + completion.output_tokens,
        },
    }  # fmt: skip


_GAUGES = {
    "vllm": (
        'vllm:num_requests_running{{model_name="{name}"}} {running}.0\n'
        'vllm:num_requests_waiting{{model_name="{name}"}} {waiting}.0\n'
        'vllm:kv_cache_usage_perc{{model_name="{name}"}} {kv:.4f}\n'
        'vllm:generation_tokens_total{{model_name="{name}"}} {tokens}.0\n'
    ),
    "sglang": (
        'sglang:num_running_reqs{{model_name="{name}"}} {running}.0\n'
        'sglang:num_queue_reqs{{model_name="{name}"}} {waiting}.0\n'
        'sglang:token_usage{{model_name="{name}"}} {kv:.4f}\n'
    ),
    "llamacpp": "llamacpp:requests_processing {running}\nllamacpp:requests_deferred {waiting}\n",
    "tgi": "tgi_batch_current_size {running}\ntgi_queue_size {waiting}\n",
}
