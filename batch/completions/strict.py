"""The strict subset of JSON Schema that providers can guarantee, made from any schema where possible.

Owns: the conversion (objects closed, every property required, optional ones made nullable, roots
wrapped, constraints outside the subset left to our own check), and undoing it in the answer: added
nulls and wrappers are taken out. The original schema stays the judge. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import orjson

from batch.completions.schema_bounds import follow_pointer

WRAPPER = "value"
MAX_PROPERTIES = 5_000
MAX_NESTING = 10
MAX_ENUM_VALUES = 1_000
MAX_NAME_CHARACTERS = 120_000

_UNCONVERTIBLE = (
    "$dynamicRef", "$recursiveRef", "contains", "dependencies", "dependentRequired", "dependentSchemas", "else",
    "if", "maxContains", "minContains", "not", "oneOf", "patternProperties", "prefixItems", "propertyNames",
    "then", "unevaluatedItems", "unevaluatedProperties",
)  # fmt: skip
# Left out of what is sent; our own check enforces them on the answer.
_LEFT_TO_US = (
    "$comment", "$id", "$schema", "default", "deprecated", "examples", "format", "maxLength", "maxProperties",
    "minLength", "minProperties", "readOnly", "uniqueItems", "writeOnly", "contentEncoding",
    "contentMediaType", "contentSchema",
)  # fmt: skip
_FORMATS = frozenset({"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"})


@dataclass(frozen=True, slots=True)
class Strict:
    """`source` is the schema to send, the given text where nothing had to change (`same`). `wrapped`: the
    root was put under {"value": …}. `has_nulls`: some optional property was made nullable."""

    source: bytes
    same: bool
    wrapped: bool
    has_nulls: bool


class _NotStrict(Exception):
    """The schema says something that the subset cannot."""


@lru_cache(maxsize=256)
def to_strict(source: bytes) -> Strict | None:
    """The strict form of the schema in `source` (JSON); None where it cannot be kept apart from it."""
    document = orjson.loads(source)
    try:
        conversion = _Conversion(document)
        root = conversion.convert_root()
    except _NotStrict:
        return None
    same = root == document
    return Strict(source if same else orjson.dumps(root), same, conversion.wrapped, conversion.has_nulls)


def undo(value: Any, document: Any, strict: Strict) -> Any:
    """The answer as the original schema would have it: unwrapped, and without the nulls that we allowed."""
    if strict.wrapped and isinstance(value, dict) and set(value) == {WRAPPER}:
        value = value[WRAPPER]
    return _without_added_nulls(value, document, document) if strict.has_nulls else value


class _Conversion:
    def __init__(self, document: Any) -> None:
        self._document = document
        self._properties = 0
        self._enum_values = 0
        self._characters = 0
        self.wrapped = False
        self.has_nulls = False

    def convert_root(self) -> dict[str, Any]:
        document = self._document
        if not isinstance(document, dict):
            raise _NotStrict
        stores = [key for key in ("$defs", "definitions") if isinstance(document.get(key), dict)]
        body = {key: value for key, value in document.items() if key not in stores}
        root = self._convert(body, 0)
        if root.get("type") != "object":
            root = self._wrap(root)
        for key in stores:
            root[key] = {name: self._convert(entry, 0) for name, entry in document[key].items()}
        self._check_size()
        return root

    def _wrap(self, root: dict[str, Any]) -> dict[str, Any]:
        if b'"#"' in orjson.dumps(self._document):
            raise _NotStrict  # a reference to the root would now mean the wrapper
        self.wrapped = True
        return {
            "type": "object",
            "properties": {WRAPPER: root},
            "required": [WRAPPER],
            "additionalProperties": False,
        }

    def _convert(self, node: Any, depth: int) -> dict[str, Any]:
        if not isinstance(node, dict) or depth > MAX_NESTING or any(key in node for key in _UNCONVERTIBLE):
            raise _NotStrict
        if "$ref" in node:
            return self._convert_reference(node)
        if isinstance(node.get("allOf"), list):
            if len(node["allOf"]) != 1 or not isinstance(node["allOf"][0], dict):
                raise _NotStrict
            merged = {**node["allOf"][0], **{key: value for key, value in node.items() if key != "allOf"}}
            if set(node) & set(node["allOf"][0]) - {"description", "title"}:
                raise _NotStrict
            return self._convert(merged, depth)
        out = {key: value for key, value in node.items() if key not in _LEFT_TO_US}
        if node.get("format") in _FORMATS:
            out["format"] = node["format"]
        self._convert_members(node, out, depth)
        return out

    def _convert_reference(self, node: dict[str, Any]) -> dict[str, Any]:
        reference = node["$ref"]
        if not isinstance(reference, str) or not (
            reference == "#" or reference.startswith(("#/$defs/", "#/definitions/"))
        ):
            raise _NotStrict
        if set(node) - {"$ref", "description", "title", "default", "examples"}:
            raise _NotStrict
        return {"$ref": reference}

    def _convert_members(self, node: dict[str, Any], out: dict[str, Any], depth: int) -> None:
        if isinstance(node.get("enum"), list):
            self._enum_values += len(node["enum"])
            self._characters += sum(len(entry) for entry in node["enum"] if isinstance(entry, str))
        if isinstance(node.get("anyOf"), list):
            out["anyOf"] = [self._convert(entry, depth) for entry in node["anyOf"]]
        if "items" in node:
            out["items"] = self._convert(node["items"], depth + 1)
        kind = node.get("type")
        is_object = kind == "object" or (isinstance(kind, list) and "object" in kind)
        if is_object or "properties" in node:
            self._close_object(node, out, depth)
        elif kind == "array" and "items" not in node:
            raise _NotStrict
        elif not ({"type", "enum", "const", "anyOf"} & set(node)):
            raise _NotStrict  # anything goes here, which the subset has no word for

    def _close_object(self, node: dict[str, Any], out: dict[str, Any], depth: int) -> None:
        properties = node.get("properties")
        # An open object may hold keys that nobody listed; closing it would forbid wanted answers.
        if not isinstance(properties, dict) or node.get("additionalProperties", False) is not False:
            raise _NotStrict
        required = node.get("required", [])
        if not isinstance(required, list) or not set(required) <= set(properties):
            raise _NotStrict
        self._properties += len(properties)
        self._characters += sum(map(len, properties))
        converted = {}
        for name, entry in properties.items():
            member = self._convert(entry, depth + 1)
            converted[name] = member if name in required else self._nullable(member, entry)
        out.setdefault("type", "object")
        out["properties"] = converted
        out["required"] = required if set(required) == set(properties) else list(properties)
        out["additionalProperties"] = False

    def _nullable(self, member: dict[str, Any], entry: dict[str, Any]) -> dict[str, Any]:
        if _allows_null(entry):
            return member
        self.has_nulls = True
        return {"anyOf": [member, {"type": "null"}]}

    def _check_size(self) -> None:
        if (
            self._properties > MAX_PROPERTIES
            or self._enum_values > MAX_ENUM_VALUES
            or self._characters > MAX_NAME_CHARACTERS
        ):
            raise _NotStrict


def _allows_null(node: Any) -> bool:
    if not isinstance(node, dict):
        return node is True
    kind = node.get("type")
    if kind == "null" or (isinstance(kind, list) and "null" in kind):
        return True
    if "const" in node:
        return node["const"] is None
    if isinstance(node.get("enum"), list):
        return None in node["enum"]
    return isinstance(node.get("anyOf"), list) and any(_allows_null(entry) for entry in node["anyOf"])


def _without_added_nulls(value: Any, node: Any, document: Any) -> Any:
    node = _follow(node, document)
    if not isinstance(node, dict):
        return value
    if isinstance(value, dict) and isinstance(node.get("properties"), dict):
        required = node.get("required") or ()
        properties = node["properties"]
        return {
            name: _without_added_nulls(entry, properties.get(name), document)
            for name, entry in value.items()
            if entry is not None
            or name in required
            or name not in properties
            or _allows_null(_follow(properties[name], document))
        }
    if isinstance(value, list) and isinstance(node.get("items"), dict):
        return [_without_added_nulls(entry, node["items"], document) for entry in value]
    for branch in node.get("anyOf") or node.get("allOf") or ():
        branch = _follow(branch, document)
        if isinstance(branch, dict) and _fits_roughly(value, branch):
            return _without_added_nulls(value, branch, document)
    return value


def _follow(node: Any, document: Any) -> Any:
    for _ in range(32):
        reference = node.get("$ref") if isinstance(node, dict) else None
        if not isinstance(reference, str) or not reference.startswith("#"):
            return node
        node = follow_pointer(document, reference[1:])
    return node


def _fits_roughly(value: Any, branch: dict[str, Any]) -> bool:
    """Which alternative an answer took: by type, and for objects by its keys, since all are required."""
    if isinstance(value, dict):
        return isinstance(branch.get("properties"), dict) and set(value) <= set(branch["properties"])
    return isinstance(value, list) and ("items" in branch or branch.get("type") == "array")
