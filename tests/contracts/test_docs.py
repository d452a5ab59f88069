"""The documentation names every route, metric and error code that there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from batch import telemetry
from batch.api.errors import STATUS
from tests.harness.api import RunningApi

DOCS = Path(__file__).parents[2] / "docs"


def test_every_metric_is_documented() -> None:
    text = (DOCS / "metrics.md").read_text()
    names = {f"{family.name}_total" if family.type == "counter" else family.name for family in _own_families()}
    documented = set(re.findall(r"`(batchmill_[a-z_]+)`", text))
    assert names == documented


def _own_families() -> list[object]:
    return [family for family in telemetry.REGISTRY.collect() if family.name.startswith("batchmill_")]


@pytest.mark.parametrize("code", sorted({kind.code for kind in STATUS}))
def test_every_error_code_is_documented_or_silent(code: str) -> None:
    """Codes that only repeat the status are sent as null."""
    from batch.api.errors import _SILENT_CODES

    assert code in _SILENT_CODES or f"`{code}`" in (DOCS / "http-api.md").read_text()


def test_every_route_is_documented(api: RunningApi) -> None:
    text = (DOCS / "http-api.md").read_text()
    for path in api.http().get("/openapi.json").json()["paths"]:
        stem = path if path in text else path.rpartition("/")[0]
        assert stem in text, path
        assert path.rpartition("/")[2].strip("{}") in text, path
