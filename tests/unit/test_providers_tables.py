"""The tables in docs/providers.md are those of the presets."""

from __future__ import annotations

from pathlib import Path

import pytest

from batch.providers.presets import load_preset, preset_names
from tests.contracts.preset_tables import rewrite

PAGE = Path(__file__).resolve().parents[2] / "docs" / "providers.md"


def test_the_page_holds_the_tables_of_today() -> None:
    """Mend with: python -m tests.contracts.preset_tables docs/providers.md"""
    text = PAGE.read_text(encoding="utf-8")
    assert rewrite(text) == text


def test_every_preset_and_its_key_variable_stand_in_the_page() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for preset in map(load_preset, preset_names()):
        assert f"`{preset.name}`" in text
        assert preset.auth.env is None or preset.auth.env in text


def test_a_page_without_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="markers"):
        rewrite("# nothing")
