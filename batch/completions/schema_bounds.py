"""How much work a schema can cause, known before it is compiled.

Owns: the bounds on user schemas: only local references, depth, expanded size along references
(memoised: a few kB of nested anyOf and $ref otherwise double the work per level), and whether a
recursive schema branches, which makes checking exponential in the answer's depth. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from batch.domain.errors import InvalidRequest

MAX_EXPANDED = 100_000
MAX_DEPTH = 64
MAX_PATH = 256  # schemas on one path, references followed

_SAME_INSTANCE_LISTS = ("allOf", "anyOf", "oneOf")
_SAME_INSTANCE = ("not", "if", "then", "else")
_SAME_INSTANCE_MAPS = ("dependentSchemas", "dependencies")
_CHILD = (
    "additionalItems", "additionalProperties", "contains", "contentSchema", "items", "propertyNames",
    "unevaluatedItems", "unevaluatedProperties",
)  # fmt: skip
_CHILD_LISTS = ("prefixItems", "items")
_CHILD_MAPS = ("properties", "patternProperties")
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
    branches = walk.is_recursive and _branches_back(walk.nodes, walk.edges)
    return Bounds(expanded, branches, walk.compares_items)


class _Walk:
    """One pass over the document's schemas; nodes are told apart by identity."""

    def __init__(self, document: Any) -> None:
        self.document = document
        self.nodes: dict[int, Any] = {}
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
        self.nodes[key] = node
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
        node = self.document
        for step in fragment.split("/")[1:]:
            name = step.replace("~1", "/").replace("~0", "~")
            if isinstance(node, dict) and name in node:
                node = node[name]
            elif isinstance(node, list) and name.isdecimal() and int(name) < len(node):
                node = node[int(name)]
            else:
                raise InvalidRequest(f"the reference {reference[:120]!r} leads nowhere")
        if not isinstance(node, dict | bool):
            raise InvalidRequest(f"the reference {reference[:120]!r} does not lead to a schema")
        return node


def _children(node: dict[str, Any]) -> Iterator[_Edge]:
    for key in _SAME_INSTANCE_LISTS:
        yield from _listed(node, key, here=True)
    for key in _SAME_INSTANCE:
        if isinstance(node.get(key), dict):
            yield _Edge(node[key], key, here=True)
    for key in _SAME_INSTANCE_MAPS:
        yield from _mapped(node, key, here=True)
    for key in _CHILD:
        if isinstance(node.get(key), dict):
            yield _Edge(node[key], key, here=False)
    for key in _CHILD_LISTS:
        yield from _listed(node, key, here=False)
    for key in _CHILD_MAPS:
        yield from _mapped(node, key, here=False)


def _listed(node: dict[str, Any], key: str, *, here: bool) -> Iterator[_Edge]:
    entries = node.get(key)
    if isinstance(entries, list):
        for index, entry in enumerate(entries):
            if isinstance(entry, dict):
                # Alternatives see the same value, so each is a group; array positions are different values.
                yield _Edge(entry, f"{key}/{index}" if here else key, here)


def _mapped(node: dict[str, Any], key: str, *, here: bool) -> Iterator[_Edge]:
    entries = node.get(key)
    if isinstance(entries, dict):
        for name, entry in entries.items():
            if isinstance(entry, dict):
                yield _Edge(entry, key if key == "properties" else f"{key}/{name}", here)


def _branches_back(nodes: dict[int, Any], edges: dict[int, list[_Edge]]) -> bool:
    """True when a schema leads back to itself in two ways for the same part of an answer.

    A loop that never steps into the answer would not end: it is refused.
    """
    loop_of = _loops(nodes, edges, only_here=False)
    here_loops = _loops(nodes, edges, only_here=True)
    if here_loops:
        raise InvalidRequest("the schema refers to itself without stepping into the answer")
    for key, loop in loop_of.items():
        groups = {edge.group for edge in edges[key] if loop_of.get(id(edge.target)) == loop}
        if len(groups) > 1:
            return True
    return False


def _loops(nodes: dict[int, Any], edges: dict[int, list[_Edge]], *, only_here: bool) -> dict[int, int]:
    """Tarjan's strongly connected components, iteratively: node → component, only where there is a loop."""
    order: dict[int, int] = {}
    low: dict[int, int] = {}
    stack: list[int] = []
    on_stack: set[int] = set()
    loop_of: dict[int, int] = {}

    def targets(key: int) -> list[int]:
        return [
            id(edge.target)
            for edge in edges[key]
            if id(edge.target) in nodes and (edge.here or not only_here)
        ]

    for start in nodes:
        if start in order:
            continue
        work = [(start, iter(targets(start)))]
        order[start] = low[start] = len(order)
        stack.append(start)
        on_stack.add(start)
        while work:
            key, pending = work[-1]
            step = next(pending, None)
            if step is None:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[key])
                if low[key] == order[key]:
                    _close_component(key, stack, on_stack, loop_of, targets)
            elif step not in order:
                order[step] = low[step] = len(order)
                stack.append(step)
                on_stack.add(step)
                work.append((step, iter(targets(step))))
            elif step in on_stack:
                low[key] = min(low[key], order[step])
    return loop_of


def _close_component(
    root: int, stack: list[int], on_stack: set[int], loop_of: dict[int, int], targets: Any
) -> None:
    members = []
    while True:
        key = stack.pop()
        on_stack.discard(key)
        members.append(key)
        if key == root:
            break
    if len(members) > 1 or root in targets(root):
        for key in members:
            loop_of[key] = root
