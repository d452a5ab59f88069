"""How much work a schema can cause, known before it is compiled.

Owns: the bounds on user schemas: only local references, depth, expanded size along references
(memoised: a few kB of nested anyOf and $ref otherwise double the work per level), and whether a
recursive schema branches, which makes checking exponential in the answer's depth. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Any
from urllib.parse import unquote

from batch.domain.errors import InvalidRequest

MAX_EXPANDED = 100_000
MAX_DEPTH = 64
MAX_PATH = 256  # schemas on one path, references followed

# Keywords that hold schemas, alone or in a list; "here" ones look at the same part of an answer.
_HERE = frozenset({"allOf", "anyOf", "oneOf", "not", "if", "then", "else"})
_INSIDE = frozenset(
    {
        "additionalItems", "additionalProperties", "contains", "contentSchema", "items", "prefixItems",
        "propertyNames", "unevaluatedItems", "unevaluatedProperties",
    }
)  # fmt: skip
_NAMED = {"properties": False, "patternProperties": False, "dependentSchemas": True, "dependencies": True}
_STORES = ("$defs", "definitions")
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")


@dataclass(frozen=True, slots=True)
class Bounds:
    """`expanded`: schema nodes with references followed. `branches_back`: recursive in two ways at one
    place. `compares_items`: uniqueItems stands somewhere."""

    expanded: int
    branches_back: bool
    compares_items: bool


@dataclass(frozen=True, slots=True)
class _Edge:
    """`group` tells steps apart that reach the same part of an answer; "here" steps stay on it."""

    target: Any
    group: str
    here: bool


def measure(document: Any) -> Bounds:
    """Raises InvalidRequest when the schema is over a bound or refers outside itself."""
    walk = _Walk(document)
    walk.index(document, 0, "")
    expanded = walk.expand(document, 0)
    branches = walk.is_recursive and _branches_back(walk.edges)
    return Bounds(expanded, branches, walk.compares_items)


class _Walk:
    """One pass over the document's schemas; nodes are told apart by identity."""

    def __init__(self, document: Any) -> None:
        self.document = document
        self.edges: dict[int, list[_Edge]] = {}
        self.anchors: dict[str, Any] = {}
        self.is_recursive = False
        self.compares_items = False
        self._sizes: dict[int, int] = {}
        self._open: set[int] = set()

    def index(self, node: Any, depth: int, path: str) -> None:
        """Collect anchors and refuse what is too deep or changes the base of references."""
        if not isinstance(node, dict):
            return
        if depth > MAX_DEPTH:
            raise InvalidRequest(f"the schema nests deeper than {MAX_DEPTH} levels at {path[:80]}")
        if depth and isinstance(node.get("$id"), str):
            raise InvalidRequest(f"'$id' inside the schema is not supported (at {path[:80]})")
        for key in ("$anchor", "$dynamicAnchor"):
            if isinstance(node.get(key), str):
                self.anchors.setdefault(node[key], node)
        if node.get("uniqueItems") is True:
            self.compares_items = True
        for key in _STORES:
            if isinstance(node.get(key), dict):
                for name, entry in node[key].items():
                    self.index(entry, depth + 1, f"{path}/{key}/{name}")
        for edge in _children(node):
            self.index(edge.target, depth + 1, f"{path}/{edge.group}")

    def expand(self, node: Any, path_length: int) -> int:
        """Nodes under `node` with references followed; a reference back into the path counts one."""
        if not isinstance(node, dict):
            return 1
        key = id(node)
        if key in self._open:
            self.is_recursive = True
            return 1
        if (known := self._sizes.get(key)) is not None:
            return known
        if path_length > MAX_PATH:
            raise InvalidRequest(f"the schema's references lead deeper than {MAX_PATH} schemas")
        self._open.add(key)
        edges = self.edges[key] = [*_children(node), *self._references(node)]
        size = 1 + len(node) + (len(node["enum"]) if isinstance(node.get("enum"), list) else 0)
        for edge in edges:
            size += self.expand(edge.target, path_length + 1)
            if size > MAX_EXPANDED:
                raise InvalidRequest(
                    f"the schema expands to more than {MAX_EXPANDED:,} parts along its references"
                )
        self._open.discard(key)
        self._sizes[key] = size
        return size

    def _references(self, node: dict[str, Any]) -> Iterator[_Edge]:
        for key in _REFERENCES:
            reference = node.get(key)
            if reference is None:
                continue
            if not isinstance(reference, str) or not reference.startswith("#"):
                raise InvalidRequest(
                    f"references outside the schema are not followed: {key} {str(reference)[:120]!r}"
                )
            yield _Edge(self._resolve(reference), key, here=True)

    def _resolve(self, reference: str) -> Any:
        fragment = unquote(reference[1:])
        if fragment and not fragment.startswith("/"):
            if fragment not in self.anchors:
                raise InvalidRequest(f"the reference {reference[:120]!r} leads nowhere")
            return self.anchors[fragment]
        node = follow_pointer(self.document, fragment)
        if not isinstance(node, dict | bool):
            raise InvalidRequest(f"the reference {reference[:120]!r} leads nowhere, or not to a schema")
        return node


def follow_pointer(document: Any, pointer: str) -> Any:
    """What stands at a JSON pointer; None where it leads nowhere."""
    node = document
    for step in pointer.split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(node, dict) and name in node:
            node = node[name]
        elif isinstance(node, list) and name.isdecimal() and int(name) < len(node):
            node = node[int(name)]
        else:
            return None
    return node


def _children(node: dict[str, Any]) -> Iterator[_Edge]:
    for key, value in node.items():
        if key in _HERE or key in _INSIDE:
            here = key in _HERE
            for index, entry in enumerate(value if isinstance(value, list) else [value]):
                # Alternatives see the same value, so each is a group; array positions are different values.
                yield _Edge(entry, f"{key}/{index}" if here else key, here)
        elif key in _NAMED and isinstance(value, dict):
            for name, entry in value.items():
                yield _Edge(entry, key if key == "properties" else f"{key}/{name}", _NAMED[key])


def _branches_back(edges: dict[int, list[_Edge]]) -> bool:
    """True when a schema leads back to itself in two ways for the same part of an answer.

    A loop that never steps into the answer would not end: it is refused.
    """
    here = {key: [id(edge.target) for edge in leaving if edge.here] for key, leaving in edges.items()}
    try:
        TopologicalSorter(here).prepare()
    except CycleError:
        raise InvalidRequest("the schema refers to itself without stepping into the answer") from None
    loop_of = _loops(edges)
    groups = (
        {edge.group for edge in leaving if loop_of.get(id(edge.target)) == loop_of[key]}
        for key, leaving in edges.items()
    )
    return any(len(ways) > 1 for ways in groups)


def _loops(edges: dict[int, list[_Edge]]) -> dict[int, int]:
    """Tarjan's strongly connected components: node → component. No deeper than expand() went."""
    low: dict[int, int] = {}
    stack: list[int] = []
    loop_of: dict[int, int] = {}

    def visit(key: int) -> None:
        order = low[key] = len(low)
        stack.append(key)
        for target in (id(edge.target) for edge in edges[key] if id(edge.target) in edges):
            if target not in low:
                visit(target)
            if target not in loop_of:
                low[key] = min(low[key], low[target])
        if low[key] == order:
            while key not in loop_of:
                loop_of[stack.pop()] = key

    for key in edges:
        if key not in low:
            visit(key)
    return loop_of
