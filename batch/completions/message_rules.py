"""The shapes of messages and content parts.

Owns: the six roles, what each needs, and the known content parts. Part types that OpenAI does not
define pass as they are: whether a provider can read them is the provider's to say.
"""

from __future__ import annotations

from typing import Any

from batch.completions.checks import Problems, Rule, any_of, string

ROLES = ("developer", "system", "user", "assistant", "tool", "function")
_PLAIN_ROLES = frozenset({"developer", "system", "user"})


def is_plain_message(message: Any) -> bool:
    """{"role": developer|system|user, "content": text} and nothing else: surely right."""
    return (
        type(message) is dict
        and len(message) == 2
        and type(message.get("content")) is str
        and type(message.get("role")) is str
        and message["role"] in _PLAIN_ROLES
    )


def check_messages(value: Any, path: str, problems: Problems) -> None:
    if not isinstance(value, list):
        problems.wrong_type(path, "an array of objects", value)
    elif not value:
        problems.add("invalid_value", f"'{path}' must hold at least 1 message.", path)
    else:
        for index, message in enumerate(value):
            if not is_plain_message(message):
                _check_message(message, f"{path}[{index}]", problems)


def _check_message(message: Any, path: str, problems: Problems) -> None:
    if not isinstance(message, dict):
        problems.wrong_type(path, "an object", message)
        return
    role = message.get("role")
    if role is None:
        problems.missing(f"{path}.role")
        return
    if role not in ROLES:
        any_of(*ROLES)(role, f"{path}.role", problems)
        return
    if message.get("name") is not None:
        string()(message["name"], f"{path}.name", problems)
    if role == "tool" and message.get("tool_call_id") is None:
        problems.missing(f"{path}.tool_call_id")
    if role == "function" and message.get("name") is None:
        problems.missing(f"{path}.name")
    if role == "assistant" and message.get("tool_calls") is not None:
        _check_tool_calls(message["tool_calls"], f"{path}.tool_calls", problems)
    _check_content(message, role, path, problems)


def _check_content(message: dict[str, Any], role: str, path: str, problems: Problems) -> None:
    content = message.get("content")
    if isinstance(content, str):
        return
    if content is None:
        speaks_otherwise = any(
            message.get(key) for key in ("tool_calls", "function_call", "audio", "refusal")
        )
        if role != "function" and not (role == "assistant" and speaks_otherwise):
            problems.missing(f"{path}.content")
    elif not isinstance(content, list):
        problems.wrong_type(f"{path}.content", "a string or an array of parts", content)
    elif not content:
        problems.add("invalid_value", f"'{path}.content' must hold at least 1 part.", f"{path}.content")
    else:
        for index, part in enumerate(content):
            _check_part(part, f"{path}.content[{index}]", problems)


def _check_part(part: Any, path: str, problems: Problems) -> None:
    if not isinstance(part, dict):
        problems.wrong_type(path, "an object", part)
        return
    kind = part.get("type")
    if kind is None:
        problems.missing(f"{path}.type")
    elif not isinstance(kind, str):
        problems.wrong_type(f"{path}.type", "a string", kind)
    elif (members := _PARTS.get(kind)) is not None:
        for name, rule in members.items():
            if part.get(name) is None:
                problems.missing(f"{path}.{name}")
            else:
                rule(part[name], f"{path}.{name}", problems)


def _check_image_url(value: Any, path: str, problems: Problems) -> None:
    if not isinstance(value, dict):
        problems.wrong_type(path, "an object with 'url'", value)
        return
    url = value.get("url")
    if url is None:
        problems.missing(f"{path}.url")
    elif not isinstance(url, str):
        problems.wrong_type(f"{path}.url", "a string", url)
    elif not url.startswith(("http://", "https://", "data:")):
        problems.add(
            "invalid_value", f"'{path}.url' must start with http://, https:// or data:.", f"{path}.url"
        )
    if value.get("detail") is not None:
        any_of("auto", "low", "high")(value["detail"], f"{path}.detail", problems)


def _check_audio(value: Any, path: str, problems: Problems) -> None:
    if not isinstance(value, dict):
        problems.wrong_type(path, "an object", value)
        return
    for name, rule in (("data", string(at_least=1)), ("format", any_of("wav", "mp3"))):
        if value.get(name) is None:
            problems.missing(f"{path}.{name}")
        else:
            rule(value[name], f"{path}.{name}", problems)


def _check_file(value: Any, path: str, problems: Problems) -> None:
    if not isinstance(value, dict):
        problems.wrong_type(path, "an object", value)
    elif value.get("file_id") is None and value.get("file_data") is None:
        problems.add("missing_required_parameter", f"'{path}' needs 'file_data' or 'file_id'.", path)


_PARTS: dict[str, dict[str, Rule]] = {
    "text": {"text": string()},
    "image_url": {"image_url": _check_image_url},
    "input_audio": {"input_audio": _check_audio},
    "file": {"file": _check_file},
    "refusal": {"refusal": string()},
}


def _check_tool_calls(value: Any, path: str, problems: Problems) -> None:
    if not isinstance(value, list):
        problems.wrong_type(path, "an array", value)
        return
    for index, call in enumerate(value):
        place = f"{path}[{index}]"
        if not isinstance(call, dict):
            problems.wrong_type(place, "an object", call)
        elif call.get("id") is None:
            problems.missing(f"{place}.id")
        elif call.get("type", "function") == "function":
            _check_called_function(call.get("function"), f"{place}.function", problems)


def _check_called_function(value: Any, path: str, problems: Problems) -> None:
    if not isinstance(value, dict):
        problems.wrong_type(path, "an object", value)
        return
    for name in ("name", "arguments"):
        if not isinstance(value.get(name), str):
            problems.wrong_type(f"{path}.{name}", "a string", value.get(name))
