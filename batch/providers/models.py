"""The models that a server says it serves, read from its /models.

Owns: one synchronous GET per provider, only when asked for, with short time limits.
May not touch: resolution (catalog.py); a server that does not answer leaves the catalog as it was.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from dataclasses import dataclass

import httpx

from batch.clock import Clock
from batch.domain.errors import UnknownModel
from batch.providers.adapter import join_url
from batch.providers.catalog import Catalog, Route
from batch.providers.provider import Provider

TIMEOUT_S = 3.0
MAX_MODELS = 10_000
ASK_EVERY_S = 60.0


@dataclass(frozen=True, slots=True)
class Listing:
    """What one provider answered. `problem` is empty when it listed its models."""

    provider: str
    models: tuple[str, ...] = ()
    problem: str = ""


def refresh_models(catalog: Catalog, names: Sequence[str] | None = None) -> list[Listing]:
    """Ask the named providers (default: every engine and generic server) and hand their ids to the catalog."""
    wanted = names or [name for name, p in catalog.providers.items() if p.preset.kind in ("engine", "generic")]
    listings = [list_models(catalog.providers[name]) for name in wanted]
    for listing in listings:
        if not listing.problem:
            catalog.set_listed(listing.provider, listing.models)
    return listings


def resolve_or_ask(
    catalog: Catalog,
    model: str,
    clock: Clock,
    *,
    providers: Sequence[str] | None = None,
    allowed: Sequence[str] | None = None,
) -> Route:
    """catalog.resolve; where nobody is known to serve `model`, engines are asked for theirs, at most once a minute."""
    try:
        return catalog.resolve(model, providers=providers, allowed=allowed)
    except UnknownModel:
        now = clock.monotonic()
        if providers or now < catalog.ask_again_at:
            raise
        catalog.ask_again_at = now + ASK_EVERY_S
        if not any(listing.models for listing in refresh_models(catalog)):
            raise
    return catalog.resolve(model, allowed=allowed)


def list_models(provider: Provider) -> Listing:
    """One provider's ids, of all its replicas. Never raises for what the network does."""
    found: dict[str, None] = {}
    problem = "no address"
    for base_url in provider.base_urls:
        try:
            found |= dict.fromkeys(_ask(provider, base_url))
            problem = ""
        except httpx.HTTPError as error:
            problem = f"no answer ({type(error).__name__})"
        except (ValueError, OSError) as error:
            problem = str(error)
    if found:
        problem = ""
    return Listing(provider.name, tuple(found)[:MAX_MODELS], problem)


def _ask(provider: Provider, base_url: str) -> list[str]:
    with httpx.Client(timeout=TIMEOUT_S, follow_redirects=False, verify=_tls_context(provider)) as client:
        answer = client.get(join_url(base_url, "/models"), headers=provider.auth_headers())
    if answer.status_code != 200:
        raise ValueError(f"HTTP {answer.status_code}")
    data = answer.json()
    entries = data.get("data") if isinstance(data, dict) else data
    if not isinstance(entries, list):
        raise ValueError("no list of models in the answer")
    return [str(entry["id"]) for entry in entries if isinstance(entry, dict) and entry.get("id")]


def _tls_context(provider: Provider) -> ssl.SSLContext | bool:
    tls = provider.config.tls
    if tls.ca is None and tls.cert is None:
        return True
    context = ssl.create_default_context(cafile=str(tls.ca) if tls.ca else None)
    if tls.cert is not None:
        context.load_cert_chain(str(tls.cert), str(tls.key) if tls.key else None)
    return context
