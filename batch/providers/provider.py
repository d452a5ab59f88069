"""One configured provider: a preset with batchmill.toml's overrides merged in.

Owns: Provider — its addresses, credential, capability cards, limits and prices per model.
Merge order, later wins: preset, its model rows, [providers.NAME], what was learned (lanes.learned).
May not touch: the network, the database. A key is read when asked for, and never kept or shown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from batch.completions.cards import Card, Support
from batch.domain.errors import InvalidConfiguration
from batch.domain.limits import Limits
from batch.providers.presets import CardFields, LimitFields, Preset, check_feature, fits
from batch.providers.prices import Price, package_context, package_price
from batch.settings import LaunchConfig, ProviderConfig

DEFAULT_QUEUE = "calls"

_RATES = tuple(name for name in LimitFields.model_fields if "_per_" in name)


@dataclass(slots=True)
class Provider:
    """What the rest of the program asks of a provider. `name` is the [providers.NAME] or the preset's name."""

    name: str
    preset: Preset
    config: ProviderConfig
    environment: Callable[[str], str | None]
    listed: tuple[str, ...] = ()  # model ids read from the server itself
    launched_urls: tuple[str, ...] = ()  # of engines that this process started
    _support: dict[str, Support] = field(default_factory=dict)
    _fields: dict[str, Any] = field(default_factory=dict)
    _cards: dict[str, Card] = field(default_factory=dict)
    _prices: dict[str, Price | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._support, self._fields = _capabilities(self.name, self.config.capabilities)
        plan = self.plan
        if plan is not None and plan not in self.preset.plans:
            known = ", ".join(self.preset.plans) or "none"
            raise InvalidConfiguration(
                f"providers.{self.name}.plan: no plan called {plan} (there are: {known})", param="plan"
            )

    # addresses

    @property
    def base_urls(self) -> tuple[str, ...]:
        config = self.config
        given = tuple(config.base_urls) or ((config.base_url,) if config.base_url else ())
        default = (self.preset.base_url,) if self.preset.base_url else ()
        return given or self.launched_urls or (default if self.config.launch is None else ())

    @property
    def engine(self) -> str | None:
        """The engine's name ("vllm", …) for self-hosted ones, else None."""
        return self.preset.name if self.preset.kind == "engine" else None

    @property
    def queue(self) -> str:
        """A managed engine has one of its own, so that only the workers that run it serve it."""
        return self.config.queue or (f"engine-{self.name}" if self.config.launch else DEFAULT_QUEUE)

    @property
    def launch(self) -> LaunchConfig | None:
        return self.config.launch

    @property
    def defaults(self) -> Mapping[str, Any]:
        """Body keys merged where a line has none."""
        return self.config.defaults

    # the credential

    @property
    def key_id(self) -> str:
        """The name of the credential, never the key: "env:XAI_API_KEY", "file:/run/secrets/mx4" or "none"."""
        if self.config.api_key_file is not None:
            return f"file:{self.config.api_key_file}"
        name = self._key_variable
        if name is None or (not self.preset.auth.required and not self.config.api_key_env):
            return "none"
        return f"env:{name}"

    @property
    def _key_variable(self) -> str | None:
        return self.config.api_key_env or self.preset.auth.env

    def api_key(self) -> str | None:
        """The key, read anew each time so that a mended file or variable is seen. None when there is none."""
        if self.config.api_key_file is not None:
            return _read_key(self.config.api_key_file)
        name = self._key_variable
        return self.environment(name) if name else None

    @property
    def missing_key(self) -> str | None:
        """The variable or file to set before this provider can serve; None when nothing is missing."""
        if self.key_id == "none" or self.api_key() is not None:
            return None
        return self.key_id.partition(":")[2]

    def auth_headers(self) -> dict[str, str]:
        """The header that carries the key, and the preset's own headers. For the wire only: never log it."""
        headers = dict(self.preset.headers)
        key = self.api_key()
        if key:
            auth = self.preset.auth
            headers[auth.header] = f"{auth.scheme} {key}".strip()
        return headers

    # what it can do, allows and costs

    @property
    def plan(self) -> str | None:
        return self.config.plan or self.preset.plan

    def card(self, model: str, learned: Mapping[str, Any] | None = None) -> Card:
        """The capability card for `model`. `learned` is the lane's: {"support": {feature: value}}."""
        card = self._cards.get(model)
        if card is None:
            card = self._cards[model] = self._make_card(model)
        rows = learned and learned.get("support")
        return card.with_support({name: Support(value) for name, value in rows.items()}) if rows else card

    def _make_card(self, model: str) -> Card:
        preset = self.preset
        support, fields = dict(preset.support), preset.card.given()
        for row in preset.model_rows:
            if fits(row.match, model):
                support.update(row.support)
                fields.update(row.card.given())
        support.update(self._support)
        fields.update(self._fields)
        if self.config.stream is not None:
            fields["stream"] = self.config.stream
        if "context_tokens" not in fields and preset.prices:
            fields["context_tokens"] = package_context(preset.prices, model)
        return Card(provider=self.name, model=model, support=support, default=preset.default, **fields)

    def limits(self, model: str, learned: Mapping[str, Any] | None = None) -> Limits:
        """The limits of one lane. `learned["limits"]` (from headers) wins over the preset, and lowers the user's."""
        values, sources = self._stated_limits(model)
        configured = {name: values[name] for name in values if name in _RATES and sources.get(name) == "config"}
        stated = Limits(**values, sources=sources, configured=configured)
        return stated.with_learned((learned or {}).get("limits") or {})

    def _stated_limits(self, model: str) -> tuple[dict[str, Any], dict[str, str]]:
        preset = self.preset
        values = preset.limits.given()
        for row in preset.model_rows:
            if fits(row.match, model):
                values.update(row.limits.given())
        if self.plan is not None:
            for stated in preset.plans[self.plan].limits:
                if fits(stated.match, model):
                    values.update(stated.given())
        sources = dict.fromkeys((name for name in values if name in (*_RATES, "concurrency")), "preset")
        given = {
            name: value
            for name in ("concurrency", *_RATES)
            if (value := getattr(self.config, name, None)) is not None
        }
        for kind in ("requests_per_", "tokens_per_"):  # who states one rate of a kind knows them all
            if any(kind in name for name in given):
                values = {name: value for name, value in values.items() if kind not in name}
                sources = {name: source for name, source in sources.items() if kind not in name}
        return values | given, sources | dict.fromkeys(given, "config")

    def price(self, model: str) -> Price | None:
        """Dollars per million tokens: batchmill.toml, then genai-prices. None: unknown."""
        if model not in self._prices:
            self._prices[model] = self._find_price(model)
        return self._prices[model]

    def _find_price(self, model: str) -> Price | None:
        stated = self.config.price.get(model) or self.config.price.get("*")
        if stated is not None:
            return Price(stated.input, stated.output, stated.cached)
        return package_price(self.preset.prices, model) if self.preset.prices else None

    def lists(self, model: str) -> bool:
        """True when the configuration or the server itself names exactly this id."""
        return model in self.config.models or model in self.listed

    def serves(self, model: str) -> bool:
        """False when the configuration names this provider's models and `model` is none of them."""
        return not self.config.models or model in self.config.models


def _read_key(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def _capabilities(name: str, rows: Mapping[str, Any]) -> tuple[dict[str, Support], dict[str, Any]]:
    """Split [providers.NAME.capabilities] into support rows and card fields; both are checked."""
    fields = {key: value for key, value in rows.items() if key in CardFields.model_fields}
    support: dict[str, Support] = {}
    place = f"providers.{name}.capabilities"
    try:
        for key, value in rows.items():
            if key not in fields:
                check_feature(key)
                support[key] = Support(value)
        return support, CardFields.model_validate(fields).given()
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in fault["loc"])
        raise InvalidConfiguration(f"{place}.{where}: {fault['msg']}", param=place) from None
    except ValueError as error:
        raise InvalidConfiguration(f"{place}: {error}", param=place) from None
