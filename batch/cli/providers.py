"""`batchmill providers`: what is configured, how it fares, and what it really does.

Owns: the three views: configuration, --live (the database's and the workers' view), check (asks the
providers themselves, --probe with a few tiny calls whose findings are kept).
"""

from __future__ import annotations

import asyncio
from contextlib import closing
from dataclasses import asdict
from typing import Annotated, Any

import typer

from batch.cli import exits, options
from batch.cli.client import Server
from batch.cli.console import note, say, say_facts, say_json
from batch.cli.home import open_home
from batch.cli.wording import amount, clock_time, count, dollars, key_hint, listing, plural
from batch.clock import SYSTEM_CLOCK
from batch.domain.errors import InvalidRequest, NotFound
from batch.operations.provider_forecast import limit_words, rate_words
from batch.operations.providers_view import view_providers
from batch.providers.adapter import make_adapter
from batch.providers.catalog import Catalog
from batch.providers.learned import learn_support
from batch.providers.models import list_models
from batch.providers.probe import ProbeReport, probe_provider
from batch.providers.provider import Provider
from batch.settings import Settings, load_settings
from batch.storage import lanes


def providers(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME] [check]", help="One provider; `check` asks it.")
    ] = None,
    live: Annotated[bool, typer.Option("--live", help="Limits, use, pauses and errors as they are now.")] = False,
    probe: Annotated[
        bool, typer.Option("--probe", help="With check: a few tiny calls that learn capabilities.")
    ] = False,
    model: Annotated[str | None, typer.Option("--model", help="The model to probe.")] = None,
    as_json: options.Json = False,
    server: options.Server = None,
    api_key: options.ApiKey = None,
    data_dir: options.DataDir = None,
    config: options.Config = None,
) -> None:
    """Show the providers: configuration and missing keys; live limits and pauses; what each really does."""
    names = list(words or [])
    asks = "check" in names
    names = [name for name in names if name != "check"]
    if len(names) > 1 or (probe and not asks):
        raise typer.BadParameter("write: batchmill providers [NAME] [check [--probe]]")
    settings = load_settings(config, data_dir=data_dir)
    catalog = Catalog.from_settings(settings)
    name = names[0] if names else None
    if live:
        _show_live(_live(settings, server, api_key), name, as_json)
        return
    chosen = [_provider(catalog, name)] if name else list(catalog.providers.values())
    if asks:
        _tell_checks([_ask(settings, catalog, provider, model, probe=probe) for provider in chosen], as_json)
    else:
        _show_configured(chosen, as_json)


def _provider(catalog: Catalog, name: str) -> Provider:
    if name not in catalog.providers:
        known = ", ".join(catalog.providers) or "none"
        raise NotFound(f"no provider called {name} is configured (there are: {known})")
    return catalog.providers[name]


def _show_configured(chosen: list[Provider], as_json: bool) -> None:
    if as_json:
        say_json([_describe(provider) for provider in chosen])
        return
    if not chosen:
        note("no provider is configured: set a key such as XAI_API_KEY or OPENAI_API_KEY, or write batchmill.toml")
    for provider in chosen:
        limits = provider.limits("*")
        words = rate_words(limits) + ([f"{count(limits.concurrency)} at once"] if limits.concurrency else [])
        key = f"no key: {key_hint(provider.missing_key)}" if provider.missing_key else f"key from {provider.key_id}"
        key = "no key needed" if provider.key_id == "none" else key
        say_facts(
            [
                (f"{provider.name:<12}", f"{', '.join(provider.base_urls) or 'launched by the workers'}   {key}"),
                ("", "limits " + ", ".join(words) if words else "limits unknown: found while running"),
                *([("", f"models {', '.join(provider.config.models)}")] if provider.config.models else []),
            ]
        )


def _describe(provider: Provider) -> dict[str, Any]:
    return {
        "name": provider.name,
        "title": provider.preset.title,
        "engine": provider.engine,
        "base_urls": list(provider.base_urls),
        "key": provider.key_id,
        "missing_key": provider.missing_key,
        "plan": provider.plan,
        "queue": provider.queue,
        "models": list(provider.config.models or provider.listed),
        "limits": provider.limits("*").to_json(),
    }


def _live(settings: Settings, server: str | None, api_key: str | None) -> list[dict[str, Any]]:
    """From a server when one is named, else from this data directory's database."""
    if server is not None:
        with Server(server, api_key) as api:
            return api.providers()
    with closing(open_home(settings)) as world:
        return view_providers(world)


def _show_live(found: list[dict[str, Any]], name: str | None, as_json: bool) -> None:
    chosen = [row for row in found if name in (None, row["provider"])]
    if as_json:
        say_json(chosen)
        return
    if not chosen:
        note("no provider is configured or was ever used" if name is None else f"{name}: not configured and never used")
    for row in chosen:
        state = f"no key: {key_hint(row['missing_key'])}" if row["missing_key"] else ""
        state = state or ("" if row["models"] else "not used yet")
        say(f"{row['provider']}   {state}".rstrip(), style="bold")
        for lane in row["models"]:
            say_facts(_live_rows(lane), indent="  ", styles={"paused": "bold yellow", "down": "bold yellow"})
        for replica in row.get("replicas", []):  # kept from callers with a key
            say_facts([_replica_row(replica)], indent="  ")


def _live_rows(lane: dict[str, Any]) -> list[tuple[str, str]]:
    limits = [_limit_words(limit) for limit in lane["limits"]]
    rows = [(lane["model"], ", ".join(limits) or "limits unknown")]
    use = [f"{count(lane['in_flight'])} in flight" + (f" of {count(lane['window'])}" if lane["window"] else "")]
    use.append(f"{count(lane['ready_lines'])} lines wait")
    if lane["share_used"] is not None:
        use.append(f"{100 * lane['share_used']:.0f} % of the limit used")
    if lane["calls"]:
        use.append(f"{count(lane['calls'])} calls, {count(lane['refused'])} refused")
    rows.append(("", "   ".join(use)))
    if lane["paused"]:
        until = lane["paused"]["until"]
        again = f"until {clock_time(until)}" if until < 4e9 else "until resumed"
        rows.append(("paused", f"{lane['paused']['reason'] or lane['paused']['code']} ({again})"))
    if lane["is_down"]:
        rows.append(("down", "it does not answer; one line tries again, the others wait"))
    if lane["local_pace"]:
        rows.append(("", "paced without Redis, at half of each worker's share"))
    return rows


def _replica_row(replica: dict[str, Any]) -> tuple[str, str]:
    words = ["up" if replica["up"] else f"OUT: {replica['reason']}", f"{count(replica['in_flight'])} in flight"]
    if replica["running"] is not None:
        words.append(f"runs {replica['running']:g}, {replica['waiting']:g} wait")
    if replica["cache_used"] is not None:
        words.append(f"cache {100 * replica['cache_used']:.0f} %")
    return replica["base_url"], "   ".join([*words, replica["version"]])


def _limit_words(limit: dict[str, Any]) -> str:
    words = "at once" if limit["name"] == "concurrency" else limit_words(limit["name"])
    return f"{amount(limit['value'])} {words} ({limit['source']})"


def _tell_checks(report: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        say_json(report)
    else:
        for row in report:
            _tell_check(row)
    if any(row["problem"] for row in report):
        raise exits.Leave(exits.LINES_FAILED)


def _ask(settings: Settings, catalog: Catalog, provider: Provider, model: str | None, *, probe: bool) -> dict[str, Any]:
    """The provider's models; with `probe`, the tiny calls are made, and what they show is kept."""
    row: dict[str, Any] = {"name": provider.name, "problem": None, "models": [], "probe": None}
    if provider.missing_key:
        return row | {"problem": f"no key: {key_hint(provider.missing_key)}"}
    listing = list_models(provider)
    row |= {"models": list(listing.models), "problem": listing.problem or None}
    if not probe:
        return row
    chosen = model or next(iter((*(provider.config.models or ()), *listing.models)), None)
    if chosen is None:
        raise InvalidRequest(f"{provider.name}: name a model to probe: --model ID")
    found = asyncio.run(_probe(settings, catalog, provider.name, chosen))
    if found.failure is None:
        _keep(settings, provider, chosen, found)
    problem = None if found.failure is None else f"{found.failure.kind}: {found.failure.message}"
    return row | {"problem": problem, "probe": {"model": chosen, **_probe_facts(found)}}


async def _probe(settings: Settings, catalog: Catalog, name: str, model: str) -> ProbeReport:
    adapter = make_adapter(catalog, name, settings)
    try:
        return await probe_provider(adapter, model, now=SYSTEM_CLOCK.now())
    finally:
        await adapter.close()


def _probe_facts(found: ProbeReport) -> dict[str, Any]:
    return {
        "findings": [asdict(finding) for finding in found.findings],
        "calls": found.calls,
        "served_model": found.served_model,
        "limits": found.limits,
        "tokens": found.usage.total_tokens,
        "cost_usd": found.cost_usd,
    }


def _keep(settings: Settings, provider: Provider, model: str, found: ProbeReport) -> None:
    """Save what the probe showed where the workers read it."""
    with closing(open_home(settings)) as world, world.db.write() as conn:
        lane_id = lanes.ensure_lane(conn, provider.name, provider.key_id, model, provider.queue)
        (row,) = lanes.get_lanes(conn, [lane_id])
        patch = learn_support(row.learned, provider.card(model, row.learned), found.support, "probe")
        if found.limits:
            patch["limits"] = {**(row.learned.get("limits") or {}), **found.limits}
        lanes.merge_facts(conn, lane_id, "learned", patch)


def _tell_check(row: dict[str, Any]) -> None:
    named = row["models"]
    models = f"{plural(len(named), 'model')}: {listing(named)}" if named else "lists no models"
    say_facts([(f"{row['name']:<12}", row["problem"] or f"answers, {models}")], styles={})
    probe = row["probe"]
    if not probe or not probe["findings"]:
        return
    served = f"{probe['model']}, served as {probe['served_model']}"
    cost = "price unknown" if probe["cost_usd"] is None else dollars(probe["cost_usd"])
    say(f"  {served}: {probe['calls']} calls, {count(probe['tokens'])} tokens, {cost}")
    say_facts([(finding["feature"], finding["words"]) for finding in probe["findings"]], indent="    ")
    note("kept: the next batch uses what was learned")
