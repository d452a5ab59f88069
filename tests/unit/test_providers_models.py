"""The models of engines are read from the engines themselves, and a silent one changes nothing."""

from __future__ import annotations

from batch.providers.catalog import Catalog, Hop
from batch.providers.models import refresh_models
from batch.settings import Settings
from batch.simulator.server import start_simulator


def test_an_engines_models_are_listed_and_resolved() -> None:
    with start_simulator(personality="vllm") as simulator:
        tables = {
            "gpu": {"engine": "vllm", "base_urls": [simulator.base_url, "http://127.0.0.1:1/v1"]},
            "away": {"engine": "sglang", "base_url": "http://127.0.0.1:1/v1"},
        }
        catalog = Catalog.from_settings(Settings(providers=tables), environ={})  # type: ignore[arg-type]
        found = {listing.provider: listing for listing in refresh_models(catalog)}
    assert "Qwen/Qwen3-8B" in found["gpu"].models
    assert found["gpu"].problem == ""
    assert found["away"].models == ()
    assert found["away"].problem.startswith("no answer")
    assert catalog.resolve("Qwen/Qwen3-8B").hops == (Hop("gpu", "Qwen/Qwen3-8B"),)


def test_only_the_named_providers_are_asked() -> None:
    catalog = Catalog.from_settings(Settings(), environ={"XAI_API_KEY": "k"})
    assert refresh_models(catalog) == []
