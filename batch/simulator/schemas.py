"""Values that satisfy a JSON Schema, drawn from a digest, for answers with response_format.

Owns: the generator: local refs, enums, formats, patterns, bounds, combinators, recursion.
Keywords it does not build towards (not, if, dependent*) may be broken by chance, as by a model.
May not touch: validation; whoever tests the product validates with another library.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

from batch.simulator.patterns import matching_string

_DEEP = 6
_TRIES = 20
_FORMATS = {
    "date-time": "2026-03-0{d}T12:00:00Z",
    "date": "2026-03-0{d}",
    "time": "12:00:0{d}Z",
    "duration": "P{d}D",
    "email": "person{d}@example.com",
    "idn-email": "person{d}@example.com",
    "hostname": "host{d}.example.com",
    "idn-hostname": "host{d}.example.com",
    "ipv4": "192.0.2.{d}",
    "ipv6": "2001:db8::{d}",
    "uri": "https://example.com/{d}",
    "uri-reference": "/item/{d}",
    "iri": "https://example.com/{d}",
    "iri-reference": "/item/{d}",
    "uuid": "00000000-0000-4000-8000-00000000000{d}",
    "json-pointer": "/item/{d}",
    "relative-json-pointer": "{d}/item",
    "regex": "^item{d}$",
}
_WORDS = ("amber", "basin", "cedar", "delta", "ember", "fjord", "grove", "haven", "inlet", "junco", "karst", "lagoon")


def schema_value(schema: Any, key: bytes) -> Any:
    """The same value for the same schema and key. A schema that cannot be met gives a near miss."""
    return _Generator(schema, key).value(schema, 0)


class _Generator:
    def __init__(self, root: Any, key: bytes) -> None:
        self._root = root
        self._key = key
        self._drawn = 0
        self._pool = b""

    def draw(self, below: int) -> int:
        """An integer in [0, below), from the digest."""
        if below <= 1:
            return 0
        if len(self._pool) < 4:
            self._pool = hashlib.blake2b(self._key + self._drawn.to_bytes(4, "big")).digest()
            self._drawn += 1
        number, self._pool = int.from_bytes(self._pool[:4], "big"), self._pool[4:]
        return number % below

    def value(self, schema: Any, depth: int) -> Any:
        if not isinstance(schema, dict):
            return None if schema is False else "any"
        schema = self._flattened(schema, 0)
        if "const" in schema:
            return schema["const"]
        if schema.get("enum"):
            return schema["enum"][self.draw(len(schema["enum"]))]
        for word in ("anyOf", "oneOf"):
            if schema.get(word):
                rest = {name: item for name, item in schema.items() if name != word}
                return self.value(_merged(rest, self._branch(schema[word], depth)), depth + 1)
        return self._typed(schema, _kind(schema, self.draw), depth)

    def _typed(self, schema: dict[str, Any], kind: str, depth: int) -> Any:
        if kind == "object":
            return self._object(schema, depth)
        if kind == "array":
            return self._array(schema, depth)
        if kind == "string":
            return self._string(schema)
        if kind in {"integer", "number"}:
            return self._number(schema, kind)
        return bool(self.draw(2)) if kind == "boolean" else None

    def _flattened(self, schema: dict[str, Any], hops: int) -> dict[str, Any]:
        """Follow $ref and merge allOf; a cycle of refs alone ends after a few hops."""
        ref = schema.get("$ref")
        if isinstance(ref, str) and hops < 32:
            rest = {name: item for name, item in schema.items() if name != "$ref"}
            return self._flattened(_merged(rest, self._resolve(ref)), hops + 1)
        if schema.get("allOf") and hops < 32:
            merged = {name: item for name, item in schema.items() if name != "allOf"}
            for part in schema["allOf"]:
                if isinstance(part, dict):
                    merged = _merged(merged, self._flattened(part, hops + 1))
            return self._flattened(merged, hops + 1)
        return schema

    def _resolve(self, ref: str) -> dict[str, Any]:
        node = self._root
        if not ref.startswith("#"):
            return {}
        for part in ref[1:].strip("/").split("/") if ref not in {"#", "#/"} else ():
            name = part.replace("~1", "/").replace("~0", "~")
            if isinstance(node, list) and name.isdecimal() and int(name) < len(node):
                node = node[int(name)]
            elif isinstance(node, dict):
                node = node.get(name, {})
        return node if isinstance(node, dict) else {}

    def _branch(self, branches: list[Any], depth: int) -> dict[str, Any]:
        usable = [branch for branch in branches if isinstance(branch, dict)] or [{}]
        if depth >= _DEEP:  # end the recursion where the schema lets it end
            plain = [branch for branch in usable if _is_leaf(branch)]
            usable = plain or usable
        chosen: dict[str, Any] = usable[self.draw(len(usable))]
        return chosen

    def _object(self, schema: dict[str, Any], depth: int) -> dict[str, Any]:
        required = set(schema.get("required", ()))
        value = {}
        for name, part in schema.get("properties", {}).items():
            if part is False:
                continue
            if name in required or (depth < _DEEP and self.draw(2)):
                value[name] = self.value(part, depth + 1)
        extra = schema.get("additionalProperties", True)
        for name in sorted(required - set(value)):
            value[name] = self.value(extra if isinstance(extra, dict) else {}, depth + 1)
        while len(value) < schema.get("minProperties", 0):
            value[f"extra_{len(value)}"] = self.value(extra if isinstance(extra, dict) else {}, depth + 1)
        return value

    def _array(self, schema: dict[str, Any], depth: int) -> list[Any]:
        least = int(schema.get("minItems", 0))
        most = int(schema.get("maxItems", max(least, 3)))
        count = min(most, max(least, 0 if depth >= _DEEP else 1) + (self.draw(2) if depth < _DEEP else 0))
        prefix = schema.get("prefixItems", [])
        item = schema.get("items", {})
        values: list[Any] = []
        for index in range(max(count, min(len(prefix), most))):
            part = prefix[index] if index < len(prefix) else item
            if part is False:
                break
            for _ in range(_TRIES):
                value = self.value(part, depth + 1)
                if not schema.get("uniqueItems") or value not in values:
                    values.append(value)
                    break
        return values

    def _string(self, schema: dict[str, Any]) -> str:
        least = int(schema.get("minLength", 0))
        most = int(schema.get("maxLength", max(least, 4096)))
        if isinstance(schema.get("pattern"), str):
            for _ in range(_TRIES):
                text = matching_string(schema["pattern"], self.draw)
                if least <= len(text) <= most:
                    break
            return text
        if schema.get("format") in _FORMATS:
            return _FORMATS[schema["format"]].format(d=1 + self.draw(9))
        text = " ".join(_WORDS[self.draw(len(_WORDS))] for _ in range(1 + self.draw(4)))
        while len(text) < least:
            text += " " + _WORDS[self.draw(len(_WORDS))]
        return text[:most]

    def _number(self, schema: dict[str, Any], kind: str) -> int | float:
        low = max(_bounds(schema, "minimum", "exclusiveMinimum", 1), default=None)
        high = min(_bounds(schema, "maximum", "exclusiveMaximum", -1), default=None)
        step = schema.get("multipleOf", 1)
        if low is None:
            low = 0.0 if high is None or high >= 0 else high - 100 * step
        high = low + 100 * step if high is None else high
        first = math.ceil(low / step)
        last = math.floor(high / step)
        if first <= last:
            number = (first + self.draw(min(last - first + 1, 1_000_000))) * step
            return int(number) if kind == "integer" or number == int(number) else number
        return (low + high) / 2


def _bounds(schema: dict[str, Any], inclusive: str, exclusive: str, inward: int) -> list[float]:
    step = schema.get("multipleOf", 1 if schema.get("type") == "integer" else 1e-6)
    told = [(schema.get(inclusive), 0), (schema.get(exclusive), inward * step)]
    return [bound + shift for bound, shift in told if isinstance(bound, int | float) and not isinstance(bound, bool)]


def _kind(schema: dict[str, Any], draw: Any) -> str:
    kind = schema.get("type")
    if isinstance(kind, list) and kind:
        return str(kind[draw(len(kind))])
    if isinstance(kind, str):
        return kind
    if "properties" in schema or "required" in schema:
        return "object"
    if "items" in schema or "prefixItems" in schema:
        return "array"
    if {"minimum", "maximum", "multipleOf", "exclusiveMinimum", "exclusiveMaximum"} & schema.keys():
        return "number"
    return "string"


def _is_leaf(branch: dict[str, Any]) -> bool:
    return "$ref" not in branch and branch.get("type") not in {"object", "array"} and "anyOf" not in branch


def _merged(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Both schemas at once, for what answers need: properties and required unite, bounds tighten."""
    merged = {**second, **first}
    if "properties" in first and "properties" in second:
        merged["properties"] = dict(second["properties"])
        for name, part in first["properties"].items():
            other = second["properties"].get(name)
            both = isinstance(part, dict) and isinstance(other, dict)
            merged["properties"][name] = _merged(part, other) if both else part
    if "required" in first and "required" in second:
        merged["required"] = [*second["required"], *first["required"]]
    for word, pick in (("minimum", max), ("minLength", max), ("minItems", max), ("maximum", min), ("maxLength", min)):
        if word in first and word in second:
            merged[word] = pick(first[word], second[word])
    return merged
