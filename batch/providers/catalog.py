"""The catalog: which providers there are and which of them serves a requested model.

Owns: zero configuration by key variables, routes, model resolution (the order in docs/providers.md).
May not touch: the network, the database. A wrong configuration raises InvalidConfiguration at start,
a model that nobody serves raises UnknownModel, which lists the candidates and the key to set.
"""

from __future__ import annotations

import difflib
import math
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from urllib.parse import urlsplit

from batch.domain.errors import InvalidConfiguration, UnknownModel
from batch.providers.presets import Preset, load_preset, preset_names
from batch.providers.provider import Provider
from batch.settings import ProviderConfig, RouteConfig, Settings, environment_value, nearest, parse_duration

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1", "0.0.0.0"})  # noqa: S104 - compared, never bound
GENERIC_PRESET = "openai-compatible"


@dataclass(frozen=True, slots=True)
class Hop:
    provider: str
    model: str


@dataclass(frozen=True, slots=True)
class Route:
    """Providers in the order to try. `fallback`: "on_failure", "never" or "on_wait:30m"."""

    hops: tuple[Hop, ...]
    fallback: str = "on_failure"


@dataclass(frozen=True, slots=True)
class ModelInfo:
    id: str
    provider: str
    owned_by: str


class Catalog:
    """All configured providers. Cheap to ask; resolve() answers are cached until listings change."""

    def __init__(self, providers: Mapping[str, Provider], routes: Sequence[RouteConfig] = ()) -> None:
        self.providers: dict[str, Provider] = dict(providers)
        self.routes = tuple(routes)
        self.ask_again_at = -math.inf  # monotonic; providers/models.py
        self._resolved: dict[str, Route] = {}

    @classmethod
    def from_settings(cls, settings: Settings, environ: Mapping[str, str] | None = None) -> Catalog:
        """Providers of batchmill.toml plus each preset whose key variable is set. `environ` is for tests."""
        lookup: Callable[[str], str | None] = environment_value
        if environ is not None:
            given = dict(environ)
            lookup = lambda name: given.get(name) or None  # noqa: E731
        providers = {
            name: Provider(name, _preset_for(name, config), config, lookup)
            for name, config in settings.providers.items()
        }
        claimed = {provider.key_id for provider in providers.values()}
        for name in preset_names():
            preset = load_preset(name)
            variable = preset.auth.env
            if name in providers or variable is None or lookup(variable) is None or preset.base_url is None:
                continue
            if f"env:{variable}" not in claimed:
                providers[name] = Provider(name, preset, ProviderConfig(), lookup)
        catalog = cls(providers, settings.routes)
        catalog._check(settings)
        return catalog

    def _check(self, settings: Settings) -> None:
        for provider in self.providers.values():
            _check_addresses(provider, settings)
        for index, route in enumerate(self.routes):
            for entry in route.providers:
                name = entry.partition("/")[0]
                if name not in self.providers and name not in preset_names():
                    mend = nearest(name, (*self.providers, *preset_names()))
                    text = f"routes[{index}].providers: {name}: no such provider{mend}"
                    raise InvalidConfiguration(text, param="routes")

    # resolution

    def resolve(
        self, model: str, *, providers: Sequence[str] | None = None, allowed: Sequence[str] | None = None
    ) -> Route:
        """Who serves `model`, in order.

        `providers` (a batch's or a line's own choice) overrides the routes: NAME or NAME/its-model.
        `allowed` is the project's list of provider names; hops elsewhere are left out. Raises
        UnknownModel with candidates when nothing is left.
        """
        route = self._choose(model, providers) if providers else self._resolve(model)
        if allowed is None:
            return route
        hops = tuple(hop for hop in route.hops if any(fnmatchcase(hop.provider, name) for name in allowed))
        if not hops:
            names = ", ".join(dict.fromkeys(hop.provider for hop in route.hops))
            raise UnknownModel(
                f"model {model}: served by {names}, but this project may use only "
                f"{', '.join(allowed) or 'no provider'}",
                param="model",
            )
        return Route(hops, route.fallback)

    def _choose(self, model: str, entries: Sequence[str]) -> Route:
        matching = self._route_for(model)
        hops = tuple(_hop(entry, model) for entry in entries)
        for hop in hops:
            if hop.provider not in self.providers:
                raise UnknownModel(self._no_provider(hop.provider), param="providers")
        return Route(hops, matching.fallback if matching else "on_failure")

    def _resolve(self, model: str) -> Route:
        route = self._resolved.get(model)
        if route is None:
            route = self._find(model)
            if len(self._resolved) > 10_000:  # requested names come from users
                self._resolved.clear()
            self._resolved[model] = route
        return route

    def _find(self, model: str) -> Route:
        """Exact route, exact listing, glob route, owned id, provider prefix, slug, the only provider."""
        providers = list(self.providers.values())
        route = self._route_for(model)
        listing = [provider for provider in providers if provider.lists(model)]
        if route is not None and (route.match == model or len(listing) != 1):
            return self._follow(route, model)
        owners = [p for p in providers if p.preset.owns(model) and not p.preset.owns_slugs and p.serves(model)]
        for found in (listing, owners):
            if len(found) > 1:
                raise UnknownModel(self._ambiguous(model, found), param="model")
            if found:
                return Route((Hop(found[0].name, model),))
        name, _, own_model = model.partition("/")
        if own_model and name in self.providers:
            return Route((Hop(name, own_model),))
        slugs = [p for p in providers if p.preset.owns_slugs and model.startswith("@")]
        only = [p for p in providers if len(providers) == 1 and p.serves(model) and not self._is_foreign(p, model)]
        if not (slugs or only):
            raise UnknownModel(self._explain(model), param="model")
        return Route((Hop((slugs or only)[0].name, model),))

    def _route_for(self, model: str) -> RouteConfig | None:
        exact = next((route for route in self.routes if route.match == model), None)
        return exact or next((route for route in self.routes if fnmatchcase(model, route.match)), None)

    def _follow(self, route: RouteConfig, model: str) -> Route:
        hops = [_hop(entry, model) for entry in route.providers]
        configured = tuple(hop for hop in hops if hop.provider in self.providers)
        if not configured:
            hints = "; ".join(_set_hint(hop.provider) for hop in hops)
            raise UnknownModel(
                f'model {model}: no provider of the route "{route.match}" is configured: {hints}', param="model"
            )
        return Route(configured, route.fallback)

    def fallback_wait_s(self, hops: Sequence[Hop]) -> float | None:
        """After how long a wait lines with these hops move on ("on_wait:30m"); None when only failures move them."""
        for route in self.routes:
            if route.fallback.startswith("on_wait:") and all(_is_hop_of(route, hop) for hop in hops):
                return parse_duration(route.fallback.removeprefix("on_wait:"))
        return None

    def secrets(self) -> list[str]:
        """Every configured key, read now, for scrubbing texts. Never log or keep the answer."""
        return [key for provider in self.providers.values() if (key := provider.api_key())]

    # listings

    def models(self) -> list[ModelInfo]:
        """Ids that are known by name: configured, read from servers, and routes without wildcards."""
        found: dict[str, ModelInfo] = {}
        for provider in self.providers.values():
            for model in (*provider.config.models, *provider.listed):
                found.setdefault(model, ModelInfo(model, provider.name, provider.preset.title))
        for route in self.routes:
            name = route.providers[0].partition("/")[0]
            if not any(sign in route.match for sign in "*?[") and name in self.providers:
                found.setdefault(route.match, ModelInfo(route.match, name, self.providers[name].preset.title))
        return sorted(found.values(), key=lambda model: model.id)

    def set_listed(self, name: str, models: Iterable[str]) -> None:
        """Take over the ids that a server said it serves (providers/models.py reads them)."""
        self.providers[name].listed = tuple(models)
        self._resolved.clear()

    # words

    def _explain(self, model: str) -> str:
        foreign = self._foreign_prefix(model)
        if foreign:
            return f"model {model}: {self._no_provider(foreign)}"
        if model.startswith("@"):
            return f"model {model}: @slugs belong to modelux; {_set_hint('modelux')}"
        owner = self._preset_owner(model)
        if owner is not None and owner not in self.providers:
            return f"model {model}: {owner} serves it; {_set_hint(owner)}{self._near_models(model)}"
        if not self.providers:
            variables = ", ".join(v for n in preset_names() if (v := load_preset(n).auth.env))
            return f"model {model}: no provider is configured; set one of {variables}, or add [providers.NAME]"
        candidates = ", ".join(f"{name}/{model}" for name in self.providers)
        return (
            f"model {model}: no configured provider lists it; write {candidates}, or add a [[routes]] entry"
            f"{self._near_models(model)}"
        )

    def _ambiguous(self, model: str, providers: Sequence[Provider]) -> str:
        names = [provider.name for provider in providers]
        candidates = " or ".join(f"{name}/{model}" for name in names)
        return f"model {model}: {', '.join(names)} all serve it; write {candidates}, or add a [[routes]] entry"

    def _near_models(self, model: str) -> str:
        known = [info.id for info in self.models()]
        near = difflib.get_close_matches(model, known, n=3, cutoff=0.6)
        return f" (did you mean {' or '.join(near)}?)" if near else ""

    def _is_foreign(self, only: Provider, model: str) -> bool:
        """True when the only provider owns a namespace of its own and `model` is plainly in another's."""
        own_namespace = only.preset.models is not None and only.config.base_url is None
        owner = self._preset_owner(model)
        return own_namespace and (self._foreign_prefix(model) is not None or owner not in (None, only.preset.name))

    def _preset_owner(self, model: str) -> str | None:
        return next((name for name in preset_names() if load_preset(name).owns(model)), None)

    def _foreign_prefix(self, model: str) -> str | None:
        """The first segment, where it names a preset that is not configured and nobody else's namespace."""
        name, slash, _ = model.partition("/")
        known = slash and name in preset_names() and name not in self.providers
        gateway = any(p.preset.kind in ("gateway", "engine", "generic") for p in self.providers.values())
        return name if known and not gateway else None

    def _no_provider(self, name: str) -> str:
        if name in preset_names():
            return f"provider {name} is not configured; {_set_hint(name)}"
        configured = ", ".join(self.providers) or "none"
        return f"no provider called {name}{nearest(name, (*self.providers, *preset_names()))}; configured: {configured}"


def _hop(entry: str, model: str) -> Hop:
    """NAME or NAME/its-own-model."""
    name, _, own_model = entry.partition("/")
    return Hop(name, own_model or model.removeprefix(f"{name}/"))


def _is_hop_of(route: RouteConfig, hop: Hop) -> bool:
    for entry in route.providers:
        name, _, own_model = entry.partition("/")
        if name == hop.provider and (own_model == hop.model if own_model else fnmatchcase(hop.model, route.match)):
            return True
    return False


def _preset_for(name: str, config: ProviderConfig) -> Preset:
    if config.preset is not None:
        return load_preset(config.preset)
    if config.engine is not None:
        return load_preset(GENERIC_PRESET if config.engine == "openai" else config.engine)
    return load_preset(name if name in preset_names() else GENERIC_PRESET)


def _check_addresses(provider: Provider, settings: Settings) -> None:
    place = f"providers.{provider.name}.base_url"
    if not provider.base_urls and provider.launch is None:
        hint = f" ({provider.preset.base_url_hint})" if provider.preset.base_url_hint else ""
        raise InvalidConfiguration(f"{place}: missing{hint}", param=place)
    for url in provider.base_urls:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidConfiguration(f"{place}: not an http or https URL", param=place)
        if parts.username or parts.password:
            raise InvalidConfiguration(
                f"{place}: a key in the URL would stand in logs; use api_key_env or api_key_file", param=place
            )
        if _is_this_server(parts.hostname, parts.port or (443 if parts.scheme == "https" else 80), settings):
            raise InvalidConfiguration(
                f"{place}: points at this Batchmill server itself (port {settings.port})", param=place
            )


def _is_this_server(host: str, port: int, settings: Settings) -> bool:
    if settings.port == 0 or port != settings.port:
        return False
    own = {settings.host.lower(), socket.gethostname().lower()} | LOOPBACK
    return host.lower() in own


def _set_hint(name: str) -> str:
    variable = load_preset(name).auth.env if name in preset_names() else None
    return f"set {variable}" if variable else f"add [providers.{name}] with its base_url"
