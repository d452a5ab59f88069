"""Every preset through the whole service, against the simulator playing its provider."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contracts.conformance import FEATURES, LASTING, PASSING, Row, measure, rewrite

PAGE = Path(__file__).resolve().parents[2] / "docs" / "providers.md"


@pytest.fixture(scope="module")
def table() -> Iterator[list[Row]]:
    """One run for the whole module."""
    yield measure()


def test_every_completed_line_is_what_was_asked_for(table: list[Row]) -> None:
    """n choices that differ, valid JSON, text cut at its stop, logprobs or a word that there are none."""
    assert {f"{row.preset} {row.model}": row.problems for row in table if row.problems} == {}


def test_no_feature_ends_in_an_unexplained_error(table: list[Row]) -> None:
    """Each is native, sent, emulated, said to be ignored, or refused by name and dropped when asked."""
    holes = [(row.preset, name, row.cells[name]) for row in table for name in (*FEATURES, "streamed")
             if "error" in row.cells[name] or row.cells[name] == "refused"]  # fmt: skip
    assert holes == []


def test_passing_faults_cost_no_line_and_lasting_ones_are_reported(table: list[Row]) -> None:
    assert {row.cells[kind] for row in table for kind in PASSING} == {"completed"}
    assert {row.cells[kind] for row in table for kind in LASTING} == {"error 400", "error refused"}


def test_the_page_holds_the_matrix_of_today(table: list[Row]) -> None:
    """Mend with: make docs"""
    text = PAGE.read_text(encoding="utf-8")
    assert rewrite(text, table) == text
