"""One request to the simulated vendor: key, faults, limits, answer, log, reply.

Owns: the order in which a vendor decides, and the state of one configuration (limiter, faults,
speaker). Reconfiguring makes a new Exchange that keeps the witness.
May not touch: sockets (protocol.py) and the texts of answers (chat.py) and errors (errors.py).
"""

from __future__ import annotations

import math
from typing import Any

import orjson

from batch.clock import Clock
from batch.simulator import endpoints
from batch.simulator.chat import Completion, Speaker
from batch.simulator.checks import Asked, Checker
from batch.simulator.config import Fault, SimulatorConfig
from batch.simulator.delivery import broken_reply, completion_reply
from batch.simulator.errors import Problem, error_body, fault_problem, invalid, refusal_problem
from batch.simulator.faults import HTTP_ERRORS, TRANSPORT, FaultPicker, fraction, gaussian
from batch.simulator.headers import Headers, rate_headers, retry_after
from batch.simulator.limiter import Cost, Limiter, Refusal, Ticket
from batch.simulator.personalities import personality
from batch.simulator.protocol import Head, Reply
from batch.simulator.queueing import Slots
from batch.simulator.witness import Record, Witness


class Exchange:
    """Answers requests under one configuration."""

    def __init__(self, config: SimulatorConfig, witness: Witness, slots: Slots, clock: Clock) -> None:
        self.config = config
        self.person = personality(config.personality)
        self._witness = witness
        self._clock = clock
        self._slots = slots
        self._checker = Checker(config, self.person)
        self._speaker = Speaker(config, self.person)
        self._faults = FaultPicker(config.faults, config.seed)
        limits = config.limits
        if limits is None:
            limits = self.person.limits if config.enforce_documented else ()
        self._limiter = Limiter(limits)
        self._family = config.headers or self.person.headers
        self._is_engine = slots.size is not None
        prefixes = {"/v1", *self.person.prefixes}
        self._routes = {prefix + path: kind for prefix in prefixes for path, kind in endpoints.PATHS.items()}

    def answer(self, head: Head, raw: bytes) -> Reply:
        """The reply to one request; never raises for what a client may send."""
        now = self._clock.now()
        number = self._witness.next_number()
        key = head.headers.get("authorization", "").removeprefix("Bearer ").strip() or head.headers.get("api-key", "")
        kind = self._routes.get(head.path)
        if kind is None and head.method == "GET":
            return endpoints.get(head.path, self, self._witness, self._slots)
        if kind is None:
            return self._refuse(
                head,
                number,
                now,
                key,
                Problem(404, "invalid_request_error", f"Invalid URL ({head.method} {head.path})"),
            )
        if head.method != "POST":
            if kind == "models":
                return endpoints.models(self)
            return self._refuse(head, number, now, key, Problem(405, "invalid_request_error", "Method not allowed."))
        if problem := self._key_problem(key):
            return self._refuse(head, number, now, key, problem)
        try:
            body = orjson.loads(raw)
        except orjson.JSONDecodeError:
            return self._refuse(head, number, now, key, invalid("We could not parse the JSON body of your request."))
        return self._chat(kind, head, number, now, key, body, raw)

    def model_problem(self, model: str) -> Problem | None:
        return self._checker.model_problem(model)

    def _chat(self, kind: str, head: Head, number: int, now: float, key: str, body: Any, raw: bytes) -> Reply:
        asked = self._checker.read(body if kind == "chat" else endpoints.as_chat(kind, body))
        if isinstance(asked, Problem):
            return self._refuse(head, number, now, key, asked, body=body)
        asked.body = body
        fault = self._faults.pick(asked.content + b"|%d" % (asked.seed or 0), raw, asked.model, key)
        if fault is not None and fault.kind in HTTP_ERRORS:
            return self._fail(head, number, now, key, asked, fault)
        if problem := self._context_problem(asked):
            return self._refuse(head, number, now, key, problem, asked=asked)
        if self._slots.is_full:
            text = "The request queue is full."
            return self._refuse(
                head, number, now, key, Problem(self.person.full_status, "server_error", text), asked=asked
            )
        ticket = self._limiter.admit(now, key, asked.model, self._cost(asked))
        if isinstance(ticket, Refusal):
            return self._limit(head, number, now, key, asked, ticket)
        cached = self._speaker.was_cached(asked)
        completion = self._speaker.complete(asked, number, int(now), fault.kind if fault else None)
        endpoints.reshape(kind, body, asked, completion)
        reply = self._reply(kind, head, number, asked, completion, fault)
        reply.headers += self._headers(number, now, key, asked, completion, reply.delay_s)
        if self.person.cached_answers:
            reply.headers.append(("x-modelux-cache", "HIT" if cached else "MISS"))
        self._log(head, number, now, key, reply.status, asked, fault, completion)
        self._hold(reply, ticket, completion)
        return reply

    def _reply(
        self, kind: str, head: Head, number: int, asked: Asked, completion: Completion, fault: Fault | None
    ) -> Reply:
        """The completion on its way: whole, as a stream, or broken by a transport fault."""
        delay = self._delay(number)
        tokens = completion.output_tokens / max(1, asked.n)
        generating = tokens / self.config.tokens_per_s if self.config.tokens_per_s else 0.0
        streamed = asked.stream and kind == "chat"
        zips = self.config.gzip and "gzip" in head.headers.get("accept-encoding", "")
        if fault is not None and fault.kind in TRANSPORT:
            reply = broken_reply(fault, completion.data, stream=streamed)
            reply.delay_s += delay
        else:
            reply = completion_reply(completion.data, asked, streamed=streamed, seconds=generating, zips=zips)
            reply.delay_s += delay
            if self.person.leading_blank_lines and not streamed and not reply.headers:
                reply.body = b"\n\n" + reply.body
        reply.takes_slot = self._is_engine
        return reply

    def _fail(self, head: Head, number: int, now: float, key: str, asked: Asked, fault: Fault) -> Reply:
        """An HTTP error as told by a fault, in the vendor's shape."""
        if fault.kind == "error_in_200":
            inner = Problem(fault.status or 502, "server_error", fault.message or "Provider returned error", fault.code)
            reply = self._error(inner, status=200)
            if asked.stream:
                reply = Reply(
                    200,
                    pieces=[(0.0, b"data: " + reply.body + b"\n\n")],
                    chunked=True,
                    content_type="text/event-stream",
                )
        else:
            problem = fault_problem(fault, asked.model, now)
            if fault.kind == "bad_key":
                problem = self._bad_key(problem.message)
            reply = self._error(problem)
            if problem.status in {402, 429, 503, 529}:
                reply.headers += retry_after(fault.retry_after, fault.retry_after_s, now)
        reply.headers += fault.headers
        reply.headers += self._headers(number, now, key, asked, None, 0.0)
        reply.delay_s = self._delay(number)
        self._log(head, number, now, key, reply.status, asked, fault, None)
        return reply

    def _limit(self, head: Head, number: int, now: float, key: str, asked: Asked, refusal: Refusal) -> Reply:
        """429 of a limit that is enforced here."""
        reply = self._error(refusal_problem(refusal, asked.model))
        if math.isfinite(refusal.retry_after_s) and self.person.errors != "gemini":
            reply.headers += retry_after("seconds", max(1.0, refusal.retry_after_s), now)
            if self._family == "openai":
                reply.headers += retry_after("ms", refusal.retry_after_s, now)
        reply.headers += self._headers(number, now, key, asked, None, 0.0)
        self._log(head, number, now, key, reply.status, asked, None, None)
        return reply

    def _refuse(
        self, head: Head, number: int, now: float, key: str, problem: Problem,
        *, asked: Asked | None = None, body: Any = None,
    ) -> Reply:  # fmt: skip
        """An error that the request itself caused."""
        reply = self._error(problem)
        reply.headers += self._headers(number, now, key, asked, None, 0.0)
        self._log(head, number, now, key, problem.status, asked, None, None, body=body)
        return reply

    def _error(self, problem: Problem, *, status: int | None = None) -> Reply:
        return Reply(status or problem.status, orjson.dumps(error_body(self.person.errors, problem)))

    def _key_problem(self, key: str) -> Problem | None:
        config = self.config
        if not key and (config.require_key or config.valid_keys):
            return Problem(401, "invalid_request_error", "You didn't provide an API key.")
        if key in config.invalid_keys or (config.valid_keys and key not in config.valid_keys):
            return self._bad_key("Incorrect API key provided.")
        return None

    def _bad_key(self, message: str) -> Problem:
        return Problem(self.person.bad_key_status, "invalid_request_error", message, "invalid_api_key")

    def _context_problem(self, asked: Asked) -> Problem | None:
        allowed = self.config.context_tokens
        if allowed is None or self._cost(asked).input + (asked.max_tokens or 0) <= allowed:
            return None
        return fault_problem(Fault("context_length"), asked.model, 0.0)

    def _cost(self, asked: Asked) -> Cost:
        return Cost(3 + asked.prompt_bytes // 4, (asked.max_tokens or self.config.answer_tokens) * asked.n)

    def _delay(self, number: int) -> float:
        latency = self.config.latency
        if latency.kind == "constant":
            return latency.a
        seed = self.config.seed
        return latency.draw(
            fraction(seed, 101, number), gaussian(seed, 102, number) if latency.kind == "lognormal" else 0
        )

    def _headers(
        self, number: int, now: float, key: str, asked: Asked | None, completion: Completion | None, delay: float
    ) -> Headers:
        headers: Headers = list(self.config.extra_headers)
        if self.person.request_id_header:
            headers.append((self.person.request_id_header, f"req_sim{number:x}"))
        if completion is not None and self.person.response_headers:
            cost = (completion.input_tokens + 4 * completion.output_tokens) * 1e-7
            values = {"id": f"mlx_{number:x}", "model": asked.model if asked else "", "cost": f"{cost:.7f}",
                      "latency_ms": int(delay * 1000)}  # fmt: skip
            headers += [(name, text.format_map(values)) for name, text in self.person.response_headers.items()]
        if asked is not None and self._limiter.limits and self._family != "none":
            headers += rate_headers(self._family, self._limiter.readings(now, key, asked.model), now)
        return headers

    def _hold(self, reply: Reply, ticket: Ticket, completion: Completion) -> None:
        """Count it as in flight until its end, then settle what the limits took."""
        witness, clock = self._witness, self._clock
        witness.in_flight += 1
        witness.most_in_flight = max(witness.most_in_flight, witness.in_flight)

        def on_end(was_sent: bool) -> None:
            witness.in_flight -= 1
            witness.aborted += not was_sent
            ticket.settle(clock.now(), completion.input_tokens, completion.output_tokens)

        reply.on_end = on_end

    def _log(
        self, head: Head, number: int, now: float, key: str, status: int, asked: Asked | None,
        fault: Fault | None, completion: Completion | None, *, body: Any = None,
    ) -> None:  # fmt: skip
        name = fault.kind if fault else None
        tokens = (completion.input_tokens, completion.output_tokens) if completion else (0, 0)
        self._witness.count(status, name, *tokens)
        if not self._witness.is_listening:
            return
        sent = asked.body if asked else body if isinstance(body, dict) else {}
        wanted = self.config.log_headers
        self._witness.write(Record(
            number=number, time=now, path=head.path, status=status, fault=name,
            model=str(sent.get("model", "")), sha=asked.content.hex() if asked else "",
            seed=sent.get(self.person.seed_field), n=sent.get("n"), stream=bool(sent.get("stream")),
            schema=asked.schema_kind if asked else None, prompt_tokens=tokens[0], completion_tokens=tokens[1],
            key=key[-4:], keys=tuple(sent),
            parameters={k: v for k, v in sent.items() if isinstance(v, int | float | bool) or k.startswith("mlx:")},
            headers={k: v for k, v in head.headers.items() if k.startswith("x-") or k in wanted},
            body=sent if self.config.log_bodies else None,
        ))  # fmt: skip
