"""Who serves a model: zero configuration, listings, routes, prefixes, slugs — and the words when nobody does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from batch.domain.errors import InvalidConfiguration, UnknownModel
from batch.providers.catalog import Catalog, Hop
from batch.settings import Settings


def catalog(*variables: str, **tables: Any) -> Catalog:
    return Catalog.from_settings(Settings(**tables), environ={name: f"key-of-{name}" for name in variables})


def hops(made: Catalog, model: str, **more: Any) -> list[tuple[str, str]]:
    return [(hop.provider, hop.model) for hop in made.resolve(model, **more).hops]


def refusal(made: Catalog, model: str, **more: Any) -> str:
    with pytest.raises(UnknownModel) as caught:
        made.resolve(model, **more)
    return caught.value.message


VLLM = {"engine": "vllm", "base_urls": ["http://gpu1:8000/v1", "http://gpu2:8000/v1"], "models": ["Qwen/Qwen3-8B"]}


def test_a_key_variable_is_all_that_a_preset_needs() -> None:
    made = catalog("XAI_API_KEY")
    assert hops(made, "grok-4.3") == [("xai", "grok-4.3")]
    provider = made.providers["xai"]
    assert provider.base_urls == ("https://api.x.ai/v1",)
    assert provider.key_id == "env:XAI_API_KEY"
    assert provider.missing_key is None


def test_several_keys_route_only_what_is_unambiguous() -> None:
    made = catalog("XAI_API_KEY", "MX4_API_KEY", "GROQ_API_KEY")
    assert hops(made, "grok-4.3") == [("xai", "grok-4.3")]
    assert hops(made, "mx4-atlas-core") == [("mx4", "mx4-atlas-core")]
    message = refusal(made, "some-model")
    assert "groq/some-model, mx4/some-model, xai/some-model" in message


def test_ids_with_a_slash_are_ids_first() -> None:
    """openai/gpt-oss-120b is Groq's own id, though a provider openai is configured."""
    made = catalog("OPENAI_API_KEY", "GROQ_API_KEY", providers={"local": VLLM})
    assert hops(made, "openai/gpt-oss-120b") == [("groq", "openai/gpt-oss-120b")]
    assert hops(made, "openai/gpt-4o") == [("openai", "gpt-4o")]
    assert hops(made, "Qwen/Qwen3-8B") == [("local", "Qwen/Qwen3-8B")]


def test_the_first_segment_may_name_the_provider() -> None:
    made = catalog("XAI_API_KEY", "MX4_API_KEY", providers={"local": VLLM})
    assert hops(made, "mx4/whatever") == [("mx4", "whatever")]
    assert hops(made, "local/Qwen/Qwen3-30B") == [("local", "Qwen/Qwen3-30B")]


def test_slugs_go_to_modelux_unless_another_lists_them() -> None:
    made = catalog("MODELUX_API_KEY", "XAI_API_KEY")
    assert hops(made, "@nightly") == [("modelux", "@nightly")]
    listed = catalog("MODELUX_API_KEY", providers={"local": {**VLLM, "models": ["@nightly"]}})
    assert hops(listed, "@nightly") == [("local", "@nightly")]
    assert "set MODELUX_API_KEY" in refusal(catalog("XAI_API_KEY"), "@nightly")


def test_routes_give_an_order_with_models_of_their_own() -> None:
    route = {"match": "mx4-*", "providers": ["mx4", "local/Qwen/Qwen3-8B"], "fallback": "on_wait:30m"}
    made = catalog("MX4_API_KEY", providers={"local": VLLM}, routes=[route])
    found = made.resolve("mx4-atlas-core")
    assert found.hops == (Hop("mx4", "mx4-atlas-core"), Hop("local", "Qwen/Qwen3-8B"))
    assert found.fallback == "on_wait:30m"


def test_an_exact_route_stands_before_a_listing_and_a_glob_behind_it() -> None:
    exact = {"match": "Qwen/Qwen3-8B", "providers": ["mx4"]}
    glob = {"match": "*", "providers": ["mx4"]}
    assert hops(catalog("MX4_API_KEY", providers={"local": VLLM}, routes=[exact]), "Qwen/Qwen3-8B")[0][0] == "mx4"
    assert hops(catalog("MX4_API_KEY", providers={"local": VLLM}, routes=[glob]), "Qwen/Qwen3-8B")[0][0] == "local"


def test_a_batch_may_choose_its_providers() -> None:
    made = catalog("MX4_API_KEY", "XAI_API_KEY", providers={"local": VLLM})
    assert hops(made, "m", providers=["local/Qwen/Qwen3-8B", "mx4"]) == [("local", "Qwen/Qwen3-8B"), ("mx4", "m")]
    assert hops(made, "xai/grok-4", providers=["xai"]) == [("xai", "grok-4")]
    assert "set GROQ_API_KEY" in refusal(made, "m", providers=["groq"])
    assert "did you mean local" in refusal(made, "m", providers=["locl"])


def test_a_project_may_be_held_to_some_providers() -> None:
    made = catalog("MX4_API_KEY", "XAI_API_KEY", routes=[{"match": "m", "providers": ["xai", "mx4"]}])
    assert hops(made, "m", allowed=["mx4"]) == [("mx4", "m")]
    assert "may use only mx4" in refusal(made, "grok-4", allowed=["mx4"])
    assert "no provider" in refusal(made, "grok-4", allowed=[])


def test_the_only_provider_takes_models_that_are_nobodys() -> None:
    assert hops(catalog("MODELBOX_API_KEY"), "gpt-4o") == [("modelbox", "gpt-4o")]
    assert hops(catalog("XAI_API_KEY"), "new-model") == [("xai", "new-model")]
    assert "set OPENAI_API_KEY" in refusal(catalog("XAI_API_KEY"), "gpt-4o")


def test_nobody_configured_says_what_to_set() -> None:
    assert "MX4_API_KEY" in refusal(catalog(), "m")


def test_a_listing_by_two_is_ambiguous() -> None:
    made = catalog(providers={"a": VLLM, "b": VLLM})
    assert "write a/Qwen/Qwen3-8B or b/Qwen/Qwen3-8B" in refusal(made, "Qwen/Qwen3-8B")


def test_models_read_from_a_server_are_listed_and_resolved() -> None:
    engine = {"engine": "vllm", "base_url": "http://gpu:8000/v1"}
    made = catalog("MX4_API_KEY", providers={"local": engine})
    assert "did you mean" not in refusal(made, "Qwen/Qwen3-8B")
    made.set_listed("local", ["Qwen/Qwen3-8B"])
    assert hops(made, "Qwen/Qwen3-8B") == [("local", "Qwen/Qwen3-8B")]
    assert [(m.id, m.provider) for m in made.models()] == [("Qwen/Qwen3-8B", "local")]
    assert "did you mean Qwen/Qwen3-8B" in refusal(made, "Qwen/Qwen3-8")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "0.0.0.0"])
def test_a_base_url_at_this_server_itself_is_refused(host: str) -> None:
    """Else a batch would feed itself for ever."""
    with pytest.raises(InvalidConfiguration, match="this Batchmill server itself"):
        catalog(providers={"me": {"base_url": f"http://{host}:8484/v1"}})
    catalog(providers={"other": {"base_url": f"http://{host}:8000/v1"}})


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"providers": {"a": {"base_url": "gpu1:8000"}}}, "not an http or https URL"),
        ({"providers": {"a": {"base_url": "https://u:p@h/v1"}}}, "api_key_env or api_key_file"),
        ({"providers": {"a": {}}}, "base_url: missing"),
        ({"providers": {"azure": {}}}, "RESOURCE.openai.azure.com"),
        ({"providers": {"a": {"preset": "opnai", "base_url": "http://h"}}}, "did you mean openai"),
        ({"providers": {"mx4": {"plan": "gold"}}}, "no plan called gold"),
        ({"providers": {"mx4": {"capabilities": {"sed": "native"}}}}, "did you mean seed"),
        ({"providers": {"mx4": {"capabilities": {"seed": "yes"}}}}, "capabilities"),
        ({"providers": {"mx4": {"capabilities": {"n_max": 0}}}}, "n_max"),
        ({"routes": [{"match": "*", "providers": ["mx5"]}]}, "did you mean mx4"),
    ],
)
def test_a_wrong_configuration_names_the_place_and_the_mend(tables: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidConfiguration) as caught:
        catalog(**tables)
    assert words in caught.value.message


def test_a_key_is_named_and_never_shown(tmp_path: Path) -> None:
    """What the rest of the program sees of a credential is its name."""
    key_file = tmp_path / "mx4"
    made = catalog("XAI_API_KEY", providers={"mx4": {"api_key_file": key_file}, "local": VLLM})
    mx4 = made.providers["mx4"]
    assert mx4.key_id == f"file:{key_file}"
    assert mx4.missing_key == str(key_file)
    key_file.write_text("mx4-sk-abcdef\n")
    assert (mx4.api_key(), mx4.missing_key) == ("mx4-sk-abcdef", None)
    assert made.providers["local"].key_id == "none"
    assert sorted(made.secrets()) == ["key-of-XAI_API_KEY", "mx4-sk-abcdef"]
    assert "key-of-XAI_API_KEY" not in repr(made.providers["xai"])


def test_a_second_provider_may_use_a_preset_with_another_key() -> None:
    made = catalog("TEAM_KEY", providers={"team": {"preset": "xai", "api_key_env": "TEAM_KEY"}})
    provider = made.providers["team"]
    assert (provider.key_id, provider.base_urls) == ("env:TEAM_KEY", ("https://api.x.ai/v1",))
    assert hops(made, "grok-4.3") == [("team", "grok-4.3")]
