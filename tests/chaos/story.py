"""What users do meanwhile, and what they were told: every acknowledged operation is remembered."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import openai

T = TypeVar("T")


@dataclass
class Told:
    """One batch and what the server acknowledged about it."""

    file_id: str
    sha256: str
    custom_ids: list[str]
    batch_id: str = ""
    parent: str | None = None
    acknowledged: list[str] = field(default_factory=list)  # "cancelled", "paused", "resumed"


class Users:
    """Submit, cancel, pause, resume and retry at random; an operation counts only when it was answered."""

    def __init__(self, base_url: str, chance: random.Random, lines: tuple[int, int]) -> None:
        self.client = openai.OpenAI(base_url=base_url, api_key="none", max_retries=4, timeout=20)
        self._chance = chance
        self._lines = lines
        self._number = 0
        self.batches: list[Told] = []
        self.refused = 0

    def submit(self, window: str = "24h") -> None:
        self._number += 1
        ids = [f"b{self._number}-{line}" for line in range(self._chance.randint(*self._lines))]
        data = b"".join(_line(custom_id, self._chance) for custom_id in ids)
        uploaded = self._try(lambda: self.client.files.create(file=("in.jsonl", data), purpose="batch"))
        if uploaded is None:
            return
        told = Told(uploaded.id, hashlib.sha256(data).hexdigest(), ids)
        key = f"key-{self._number}"
        created = self._try(
            lambda: self.client.batches.create(
                input_file_id=uploaded.id, endpoint="/v1/chat/completions", completion_window=window,  # type: ignore[arg-type]
                extra_headers={"Idempotency-Key": key},
            )
        )  # fmt: skip
        if created is not None:
            told.batch_id = created.id
            self.batches.append(told)

    def cancel_one(self) -> None:
        if told := self._pick():
            answer = self._try(lambda: self.client.batches.cancel(told.batch_id))
            if answer is not None and answer.status in {"cancelling", "cancelled"}:
                told.acknowledged.append("cancelled")

    def pause_and_resume_one(self) -> None:
        if told := self._pick():
            for verb in ("pause", "resume"):
                path = f"/batches/{told.batch_id}/{verb}"
                done = self._try(lambda path=path: self.client.post(path, cast_to=object, body={}))
                if done is not None:
                    told.acknowledged.append(f"{verb}d")

    def retry_one(self) -> None:
        """A child batch of a finished one's failed lines, when it has any."""
        for told in self._chance.sample(self.batches, len(self.batches)):
            seen = self._try(lambda told=told: self.client.batches.retrieve(told.batch_id))
            if seen is None or seen.status not in {"completed", "cancelled", "expired"} or not seen.error_file_id:
                continue
            made: Any = self._try(
                lambda told=told: self.client.post(f"/batches/{told.batch_id}/retry", cast_to=dict, body={})
            )
            if made is not None:
                ids = [json.loads(row)["custom_id"] for row in self.read(seen.error_file_id).splitlines()]
                self.batches.append(Told(made["input_file_id"], "", ids, made["id"], parent=told.batch_id))
            return

    def read(self, file_id: str) -> bytes:
        return self.client.files.content(file_id).read()

    def resume_all(self) -> None:
        """At the end nobody stays paused."""
        for told in self.batches:
            self._try(
                lambda told=told: self.client.post(f"/batches/{told.batch_id}/resume", cast_to=object, body={})
            )

    def _pick(self) -> Told | None:
        return self._chance.choice(self.batches) if self.batches else None

    def _try(self, call: Callable[[], T]) -> T | None:
        """An operation under faults: unanswered or refused is not acknowledged."""
        try:
            return call()
        except openai.OpenAIError:
            self.refused += 1
            return None


def _line(custom_id: str, chance: random.Random) -> bytes:
    body: dict[str, Any] = {
        "model": "sim-1",
        "mlx:end_user": custom_id,
        "messages": [{"role": "user", "content": f"Say it of {custom_id}. " + "word " * chance.randint(0, 40)}],
        "max_tokens": 32,
    }
    row = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}
    return json.dumps(row).encode() + b"\n"
