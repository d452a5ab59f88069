"""The preset files: each is whole and checked, and the first-class ones say what their vendors' pages say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from batch.completions.cards import Support
from batch.domain.errors import InvalidConfiguration
from batch.domain.limits import Limits
from batch.domain.outcome import Usage
from batch.providers.catalog import Catalog
from batch.providers.learned import Evidence, learn_support
from batch.providers.presets import load_preset, parse_preset, preset_names
from batch.providers.prices import Price
from batch.providers.provider import Provider
from batch.settings import Settings

FIRST_CLASS = {"mx4", "modelbox", "megallm", "xai", "modelux"}
HOSTED = {
    "openai", "azure", "groq", "together", "fireworks", "mistral", "deepseek", "openrouter", "cerebras", "anthropic",
    "gemini",
}  # fmt: skip
ENGINES = {"vllm", "sglang", "llamacpp", "ollama", "tgi", "transformers"}


def provider(name: str, **config: Any) -> Provider:
    settings = Settings(providers={name: {"base_url": "http://h/v1", **config}})  # type: ignore[dict-item]
    return Catalog.from_settings(settings, environ={}).providers[name]


def test_all_presets_are_there() -> None:
    assert set(preset_names()) == FIRST_CLASS | HOSTED | ENGINES | {"openai-compatible"}


@pytest.mark.parametrize("name", preset_names())
def test_each_preset_is_valid_and_says_what_to_know(name: str) -> None:
    preset = load_preset(name)
    assert preset.notes
    assert preset.title
    assert (preset.kind == "engine") == (preset.engine is not None)
    provider(name).card("some-model")


@pytest.mark.parametrize(
    ("name", "model", "rows"),
    [
        ("mx4", "m", {"n": "unlisted", "seed": "unlisted", "json_schema": "unlisted", "top_p": "native"}),
        ("modelbox", "m", {"n": "native", "seed": "native", "logprobs": "native", "vision": "unlisted"}),
        ("megallm", "m", {"n": "unlisted", "json_schema": "native", "presence_penalty": "unlisted"}),
        ("xai", "grok-3", {"n": "native", "seed": "native", "stop": "native", "presence_penalty": "native"}),
        ("xai", "grok-4.3", {"stop": "rejected", "presence_penalty": "rejected", "frequency_penalty": "rejected"}),
        ("xai", "grok-4.20-0309-non-reasoning", {"stop": "native"}),
        ("xai", "grok-3-mini", {"stop": "rejected"}),
        ("xai", "grok-code-fast-1", {"stop": "rejected"}),
        ("modelux", "@a", {"n": "unlisted", "seed": "unlisted", "json_object": "native", "json_schema": "native"}),
        ("groq", "llama-3.1-8b-instant", {"n": "rejected", "logprobs": "rejected", "seed": "native"}),
        ("openai", "o3", {"stop": "rejected", "max_tokens": "rejected"}),
        ("openai", "gpt-4o", {"stop": "native"}),
        ("anthropic", "claude-haiku-4-5", {"n": "rejected", "seed": "ignored", "temperature": "native"}),
        ("anthropic", "claude-opus-4-7", {"temperature": "rejected", "top_p": "rejected"}),
        ("transformers", "m", {"n": "ignored", "json_schema": "ignored", "seed": "ignored", "stop": "native"}),
    ],
)  # fmt: skip
def test_capabilities_hold_per_provider_and_model(name: str, model: str, rows: dict[str, str]) -> None:
    card = provider(name).card(model)
    assert {feature: card.of(feature).value for feature in rows} == rows


def test_cards_carry_the_quirks() -> None:
    assert provider("mistral").card("m").seed_field == "random_seed"
    assert provider("modelux").card("m").cache_bypass == {"mlx:cache": {"skip": True}}
    assert provider("xai").card("m").strip == ("tools.function.strict", "messages.name")
    assert provider("groq").card("openai/gpt-oss-20b").schema_mode == "strict"
    assert provider("groq").card("other").schema_mode == "schema"
    assert provider("vllm").card("m").n_with_temperature_0 is Support.REJECTED
    assert provider("vllm").card("m").seed_per_choice
    assert not provider("sglang").card("m").seed_per_choice
    assert provider("fireworks").card("m").inject == {"context_length_exceeded_behavior": "error"}


def test_the_configuration_overrides_rows_and_fields() -> None:
    card = provider("sglang", capabilities={"seed": "native", "n_max": 7}, stream=True).card("m")
    assert (card.of("seed"), card.n_max, card.stream) == (Support.NATIVE, 7, True)


def test_a_file_of_ones_own_overrides_any_field(tmp_path: Path) -> None:
    """What it does not say stays the preset's."""
    own = tmp_path / "team.toml"
    own.write_text('extends="xai"\nauth.header = "x-key"\nerrors.rate_codes = ["slow"]\nrate_headers.requests = "day"')
    settings = Settings(providers={"team": {"preset": str(own), "base_url": "http://h/v1"}})  # type: ignore[dict-item]
    made = Catalog.from_settings(settings, environ={}).providers["team"]
    assert (made.preset.auth.header, made.preset.auth.env) == ("x-key", "XAI_API_KEY")
    assert (made.preset.rate_headers.requests, made.preset.rate_headers.tokens) == ("day", "minute")
    assert made.preset.errors.rate_codes == ("slow",) and made.preset.errors.bad_key_in_400
    assert made.card("grok-4.3").of("stop") is Support.REJECTED
    with pytest.raises(InvalidConfiguration) as caught:
        load_preset(str(tmp_path / "other.toml"))
    assert "other.toml" in caught.value.message


def test_what_was_learned_overrides_both() -> None:
    made = provider("modelbox")
    learned = {"support": {"n": "ignored", "max_tokens": "rejected"}}
    card = made.card("m", learned)
    assert card.of("n") is Support.IGNORED
    assert card.max_tokens_field == "max_completion_tokens"
    assert made.card("m").of("n") is Support.NATIVE


def test_traffic_demotes_and_only_a_probe_lifts_a_demotion() -> None:
    made = provider("modelbox")
    assert learn_support({}, made.card("m"), {"seed": "native"}) == {}
    patch = learn_support({"support": {"n": "ignored"}}, made.card("m"), {"seed": "rejected"})
    assert patch == {"support": {"n": "ignored", "seed": "rejected"}}
    held = made.card("m", patch)
    assert learn_support(patch, held, {"seed": "native"}) == {}
    assert learn_support(patch, held, {"seed": "native"}, "probe")["support"]["seed"] == "native"
    assert learn_support({}, provider("mx4").card("m"), {"n": "native"}) == {"support": {"n": "native"}}


def test_one_stray_answer_demotes_nothing() -> None:
    """A refusal by name counts at once; "ignored" from the third answer on, while most answers show it."""
    evidence = Evidence()
    assert evidence.weigh({"stop": "rejected"}) == {"stop": "rejected"}
    assert [evidence.weigh({"n": "ignored"}) for _ in range(3)] == [{}, {}, {"n": "ignored"}]
    for _ in range(4):
        evidence.weigh({"json_schema": "native"})
    assert [evidence.weigh({"json_schema": "ignored"}) for _ in range(4)] == [{}] * 4


def rates(limits: Limits) -> dict[str, float]:
    return {name: value for name, value in limits.to_json().items() if "_per_" in name}


def test_plans_state_the_limits() -> None:
    assert rates(provider("mx4").limits("m")) == {
        "requests_per_minute": 100, "requests_per_hour": 1000, "tokens_per_minute": 10_000,
    }  # fmt: skip
    tiers = [provider("xai", plan=f"T{tier}").limits("grok-4.3") for tier in range(5)]
    assert [tier.requests_per_second for tier in tiers] == [30, 40, 60, 100, 166]
    assert [tier.tokens_per_minute for tier in tiers] == [10e6, 15e6, 25e6, 45e6, 85e6]
    assert all(tier.hard_second and tier.charge == "actual" for tier in tiers)
    assert not provider("xai").limits("grok-3").has_rate
    assert rates(provider("modelux").limits("m")) == {"requests_per_minute": 600}
    assert provider("deepseek").limits("deepseek-v4-pro").concurrency == 500


def test_stated_rates_replace_the_presets_of_the_same_kind() -> None:
    """A bigger MX4 plan must not be held to the starter's thousand an hour."""
    limits = provider("mx4", requests_per_minute=2000).limits("m")
    assert rates(limits) == {"requests_per_minute": 2000, "tokens_per_minute": 10_000}
    assert limits.sources == {"requests_per_minute": "config", "tokens_per_minute": "preset"}


def test_headers_correct_the_preset() -> None:
    limits = provider("mx4").limits("m", {"limits": {"requests_per_minute": 500.0}})
    assert limits.requests_per_minute == 500
    assert limits.sources["requests_per_minute"] == "headers"


def test_prices_come_from_the_configuration_then_the_package() -> None:
    stated = provider("xai", price={"*": {"input": 1, "output": 2, "cached": 0.5}})
    price = stated.price("grok-3")
    assert price is not None
    assert price.of(Usage(1_000_000, 400_000, 1_000_000, 0)) == pytest.approx(0.6 + 0.2 + 2.0)
    packaged = provider("openai").price("gpt-4o-mini")
    assert packaged is not None
    assert packaged.input > 0
    assert packaged.cached is not None
    assert provider("mx4").price("m") is None
    assert provider("xai").price("no-such-model") is None


def test_a_long_prompt_is_priced_by_its_tier() -> None:
    price = Price(1.0, 2.0, tiers=((200_000, Price(2.0, 4.0)),))
    assert price.of(Usage(200_000, 0, 0, 0)) == pytest.approx(0.2)
    assert price.of(Usage(200_001, 0, 0, 0)) == pytest.approx(0.400002)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"title": "x", "suport": {}}, "p.toml: suport: no such key (did you mean support?)"),
        ({"title": "x", "support": {"sed": "native"}}, "did you mean seed"),
        ({"title": "x", "card": {"n_maxx": 1}}, "p.toml: card.n_maxx: no such key (did you mean n_max?)"),
        ({"title": "x", "models": "("}, "not a regular expression"),
        ({"title": "x", "plan": "gold"}, "no plan called gold"),
        ({}, "p.toml: title"),
    ],
)
def test_a_faulty_preset_names_its_file_key_and_mend(values: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidConfiguration) as caught:
        parse_preset(values, "p", "p.toml")
    assert words in caught.value.message
