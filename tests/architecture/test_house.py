"""The house keeps its shape: floors, sizes, docstrings, names. What a reader relies on, checked."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = ("batch", "workers")

# Exceptions stand here with their reason, and the list may only shrink.
LONG_FILES: dict[str, str] = {}
LONG_FUNCTIONS: dict[str, str] = {}


def product_files() -> list[Path]:
    return sorted(path for floor in PRODUCT for path in (ROOT / floor).rglob("*.py"))


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_imports_go_down_only() -> None:
    """import-linter's contracts in pyproject.toml hold."""
    command = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([command, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]


def test_no_product_file_is_longer_than_400_lines() -> None:
    """A longer file holds two subjects."""
    long = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in product_files()}
    assert {name: lines for name, lines in long.items() if lines > 400 and name not in LONG_FILES} == {}


def test_no_test_file_is_longer_than_500_lines() -> None:
    """The same for the shelves of tests."""
    long = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in (ROOT / "tests").rglob("*.py")}
    assert {name: lines for name, lines in long.items() if lines > 500} == {}


def test_no_function_is_longer_than_60_lines() -> None:
    """A longer function mixes levels of abstraction (docstrings count)."""
    long = {
        f"{path.relative_to(ROOT)}:{node.name}": node.end_lineno - node.lineno + 1
        for path in product_files()
        for node in functions(path)
        if node.end_lineno is not None and node.end_lineno - node.lineno + 1 > 60
    }
    assert {name: lines for name, lines in long.items() if name not in LONG_FUNCTIONS} == {}


@pytest.mark.parametrize("path", product_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_says_what_it_owns_in_at_most_eight_lines(path: Path) -> None:
    """Every module that holds code opens with a short docstring."""
    text = path.read_text(encoding="utf-8")
    if not text.strip():
        return
    docstring = ast.get_docstring(ast.parse(text))
    assert docstring, "no module docstring"
    if path.name not in {"errors.py"}:  # the error tree is drawn there
        assert len(docstring.splitlines()) <= 8


def test_no_module_is_a_grab_bag() -> None:
    """A name that says nothing collects everything."""
    banned = {"utils", "util", "helpers", "common", "misc", "manager", "service"}
    assert [str(path) for path in product_files() if path.stem in banned] == []


def test_sql_lives_in_storage_only() -> None:
    """Nobody else names sqlalchemy's tables or writes statements."""
    guilty = [
        str(path.relative_to(ROOT))
        for path in product_files()
        if "storage" not in path.parts
        and re.search(r"batch\.storage\.tables|sa\.(select|insert|update|delete|text)\(", path.read_text())
    ]
    assert guilty == []


def test_nothing_product_side_is_unfinished() -> None:
    """No TODO, no NotImplementedError, no commented-out way out."""
    guilty = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in product_files()
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(r"\b(TODO|FIXME|XXX)\b|raise NotImplementedError", line)
    ]
    assert guilty == []


def test_broad_excepts_stand_at_named_walls() -> None:
    """`except Exception` is written only in a function, or on a line, that says which wall it is."""
    guilty = []
    for path in product_files():
        lines = path.read_text().splitlines()
        walls = [
            range(node.lineno, (node.end_lineno or node.lineno) + 1)
            for node in functions(path)
            if "wall" in (ast.get_docstring(node) or "").lower()
        ]
        guilty += [
            f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
            for number, line in enumerate(lines, 1)
            if re.search(r"except (Base)?Exception\b", line)
            and "wall" not in line
            and "BaseException:" not in line
            and not any(number in wall for wall in walls)
        ]
    assert guilty == []


def test_pins_are_exact_and_name_no_place() -> None:
    """constraints.txt holds name==version lines only."""
    rows = [row for row in (ROOT / "constraints.txt").read_text().splitlines() if row and not row.startswith("#")]
    assert [row for row in rows if not re.fullmatch(r"[\w.\-]+==[\w.+!]+", row)] == []
