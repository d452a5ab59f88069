"""One request to the simulated vendor: key, faults, limits, answer, log, reply.

Owns: the order in which a vendor decides, and the state of one configuration (limiter, faults,
speaker). Reconfiguring makes a new Exchange that keeps the witness.
May not touch: sockets (protocol.py) and the texts of answers (chat.py) and errors (errors.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import orjson

from batch.clock import SYSTEM_CLOCK
from batch.simulator import endpoints
from batch.simulator.chat import Completion, Speaker, prompt_tokens
from batch.simulator.checks import Asked, Checker
from batch.simulator.config import HTTP_FAULTS, TRANSPORT_FAULTS, Fault, SimulatorConfig
from batch.simulator.delivery import broken_reply, completion_reply, error_event
from batch.simulator.errors import Problem, error_body, fault_problem, invalid, refusal_problem
from batch.simulator.faults import FaultPicker, fraction
from batch.simulator.headers import Headers, rate_headers, retry_after
from batch.simulator.limiter import Cost, Limiter, Refusal, Ticket
from batch.simulator.personalities import personality
from batch.simulator.protocol import Head, Reply
from batch.simulator.queueing import Slots
from batch.simulator.witness import Record, Witness


@dataclass(slots=True)
class _Call:
    """What is known of a request so far; `body` as received, `asked` once it could be read."""

    head: Head
    number: int
    now: float
    key: str
    body: Any = None
    asked: Asked | None = None
    fault: Fault | None = None


class Exchange:
    """Answers requests under one configuration."""

    def __init__(self, config: SimulatorConfig, witness: Witness, slots: Slots) -> None:
        self.config = config
        self.person = personality(config.personality)
        self.witness = witness
        self.slots = slots
        self._checker = Checker(config, self.person)
        self._speaker = Speaker(config, self.person)
        self._faults = FaultPicker(config.faults, config.seed)
        self._limiter = Limiter(config.limits)
        self._family = config.headers or self.person.headers
        prefixes = {"/v1", *self.person.prefixes}
        self._routes = {prefix + path: kind for prefix in prefixes for path, kind in endpoints.PATHS.items()}

    def answer(self, head: Head, raw: bytes) -> Reply:
        """The reply to one request; never raises for what a client may send."""
        key = head.headers.get("authorization", "").removeprefix("Bearer ").strip() or head.headers.get("api-key", "")
        call = _Call(head, self.witness.next_number(), SYSTEM_CLOCK.now(), key)
        kind = self._routes.get(head.path)
        if head.method == "GET" and kind in {None, "models"}:
            return endpoints.get(kind, head.path, self)
        if kind is None:
            return self._refuse(call, invalid(f"Invalid URL ({head.method} {head.path})", status=404))
        if head.method != "POST":
            return self._refuse(call, invalid("Method not allowed.", status=405))
        if problem := self._key_problem(key):
            return self._refuse(call, problem)
        try:
            call.body = orjson.loads(raw)
        except orjson.JSONDecodeError:
            return self._refuse(call, invalid("We could not parse the JSON body of your request."))
        return self._chat(kind, call, raw)

    def _chat(self, kind: str, call: _Call, raw: bytes) -> Reply:
        asked = self._checker.read(call.body if kind == "chat" else endpoints.as_chat(kind, call.body))
        if isinstance(asked, Problem):
            return self._refuse(call, asked)
        call.asked = asked
        call.fault = fault = self._faults.pick(asked.content + b"|%d" % (asked.seed or 0), raw)
        if fault is not None and fault.kind in HTTP_FAULTS:
            return self._fail(call, asked, fault)
        if self.slots.is_full:
            return self._refuse(call, Problem(self.person.full_status, "server_error", "The request queue is full."))
        cost = Cost(prompt_tokens(asked.prompt_bytes), (asked.max_tokens or self.config.answer_tokens) * asked.n)
        ticket = self._limiter.admit(call.now, call.key, asked.model, cost)
        if isinstance(ticket, Refusal):
            return self._limit(call, asked, ticket)
        cached = self._speaker.was_cached(asked)
        completion = self._speaker.complete(asked, call.number, int(call.now), fault.kind if fault else None)
        endpoints.reshape(kind, call.body, asked, completion)
        reply = self._reply(call, asked, completion, streamed=asked.stream and kind == "chat")
        reply.headers += self._headers(call, completion, reply.delay_s)
        if self.person.cached_answers:
            reply.headers.append(("x-modelux-cache", "HIT" if cached else "MISS"))
        self._log(call, reply.status, completion)
        self._hold(reply, ticket, completion)
        return reply

    def _reply(self, call: _Call, asked: Asked, completion: Completion, *, streamed: bool) -> Reply:
        """The completion on its way: whole, as a stream, or broken by a transport fault."""
        if call.fault is not None and call.fault.kind in TRANSPORT_FAULTS:
            reply = broken_reply(call.fault, completion.data, stream=streamed)
        else:
            tokens = completion.output_tokens / max(1, asked.n)
            generating = tokens / self.config.tokens_per_s if self.config.tokens_per_s else 0.0
            reply = completion_reply(completion.data, asked, streamed=streamed, seconds=generating)
            if self.person.leading_blank_lines and not streamed:
                reply.body = b"\n\n" + reply.body
        reply.delay_s += self._delay(call.number)
        reply.takes_slot = self.slots.size is not None
        return reply

    def _fail(self, call: _Call, asked: Asked, fault: Fault) -> Reply:
        """An HTTP error as told by a fault, in the vendor's shape."""
        problem = fault_problem(fault, asked.model, call.now)
        if fault.kind == "bad_key":
            problem = self._bad_key(problem.message)
        reply = self._error(problem)
        if fault.kind == "error_in_200":
            reply.status = 200
            reply = error_event(reply) if asked.stream else reply
        elif problem.status in {402, 429, 503, 529}:
            reply.headers += retry_after(fault.retry_after, fault.retry_after_s, call.now)
        reply.delay_s = self._delay(call.number)
        return self._told(call, reply)

    def _limit(self, call: _Call, asked: Asked, refusal: Refusal) -> Reply:
        """429 of a limit that is enforced here."""
        reply = self._error(refusal_problem(refusal, asked.model))
        if math.isfinite(refusal.retry_after_s) and self.person.errors != "gemini":
            reply.headers += retry_after("seconds", max(1.0, refusal.retry_after_s), call.now)
            if self._family == "openai":
                reply.headers += retry_after("ms", refusal.retry_after_s, call.now)
        return self._told(call, reply)

    def _refuse(self, call: _Call, problem: Problem) -> Reply:
        """An error that the request itself caused."""
        return self._told(call, self._error(problem))

    def _told(self, call: _Call, reply: Reply) -> Reply:
        """An error with its headers, in the log."""
        reply.headers += self._headers(call, None, 0.0)
        self._log(call, reply.status, None)
        return reply

    def _error(self, problem: Problem) -> Reply:
        return Reply(problem.status, orjson.dumps(error_body(self.person.errors, problem)))

    def _key_problem(self, key: str) -> Problem | None:
        valid = self.config.valid_keys
        if not key and valid:
            return invalid("You didn't provide an API key.", status=401)
        if key in self.config.invalid_keys or (valid and key not in valid):
            return self._bad_key("Incorrect API key provided.")
        return None

    def _bad_key(self, message: str) -> Problem:
        return invalid(message, status=self.person.bad_key_status, code="invalid_api_key")

    def _delay(self, number: int) -> float:
        latency = self.config.latency
        return latency.a if latency.kind == "constant" else latency.draw(fraction(self.config.seed, 101, number))

    def _headers(self, call: _Call, completion: Completion | None, delay: float) -> Headers:
        headers: Headers = []
        if self.person.request_id_header:
            headers.append((self.person.request_id_header, f"req_sim{call.number:x}"))
        if call.asked is None:
            return headers
        if completion is not None and self.person.response_headers:
            cost = (completion.input_tokens + 4 * completion.output_tokens) * 1e-7
            values = {"id": f"mlx_{call.number:x}", "model": call.asked.model, "cost": f"{cost:.7f}",
                      "latency_ms": int(delay * 1000)}  # fmt: skip
            headers += [(name, text.format_map(values)) for name, text in self.person.response_headers.items()]
        if self._limiter.limits:
            readings = self._limiter.readings(call.now, call.key, call.asked.model)
            headers += rate_headers(self._family, readings, call.now)
        return headers

    def _hold(self, reply: Reply, ticket: Ticket, completion: Completion) -> None:
        """Count it as in flight until its end, then settle what the limits took."""
        witness = self.witness
        witness.in_flight += 1
        witness.most_in_flight = max(witness.most_in_flight, witness.in_flight)

        def on_end(was_sent: bool) -> None:
            witness.in_flight -= 1
            witness.aborted += not was_sent
            ticket.settle(SYSTEM_CLOCK.now(), completion.input_tokens, completion.output_tokens)

        reply.on_end = on_end

    def _log(self, call: _Call, status: int, completion: Completion | None) -> None:
        fault = call.fault.kind if call.fault else None
        tokens = (completion.input_tokens, completion.output_tokens) if completion else (0, 0)
        self.witness.count(status, fault, *tokens)
        if not self.witness.is_listening:
            return
        sent = call.body if isinstance(call.body, dict) else {}
        self.witness.write(Record(
            time=call.now, path=call.head.path, status=status, fault=fault, model=str(sent.get("model", "")),
            seed=sent.get(self.person.seed_field), n=sent.get("n"), stream=bool(sent.get("stream")),
            prompt_tokens=tokens[0], completion_tokens=tokens[1], key=call.key[-4:],
            parameters={k: v for k, v in sent.items() if isinstance(v, int | float | bool) or k.startswith("mlx:")},
            headers={k: v for k, v in call.head.headers.items() if k.startswith("x-")},
            body=sent if self.config.log_bodies else None,
        ))  # fmt: skip
