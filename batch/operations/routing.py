"""Which lanes serve which line of one batch, and whether any of their providers can.

Owns: resolving each model once per batch, the numbered routes that request rows point at, and planning
each distinct shape of request once per route, so that a million like lines cost one plan.
May not touch: the database; what makes lanes is given. Serves ingest and `check`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from batch.clock import SYSTEM_CLOCK, Clock
from batch.completions.cards import Card
from batch.completions.parameters import part_features
from batch.completions.plan import Plan, PlanOptions, plan_line
from batch.completions.rules import CHAT
from batch.domain.errors import InvalidRequest, UnknownModel
from batch.domain.line import LineProblem
from batch.domain.options import BatchOptions
from batch.operations.private_urls import is_own
from batch.providers.catalog import Catalog, Hop
from batch.providers.models import resolve_or_ask
from batch.settings import Settings

MAX_ROUTES = 1000  # per batch: a file with more distinct models than this is a mistake
_SHAPES_KEPT = 4096
_NO_SHAPE = frozenset({"messages", "input", "seed", "user", "metadata", "prompt_cache_key", "safety_identifier"})
_PLAIN = frozenset({str, int, float, bool, type(None)})


@dataclass(slots=True)
class BookedRoute:
    """`lanes` in the order of `hops`; `number` is its index in the batch's routes."""

    number: int
    lanes: list[int]
    hops: tuple[Hop, ...]
    cards: list[Card]
    may_fetch: bool  # an own engine is among the hops, and private URLs are blocked
    by_prefix: bool  # sent in the order of common beginnings


Enlist = Callable[[Sequence[Hop]], Sequence[tuple[int, Mapping[str, Any]]]]
"""Gives each hop's lane: its id, and what was learned of it."""


class RouteBook:
    """The routes of one batch. `routes` is what the batch row keeps; numbers never change once given."""

    def __init__(
        self,
        catalog: Catalog,
        settings: Settings,
        endpoint: str,
        options: BatchOptions,
        enlist: Enlist,
        *,
        clock: Clock = SYSTEM_CLOCK,
        allowed: Sequence[str] | None = None,
        routes: Sequence[list[int]] = (),
    ) -> None:
        self.settings = settings
        self.endpoint = endpoint
        self.options = options
        self.routes = list(routes)
        self._catalog = catalog
        self._enlist = enlist
        self._clock = clock
        self._allowed = allowed
        self._booked: dict[tuple[str, str | None], BookedRoute | LineProblem] = {}
        self._judged: dict[Any, LineProblem | None] = {}
        self._plan_options = PlanOptions(options.on_unsupported, options.schema_retries, options.grow_max_tokens)
        self._alone: dict[int, BookedRoute] = {}

    def book(self, model: str, override: dict[str, Any]) -> BookedRoute | LineProblem:
        """The route for a model, made when it is new; or why nobody serves it."""
        provider: Any = None
        if override:
            provider = override.get("provider")
            if set(override) != {"provider"} or not isinstance(provider, str) or not provider:
                message = "Invalid 'batchmill': expected {\"provider\": NAME}."
                return LineProblem("invalid_value", message, "batchmill")
        key = (model, provider)
        known = self._booked.get(key)
        if known is None:
            if len(self._booked) >= MAX_ROUTES:
                return LineProblem("invalid_request", f"A batch holds at most {MAX_ROUTES:,} models.", "body.model")
            known = self._booked[key] = self._resolve(model, provider)
        return known

    def judge(self, body: dict[str, Any], route: BookedRoute) -> LineProblem | None:
        """None when some provider of the route can serve the body, emulation included."""
        key = (route.number, *self._shape(body))
        try:
            return self._judged[key]
        except KeyError:
            if len(self._judged) >= _SHAPES_KEPT:
                self._judged.clear()
            planned = self.plan(body, route)
            verdict = self._judged[key] = planned if isinstance(planned, LineProblem) else None
            return verdict

    def plan(self, body: dict[str, Any], route: BookedRoute) -> tuple[Hop, Plan] | LineProblem:
        """By the first provider of the route that can serve the body; else why the very first one cannot."""
        refusal: LineProblem | None = None
        for hop, card in zip(route.hops, route.cards, strict=True):
            try:
                return hop, plan_line(body, card, self._plan_options, endpoint=self.endpoint)
            except InvalidRequest as error:
                refusal = refusal or LineProblem(error.code, error.message, error.param)
        assert refusal is not None
        return refusal

    def pin(self, route: BookedRoute, body: dict[str, Any]) -> BookedRoute:
        """The first provider of the route that can serve the body, alone: who gives a seed wants the answer
        to be the same again, and another provider's would not be."""
        if len(route.lanes) == 1:
            return route
        alone = [self._only(route, place) for place in range(len(route.lanes))]
        return next((one for one in alone if self.judge(body, one) is None), alone[0])

    def goes_by_prefix(self, provider: str) -> bool:
        """Whether lines that go to this provider first are sent in the order of common beginnings."""
        known = self._catalog.providers.get(provider)
        is_engine = known is not None and known.engine is not None
        return self.options.order == "prefix" or (self.options.order is None and is_engine)

    def _resolve(self, model: str, provider: str | None) -> BookedRoute | LineProblem:
        choice = [provider] if provider else self.options.providers
        try:
            route = resolve_or_ask(self._catalog, model, self._clock, providers=choice, allowed=self._allowed)
        except UnknownModel as error:
            return LineProblem(error.code, error.message, "body.model")
        hops = route.hops[:1] if route.fallback == "never" else route.hops
        lanes, learned = zip(*self._enlist(hops), strict=True)
        providers = self._catalog.providers
        cards = [providers[hop.provider].card(hop.model, facts) for hop, facts in zip(hops, learned, strict=True)]
        return self._number(hops, list(lanes), cards)

    def _only(self, route: BookedRoute, place: int) -> BookedRoute:
        lane = route.lanes[place]
        if lane not in self._alone:
            self._alone[lane] = self._number(route.hops[place : place + 1], [lane], route.cards[place : place + 1])
        return self._alone[lane]

    def _number(self, hops: tuple[Hop, ...], lanes: list[int], cards: list[Card]) -> BookedRoute:
        if lanes not in self.routes:
            self.routes.append(lanes)
        owned = any(is_own(self._catalog.providers[hop.provider]) for hop in hops)
        may_fetch = self.settings.block_private_urls and owned
        by_prefix = self.goes_by_prefix(hops[0].provider)
        return BookedRoute(self.routes.index(lanes), lanes, hops, cards, may_fetch, by_prefix)

    def _shape(self, body: dict[str, Any]) -> tuple[Any, ...]:
        """What a plan can depend on: every key and value but texts and labels, and the kinds of content parts."""
        shape: list[Any] = [
            (key, value) if type(value) in _PLAIN else (key, orjson.dumps(value))
            for key, value in body.items()
            if key not in _NO_SHAPE
        ]
        if "seed" in body:
            shape.append(("seed", body["seed"] is None))
        if self.endpoint == CHAT:
            for message in body["messages"]:
                if type(message.get("content")) is list:
                    shape.append(frozenset(part_features(body["messages"])))
                    break
        return tuple(shape)
