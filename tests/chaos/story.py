"""What users do meanwhile, and what they were told: every acknowledged operation is remembered."""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx
import openai

T = TypeVar("T")
ENDED = {"completed", "cancelled", "expired", "failed"}
BUDGET_PER_LINE = 2.5e-5  # less than half of what a line costs: such a batch stops on its way


@dataclass
class Stop:
    """From `start` on nothing of the batch may be sent, until `end` (Unix seconds)."""

    why: str
    start: float
    end: float = float("inf")


@dataclass
class Told:
    """One batch and what the server acknowledged about it."""

    file_id: str
    sha256: str
    custom_ids: list[str]
    key: str = ""
    request: dict[str, Any] = field(default_factory=dict)
    batch_id: str = ""
    parent: str | None = None
    made_at: float = 0.0
    cancelled: bool = False
    stops: list[Stop] = field(default_factory=list)
    overrun_usd: float = 0.0  # spent beyond its budget before anybody raised it


class Users:
    """Submit, cancel, pause, resume, raise, retry at random; an operation counts only when it was answered."""

    def __init__(self, base_url: str, chance: random.Random, lines: tuple[int, int]) -> None:
        self.client = openai.OpenAI(base_url=base_url, api_key="none", max_retries=4, timeout=20)
        self._chance = chance
        self._lines = lines
        self._number = 0
        self.batches: list[Told] = []
        self._unanswered: list[Told] = []
        self.twins: list[str] = []
        self.done: dict[str, int] = {}  # acknowledged operations by name
        self.refused = 0

    def submit(self, window: str = "24h", budget: bool = False, times: int = 1) -> Told | None:
        self._number += 1
        ids = [f"b{self._number}-{line}" for line in range(times * self._chance.randint(*self._lines))]
        data = b"".join(_line(custom_id, self._chance) for custom_id in ids)
        uploaded = self._try("upload", lambda: self.client.files.create(file=("in.jsonl", data), purpose="batch"))
        if uploaded is None:
            return None
        request: dict[str, Any] = {"input_file_id": uploaded.id, "endpoint": "/v1/chat/completions"}
        request |= {"completion_window": window, "options": {}}
        if budget:
            request["options"]["budget_usd"] = round(BUDGET_PER_LINE * len(ids), 9)
        told = Told(uploaded.id, hashlib.sha256(data).hexdigest(), ids, f"key-{self._number}", request)
        self._create(told)
        return told if told.batch_id else None

    def submit_and_cancel(self) -> None:
        """A cancel that meets the batch while it is read, or at its very start."""
        if told := self.submit():
            self.cancel(told)

    def stop_midway(self) -> None:
        """A large batch, cancelled or paused while its lines are on their way."""
        told = self.submit(times=4)
        for _ in range(10 if told else 0):
            seen = self._try("look", lambda: self.client.batches.retrieve(told.batch_id))
            if seen is not None and seen.request_counts and seen.request_counts.completed:
                break
            time.sleep(0.3)
        if told:
            self._chance.choice([self.cancel, self.pause])(told)

    def create_again(self) -> None:
        """The same request under the same key must be the same batch."""
        if told := self._pick():
            answer = self._try("create again", lambda: self._post_batch(told)) if told.key else None
            if answer is not None and answer["id"] != told.batch_id:
                self.twins.append(f"{told.key}: {told.batch_id} and {answer['id']}")

    def cancel_one(self) -> None:
        if told := self._pick():
            self.cancel(told)

    def cancel(self, told: Told) -> None:
        answer = self._try("cancel", lambda: self.client.batches.cancel(told.batch_id))
        if answer is not None and answer.status in {"cancelling", "cancelled"} and not told.cancelled:
            told.cancelled = True
            told.stops.append(Stop("cancel", time.time()))

    def pause_one(self) -> None:
        if told := self._pick():
            self.pause(told)

    def pause(self, told: Told) -> None:
        if self._act(told, "pause") is not None:
            told.stops.append(Stop("pause", time.time()))

    def resume_one(self) -> None:
        paused = [told for told in self.batches if any(s.why == "pause" and s.end > time.time() for s in told.stops)]
        if paused:
            self._resume(self._chance.choice(paused))

    def raise_one(self) -> None:
        """Raise the budget of a batch that it has stopped."""
        told = self._pick()
        if told and told.request.get("options"):
            self._raise_budget(told)

    def retry_one(self) -> None:
        """A child batch of a finished one's failed lines, when it has any."""
        for told in self._chance.sample(self.batches, len(self.batches)):
            seen = self._try("look", lambda told=told: self.client.batches.retrieve(told.batch_id))
            if seen is None or seen.status not in {"completed", "cancelled", "expired"} or not seen.error_file_id:
                continue
            sent_at = time.time()
            path = f"/batches/{told.batch_id}/retry"
            made: Any = self._try("retry", lambda path=path: self.client.post(path, cast_to=dict, body={}))
            if made is not None and made["id"] not in {known.batch_id for known in self.batches}:
                self._adopt(made, sent_at)
            return

    def read(self, file_id: str) -> bytes:
        return self.client.files.content(file_id).read()

    def partial_results(self, batch_id: str) -> list[dict[str, Any]]:
        """Every recorded line, by the cursor."""
        rows: list[dict[str, Any]] = []
        after = "0"
        while True:
            path = f"/batches/{batch_id}/results?limit=1000&after={after}"
            answer = self.client.get(path, cast_to=httpx.Response)
            lines = [json.loads(line) for line in answer.content.split(b"\n") if line]
            rows += lines
            if not lines:
                return rows
            after = answer.headers["x-next-after"]

    def settle(self) -> None:
        """In peace: what was not answered is asked again, nobody stays paused, unannounced children are found."""
        for told in list(self._unanswered):
            self._create(told)
        for told in list(self.batches):
            self.settle_one(told)
        known = {told.batch_id for told in self.batches}
        for batch in self.client.batches.list(limit=100):
            if batch.id not in known:
                facts: Any = batch.model_dump()
                if facts["batchmill"]["retry_of"]:
                    self._adopt(facts, float(facts["created_at"]))
                else:
                    self.twins.append(f"{batch.id} was made, and nobody asked for it")

    def settle_one(self, told: Told) -> None:
        if told.request.get("options"):
            self._raise_budget(told)
        self._resume(told)

    def _create(self, told: Told) -> None:
        answer = self._try("create", lambda: self._post_batch(told))
        if answer is None:
            if told not in self._unanswered:
                self._unanswered.append(told)
            return
        if told in self._unanswered:
            self._unanswered.remove(told)
        told.batch_id, told.made_at = answer["id"], time.time()
        if told.request["completion_window"] != "24h":
            told.stops.append(Stop("expiry", float(answer["expires_at"]) + 1))
        self.batches.append(told)

    def _post_batch(self, told: Told) -> Any:
        options: Any = {"headers": {"Idempotency-Key": told.key}}
        return self.client.post("/batches", cast_to=dict, body=told.request, options=options)

    def _adopt(self, made: Any, made_at: float) -> None:
        """A retry's batch: the lines of its parent's error file."""
        parent = made["batchmill"]["retry_of"]
        error_file = self.client.batches.retrieve(parent).error_file_id
        ids = [json.loads(row)["custom_id"] for row in self.read(error_file).splitlines()] if error_file else []
        told = Told(made["input_file_id"], "", ids, request={"options": made["batchmill"]["options"]},
                    batch_id=made["id"], parent=parent, made_at=made_at)  # fmt: skip
        if made["completion_window"] != "24h":
            told.stops.append(Stop("expiry", float(made["expires_at"]) + 1))
        self.batches.append(told)

    def _raise_budget(self, told: Told) -> None:
        seen = self._try("look", lambda: self.client.batches.retrieve(told.batch_id))
        if seen is None or seen.status in ENDED:
            return
        facts = seen.model_dump()["batchmill"]
        budget = facts["budget_usd"]
        if budget is not None and facts["pause_reason"] == "budget":
            told.overrun_usd = max(told.overrun_usd, facts["cost_usd"] - budget)
            self._resume(told, {"budget_usd": budget * 4})

    def _resume(self, told: Told, body: dict[str, Any] | None = None) -> None:
        for stop in told.stops:
            if stop.why == "pause":
                stop.end = min(stop.end, time.time())  # it may arrive although its answer does not
        self._act(told, "resume", body)

    def _act(self, told: Told, verb: str, body: dict[str, Any] | None = None) -> Any:
        path = f"/batches/{told.batch_id}/{verb}"
        return self._try(verb, lambda: self.client.post(path, cast_to=dict, body=body or {}))

    def _pick(self) -> Told | None:
        """Any batch, the newer the likelier: most of the old ones have ended."""
        if not self.batches:
            return None
        return self.batches[max(self._chance.randrange(len(self.batches)) for _ in range(2))]

    def _try(self, name: str, call: Callable[[], T]) -> T | None:
        """An operation under faults: unanswered or refused is not acknowledged."""
        try:
            answer = call()
        except openai.OpenAIError:
            self.refused += 1
            return None
        self.done[name] = self.done.get(name, 0) + 1
        return answer


def _line(custom_id: str, chance: random.Random) -> bytes:
    body: dict[str, Any] = {
        "model": "sim-1",
        "mlx:end_user": custom_id,
        "messages": [{"role": "user", "content": f"Say it of {custom_id}. " + "word " * chance.randint(0, 40)}],
        "max_tokens": 32,
    }
    row = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}
    return json.dumps(row).encode() + b"\n"
