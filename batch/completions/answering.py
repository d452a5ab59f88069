"""The life of one line against one provider: which calls to make, what their answers come to.

Owns: Answering. It hands out calls, judges each choice, steps down the ladder, re-asks what is wrong, fills
what is missing, and ends in an Answer or a LineFailure. A line that needs nothing of that takes the short
way: its own bytes out, the provider's bytes back. No I/O, no clock; waits and retries are the executor's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson

from batch.completions.answers import Answer, LineFailure
from batch.completions.calls import Call, compose
from batch.completions.cards import SchemaMode
from batch.completions.choices import ChoiceState
from batch.completions.judge import Ruling, Verdict, is_refusal, judge_choice
from batch.completions.ladder import NATIVE_RUNGS, next_rung
from batch.completions.merge import CallRecord, merge_body
from batch.completions.normalise import mend_choice, mend_usage, read_choices
from batch.completions.notes import describe_line, describe_rejected
from batch.completions.plan import Plan, demote, plan_line
from batch.completions.reask import Reask
from batch.completions.rules import CHAT
from batch.completions.schema import Schema, SchemaCache
from batch.completions.tokens import estimate_usage
from batch.completions.whole import is_complete, is_whole
from batch.domain.errors import InvalidRequest
from batch.domain.outcome import NO_USAGE, Success, read_usage

# A shared prompt of this size is worth warming the provider's prefix cache with one call first.
WARM_PROMPT_BYTES = 6_000
_FEATURE_OF: dict[str | None, str] = {
    "strict": "json_schema",
    "schema": "json_schema",
    "tool": "tools",
    "json_object": "json_object",
}
_EMPTY_ANSWERS = 1  # a choice that came empty or not at all is asked for once more


class Answering:
    """See the module. `progress` is an earlier snapshot(); `schemas` may be shared between lines. Raises
    InvalidRequest when the line's own schema is bad.

    The caller makes the calls of next_calls() until is_done, handing each Success to accept(), each lasting
    failure to drop(), and a 400 that names a parameter to demote().
    """

    def __init__(
        self,
        body: dict[str, Any],
        raw_body: bytes,
        plan: Plan,
        *,
        progress: dict[str, Any] | None = None,
        schemas: SchemaCache,
    ) -> None:
        self.plan = plan
        self.rung: SchemaMode | None = plan.rung
        self.records: list[CallRecord] = []
        self.choices: list[ChoiceState] = []
        self.climbed = False  # down the ladder
        self.ignored_n = False  # the provider sent fewer choices than asked for, and was asked for the rest
        self.learned: dict[str, str] = {}
        self.billed = NO_USAGE  # of every answered call so far, also of those whose answers were thrown away
        self._body = body
        self._raw_body = raw_body
        self._schemas = schemas
        self._open: list[Call] = []
        self._failure: tuple[str, str] | None = None
        self._whole: bytes | None = None  # the provider's own body, to be passed on
        self._checks: list[Schema] = []
        self.is_short = (
            plan.verbatim
            and plan.n == 1
            and plan.shape is None
            and not plan.stops
            and not plan.tool_schemas
            and not progress
        )
        if not self.is_short:
            self._checks = self._compile_schemas()
            self.choices = [ChoiceState() for _ in range(plan.n)]
            if progress:
                self._restore(progress)

    @property
    def is_done(self) -> bool:
        """True when nothing is open and nothing more will be asked."""
        if self._open or self._whole is not None or self.is_doomed:
            return not self._open
        return bool(self.choices) and all(choice.kept is not None for choice in self.choices)

    @property
    def is_doomed(self) -> bool:
        """True when the line has failed: a call still open need not be retried, only drop()ped."""
        return self._failure is not None

    @property
    def cost_usd(self) -> float | None:
        costs = [record.cost_usd for record in self.records]
        return None if not costs or None in costs else sum([cost or 0.0 for cost in costs])

    def take_learned(self) -> dict[str, str]:
        """What answers showed about the provider, for its card, since it was last asked: {"n": "ignored"}."""
        found, self.learned = self.learned, {}
        return found

    def next_calls(self) -> list[Call]:
        """The calls to make now; each is handed out once. Empty while others are still open, or at the end."""
        if self.is_short:
            if self._open or self._whole is not None:
                return []
            call = Call(self._raw_body, self.plan, seed=self.plan.seed)
            self._open.append(call)
            return [call]
        if self.is_doomed:
            return []
        busy = {index for call in self._open for index in call.indices}
        wanted = [index for index, choice in enumerate(self.choices) if choice.kept is None and index not in busy]
        calls = self._warm(self._cut(wanted))
        self._open += calls
        return calls

    def needs_thread(self, success: Success) -> bool:
        """True when accept() may block for a while (a check in a process of its own, a big body)."""
        size = len(success.body)
        return size > 1_000_000 or any(schema.is_heavy(size) for schema in self._checks)

    def accept(self, call: Call, success: Success) -> None:
        """Take a call's answer. Calls may be answered in any order; answers after the end are billed only."""
        if call in self._open:
            self._open.remove(call)
        self._record(call, success)
        if self.is_short or self.plan.endpoint != CHAT:
            if is_whole(success.data, self.plan.endpoint):
                self._pass_on(success)
                return
            self._leave_short()
        for index, choice in zip(call.indices, read_choices(success.data, len(call.indices)), strict=True):
            self.choices[index].asked += 1
            if self.choices[index].kept is None and not self.is_doomed:
                self._settle(index, choice, call)
        if len(call.indices) > 1:
            self.learned.setdefault("n", "native")

    def drop(self, call: Call) -> None:
        """The executor gave this call up: its choices are asked for again, unless the line is doomed."""
        if call in self._open:
            self._open.remove(call)

    def demote(self, call: Call, key: str) -> bool:
        """A 400 named the body key `key`: plan again without it. False when that cannot be done, and the 400 stands."""
        self.drop(call)
        if call.plan is not self.plan:
            return True  # a sibling's 400 has changed the plan already
        if key == "response_format" or (call.rung == "tool" and key in ("tools", "tool_choice")):
            if call.rung == self.rung and call.rung not in (None, "strict", "prompt"):
                self.learned[_FEATURE_OF[call.rung]] = "rejected"
            return self._step_down(call.rung, ignored=False)
        card = demote(self.plan.card, key)
        if card is None:
            return False
        try:
            plan = plan_line(self._body, card, self.plan.options, endpoint=self.plan.endpoint)
        except InvalidRequest:
            return False
        self._leave_short()
        self.learned[key] = "rejected"
        self.plan = plan
        if not self.climbed:
            self.rung = plan.rung
        return True

    def finish(self) -> Answer | LineFailure:
        """The line's end; only when is_done."""
        note, facts = describe_line(self)
        if self._failure is not None:
            note["rejected"] = describe_rejected(self.choices)
            return LineFailure(*self._failure, note, self.billed, self.cost_usd, facts)
        body, usage = self._whole, self.records[-1].billed
        if body is None:
            merged = merge_body(self.records, self.choices)
            body, usage = orjson.dumps(merged), read_usage(merged.get("usage"))
        return Answer(body, usage, self.billed, self.cost_usd, facts, note)

    def describe_failure(self) -> dict[str, Any]:
        """The note of a line that ends without an Answer, with every answer it got under "rejected"; {} when
        it got none. For lines that fail by a call as well as for a LineFailure."""
        return {**describe_line(self)[0], "rejected": describe_rejected(self.choices)} if self.records else {}

    def snapshot(self) -> dict[str, Any]:
        """Everything paid for so far, as JSON, to continue after a restart or on another provider; {} if nothing."""
        if not self.records or self._whole is not None:
            return {}
        return {
            "provider": self.plan.card.provider,
            "rung": self.rung,
            "climbed": self.climbed,
            "records": [record.to_json() for record in self.records],
            "choices": [choice.to_json() for choice in self.choices],
        }

    def _compile_schemas(self) -> list[Schema]:
        """All that answers will be checked against; a bad schema raises InvalidRequest before any call."""
        shape = self.plan.shape
        documents = [shape.document] if shape is not None and shape.kind == "json_schema" else []
        return [self._schemas.compile(document) for document in (*documents, *self.plan.tool_schemas.values())]

    def _leave_short(self) -> None:
        self.is_short = False
        self.choices = self.choices or [ChoiceState()]

    def _cut(self, wanted: list[int]) -> list[Call]:
        """Fresh choices in groups of the plan; a re-ask is always a call of its own."""
        calls: list[Call] = []
        group: list[int] = []
        for index in wanted:
            if self.choices[index].asked:
                calls.append(self._compose((index,)))
                continue
            # Neighbours only: a native call numbers its seeds from the first index on.
            if group and (len(group) == self.plan.group or index != group[-1] + 1):
                calls.append(self._compose(tuple(group)))
                group = []
            group.append(index)
        if group:
            calls.append(self._compose(tuple(group)))
        return calls

    def _compose(self, indices: tuple[int, ...]) -> Call:
        return compose(self.plan, self._raw_body, indices, self.rung, self.choices[indices[0]])

    def _warm(self, calls: list[Call]) -> list[Call]:
        is_first = not self.records and not self._open
        return calls[:1] if is_first and len(calls) > 2 and len(calls[0].body) >= WARM_PROMPT_BYTES else calls

    def _record(self, call: Call, success: Success) -> None:
        usage = mend_usage(success.data) or (estimate_usage(call.body, success.data) if call.stream else None)
        record = CallRecord(
            call.indices, success.data, usage, self.plan.card.provider, call.reask, call.seed,
            success.request_id, success.headers, success.latency_s, success.cost_usd,
        )  # fmt: skip
        self.billed = self.billed + record.billed if self.records else record.billed
        self.records.append(record)

    def _pass_on(self, success: Success) -> None:
        """The provider's own bytes where nothing is missing from them, else the same object completed."""
        data = success.data
        if self.plan.endpoint == CHAT:
            choice = data["choices"][0]
            is_mended = self.records[-1].usage is not data.get("usage") or not is_complete(data, choice)
            self.choices = [ChoiceState(kept=mend_choice(choice, 0) if is_mended else choice)]
            if is_mended:
                return
        self._whole = success.body

    def _settle(self, index: int, given: dict[str, Any] | None, call: Call) -> None:
        state = self.choices[index]
        if given is None:
            if len(call.indices) > 1:
                self.ignored_n = True
                self.learned["n"] = "ignored"
            self._ask_once_more(state, "the provider sent fewer choices than asked for")
            return
        verdict = judge_choice(mend_choice(given, index), self.plan, call.rung, self._schemas)
        _SETTLING[verdict.ruling](self, state, verdict, call)

    def _keep(self, state: ChoiceState, verdict: Verdict, call: Call) -> None:
        state.kept, state.record, state.reask = verdict.choice, len(self.records) - 1, None
        state.raw, state.cut = verdict.raw, verdict.cut
        if call.rung in NATIVE_RUNGS and not is_refusal(verdict.choice):
            self.learned.setdefault("json_schema", "native")

    def _empty(self, state: ChoiceState, verdict: Verdict, call: Call) -> None:
        state.reject(verdict)
        state.reseeds += 1
        self._ask_once_more(state, verdict.errors[0])

    def _ask_once_more(self, state: ChoiceState, why: str) -> None:
        state.empties += 1
        if state.empties > _EMPTY_ANSWERS + (self.plan.n > 1):
            kept = sum(choice.kept is not None for choice in self.choices)
            self._failure = ("choices_missing", f"{kept} of {self.plan.n} choices: {why}")

    def _unshaped(self, state: ChoiceState, verdict: Verdict, call: Call) -> None:
        """Told to make JSON, the provider made prose: it did not look, so the next rung is tried, free."""
        if not self._step_down(call.rung, ignored=True):
            self._invalid(state, verdict, call)
            return
        state.reject(verdict)
        if verdict.choice["message"].get("content") and call.rung != "tool":
            self.learned[_FEATURE_OF[call.rung]] = "ignored"

    def _invalid(self, state: ChoiceState, verdict: Verdict, call: Call) -> None:
        state.reject(verdict)
        if state.reasks >= self.plan.options.schema_retries:
            self._failure = ("json_schema_invalid", f"choice {verdict.choice['index']}: {verdict.errors[0]}")
            return
        state.reasks += 1
        state.reseeds += 1
        state.reask = Reask(verdict.choice["message"], list(verdict.errors))

    def _truncated(self, state: ChoiceState, verdict: Verdict, call: Call) -> None:
        state.reject(verdict)
        grown = self._grown_limit() if state.grown_to is None else None
        if grown is None:
            self._failure = (
                "truncated",
                f"choice {verdict.choice['index']} was cut off before its JSON was complete; raise max_tokens, "
                "or set options.grow_max_tokens",
            )
            return
        state.grown_to = grown

    def _grown_limit(self) -> int | None:
        """Twice the limit that cut the answer (the caller's, or what was made), once and only if allowed."""
        if not self.plan.options.grow_max_tokens:
            return None
        limit = self.plan.base.get(self.plan.card.max_tokens_field) or self.records[-1].billed.output_tokens
        highest = self.plan.card.max_output_tokens
        grown = 2 * limit if highest is None else min(2 * limit, highest)
        return grown if grown > limit else None

    def _step_down(self, rung: SchemaMode | None, *, ignored: bool) -> bool:
        """Move the line to a lower rung; False when there is none. Spends no schema retry."""
        shape = self.plan.shape
        if shape is None or rung is None:
            return False
        if rung != self.rung:
            return True  # a sibling has stepped down already
        below = next_rung(self.plan.card, rung, shape, has_tools=self.plan.has_tools, ignored=ignored)
        if below is None:
            return False
        self.rung = below
        self.climbed = True
        return True

    def _restore(self, progress: dict[str, Any]) -> None:
        """Kept choices are paid for and stay; where the ladder stood holds for the same provider only."""
        try:
            records = [CallRecord.from_json(stored) for stored in progress["records"]]
            choices = [ChoiceState.from_json(stored) for stored in progress["choices"][: self.plan.n]]
            stands_here = progress["provider"] == self.plan.card.provider and progress["climbed"]
            rung = progress["rung"]
        except (KeyError, TypeError, ValueError, AttributeError):
            return  # written by another version: the line starts anew rather than stopping
        self.records = records
        self.billed = sum((record.billed for record in records), NO_USAGE)
        self.choices[: len(choices)] = choices
        if stands_here and self.plan.shape is not None:
            self.climbed = True
            self.rung = rung


_SETTLING: dict[Ruling, Callable[[Answering, ChoiceState, Verdict, Call], None]] = {
    Ruling.KEEP: Answering._keep,
    Ruling.EMPTY: Answering._empty,
    Ruling.INVALID: Answering._invalid,
    Ruling.UNSHAPED: Answering._unshaped,
    Ruling.TRUNCATED: Answering._truncated,
}
