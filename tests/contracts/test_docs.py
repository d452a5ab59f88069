"""The documentation names every route, metric, error code and setting that there is, and none that is not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from batch import telemetry
from batch.api.errors import STATUS
from batch.settings import ProviderConfig, RouteConfig, Settings
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


def _rows(text: str, heading: str) -> dict[str, str]:
    """name → second cell of the table under a heading; a first cell may hold several names."""
    section = text.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    found = {}
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        found |= dict.fromkeys(re.findall(r"`(\w+)`", cells[0]), cells[1]) if line.startswith("| `") else {}
    return found


def test_every_setting_is_documented_with_its_default() -> None:
    """A default that is written as code is the one that ships; words stand where it is made at start."""
    rows = _rows((DOCS / "configuration.md").read_text(), "Settings")
    assert set(rows) == set(Settings.model_fields)
    for name, field in Settings.model_fields.items():
        if rows[name].startswith("`"):
            default = str(field.default).lower() if isinstance(field.default, bool) else str(field.default)
            assert rows[name] == f"`{default}`", name
        else:
            assert field.default in (None, [], {}), name


@pytest.mark.parametrize(("heading", "model"), [("`[providers.NAME]`", ProviderConfig), ("`[[routes]]`", RouteConfig)])
def test_every_field_of_the_tables_is_documented(heading: str, model: type[BaseModel]) -> None:
    assert set(_rows((DOCS / "configuration.md").read_text(), heading)) == set(model.model_fields)


def test_the_dashboard_shows_metrics_that_exist() -> None:
    """Names, and the labels that its queries group and choose by."""
    exposed: dict[str, set[str]] = {}
    for family in _own_families():
        labels = set(getattr(telemetry.REGISTRY._names_to_collectors[family.name], "_labelnames", ()))
        ends = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(family.type, ("",))
        exposed |= {f"{family.name}{end}": labels | {"le", "job", "instance"} for end in ends}
    text = (DOCS.parent / "examples/monitoring/grafana/dashboards/batchmill.json").read_text()
    queries = re.findall(r'"expr": "((?:[^"\\]|\\.)*)"', text)
    assert len(queries) > 15
    for query in queries:
        names = re.findall(r"batchmill_\w+", query)
        assert names and set(names) <= set(exposed), query
        used = {label.strip() for group in re.findall(r"by \(([^)]*)\)", query) for label in group.split(",")}
        used |= set(re.findall(r"[{,]\s*(\w+)\s*[=!]", query))
        assert used <= set.union(*(exposed[name] for name in names)), query


def test_the_operations_guide_names_commands_that_exist() -> None:
    """Each `batchmill …` line of the guides parses as far as its verb."""
    from typer.main import get_command

    from batch.cli.app import app

    top = get_command(app).commands  # type: ignore[attr-defined]
    for guide in ("operations.md", "security.md", "http-api.md", "configuration.md"):
        for words in re.findall(r"batchmill ((?:admin )?[a-z-]+)", (DOCS / guide).read_text()):
            verb, _, inner = words.partition(" ")
            if verb in top and inner:
                assert inner in top[verb].commands, words
