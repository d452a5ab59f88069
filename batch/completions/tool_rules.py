"""The shapes of tools, tool_choice and response_format.

Owns: names, members and neighbours of these three. Schemas are compiled through SchemaCache, so a
bad one is reported on its line. Tool types that OpenAI does not define pass.
"""

from __future__ import annotations

import re
from typing import Any

from batch.completions.checks import Problems, any_of, boolean, string
from batch.completions.schema import SchemaCache

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")


def check_response_format(value: Any, path: str, problems: Problems, schemas: SchemaCache | None) -> None:
    if not isinstance(value, dict):
        problems.wrong_type(path, "an object", value)
        return
    if value.get("type") is None:
        problems.missing(f"{path}.type")
        return
    any_of("text", "json_object", "json_schema")(value["type"], f"{path}.type", problems)
    if value["type"] == "json_schema":
        _check_json_schema(value.get("json_schema"), f"{path}.json_schema", problems, schemas)


def _check_json_schema(value: Any, path: str, problems: Problems, schemas: SchemaCache | None) -> None:
    if value is None:
        problems.missing(path)
        return
    if not isinstance(value, dict):
        problems.wrong_type(path, "an object", value)
        return
    _check_name(value, path, problems)
    if value.get("description") is not None:
        string()(value["description"], f"{path}.description", problems)
    if value.get("strict") is not None:
        boolean(value["strict"], f"{path}.strict", problems)
    schema = value.get("schema")
    if schema is None:
        problems.missing(f"{path}.schema")
    elif not isinstance(schema, dict):
        problems.wrong_type(f"{path}.schema", "an object", schema)
    elif schemas is not None:
        problems.check_schema(schema, f"{path}.schema", schemas)


def check_tools(value: Any, path: str, problems: Problems, schemas: SchemaCache | None) -> None:
    if not isinstance(value, list):
        problems.wrong_type(path, "an array", value)
        return
    for index, tool in enumerate(value):
        _check_tool(tool, f"{path}[{index}]", problems, schemas)


def _check_tool(tool: Any, path: str, problems: Problems, schemas: SchemaCache | None) -> None:
    if not isinstance(tool, dict):
        problems.wrong_type(path, "an object", tool)
        return
    kind = tool.get("type")
    if kind is None:
        problems.missing(f"{path}.type")
    elif not isinstance(kind, str):
        problems.wrong_type(f"{path}.type", "a string", kind)
    elif kind == "function":
        _check_function(tool.get("function"), f"{path}.function", problems, schemas)
    elif kind == "custom":
        _check_custom(tool.get("custom"), f"{path}.custom", problems)


def _check_function(value: Any, path: str, problems: Problems, schemas: SchemaCache | None) -> None:
    if not isinstance(value, dict):
        problems.wrong_type(path, "an object", value)
        return
    _check_name(value, path, problems)
    if value.get("strict") is not None:
        boolean(value["strict"], f"{path}.strict", problems)
    parameters = value.get("parameters")
    if parameters is None:
        return
    if not isinstance(parameters, dict):
        problems.wrong_type(f"{path}.parameters", "an object", parameters)
    elif value.get("strict") is True and schemas is not None:
        problems.check_schema(parameters, f"{path}.parameters", schemas)


def _check_custom(value: Any, path: str, problems: Problems) -> None:
    if not isinstance(value, dict):
        problems.wrong_type(path, "an object", value)
        return
    _check_name(value, path, problems)
    wanted = value.get("format")
    if wanted is None:
        return
    if not isinstance(wanted, dict):
        problems.wrong_type(f"{path}.format", "an object", wanted)
        return
    any_of("text", "grammar")(wanted.get("type"), f"{path}.format.type", problems)
    if wanted.get("type") == "grammar":
        # Both spellings are in use: members beside `type`, and members under `grammar`.
        grammar = wanted["grammar"] if isinstance(wanted.get("grammar"), dict) else wanted
        any_of("lark", "regex")(grammar.get("syntax"), f"{path}.format.syntax", problems)
        string(at_least=1)(grammar.get("definition"), f"{path}.format.definition", problems)


def check_functions(value: Any, path: str, problems: Problems) -> None:
    """The deprecated `functions`."""
    if not isinstance(value, list):
        problems.wrong_type(path, "an array", value)
    elif not 1 <= len(value) <= 128:
        problems.add("invalid_value", f"'{path}' holds 1 to 128 functions, not {len(value)}.", path)
    else:
        for index, function in enumerate(value):
            _check_function(function, f"{path}[{index}]", problems, None)


def check_tool_choice(value: Any, tools: Any, problems: Problems) -> None:
    path = "tool_choice"
    if isinstance(value, str):
        any_of("none", "auto", "required")(value, path, problems)
        if value == "required" and not tools:
            problems.add("invalid_value", "'tool_choice' needs 'tools'.", path)
    elif not isinstance(value, dict):
        problems.wrong_type(path, "a string or an object", value)
    elif value.get("type") in ("function", "custom"):
        _check_named_choice(value, tools, path, problems)
    elif value.get("type") == "allowed_tools":
        _check_allowed_tools(value, path, problems)


def _check_named_choice(value: dict[str, Any], tools: Any, path: str, problems: Problems) -> None:
    kind = value["type"]
    named = value.get(kind)
    name = named.get("name") if isinstance(named, dict) else None
    if not isinstance(name, str):
        problems.missing(f"{path}.{kind}.name")
    elif name not in _names_of(tools, kind):
        problems.add("invalid_value", f"'{path}' names '{name[:64]}', which is not in 'tools'.", path)


def _names_of(tools: Any, kind: str) -> set[str]:
    entries = tools if isinstance(tools, list) else []
    members = [tool.get(kind) for tool in entries if isinstance(tool, dict)]
    return {str(member.get("name")) for member in members if isinstance(member, dict)}


def _check_allowed_tools(value: dict[str, Any], path: str, problems: Problems) -> None:
    allowed = value.get("allowed_tools", value)
    if not isinstance(allowed, dict):
        problems.wrong_type(f"{path}.allowed_tools", "an object", allowed)
        return
    any_of("auto", "required")(allowed.get("mode"), f"{path}.allowed_tools.mode", problems)
    if not isinstance(allowed.get("tools"), list):
        problems.wrong_type(f"{path}.allowed_tools.tools", "an array", allowed.get("tools"))


def _check_name(holder: dict[str, Any], path: str, problems: Problems) -> None:
    name = holder.get("name")
    if name is None:
        problems.missing(f"{path}.name")
    elif not isinstance(name, str):
        problems.wrong_type(f"{path}.name", "a string", name)
    elif not _NAME.match(name):
        problems.add(
            "invalid_value",
            f"'{path}.name' must be 1 to 64 of the characters a-z, A-Z, 0-9, _ and -.",
            f"{path}.name",
        )
