"""docker-compose.yml and the Dockerfile as data: read, interpolated, each service as a command and environment."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from tests.harness.servers import ROOT

FILE = ROOT / "docker-compose.yml"
OUR_IMAGE = "batchmill:latest"
_VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?:(?P<mark>:[-+?])(?P<word>[^}]*))?\}")


class Missing(ValueError):
    """A variable that the file demands is not set."""


@dataclass(frozen=True)
class Service:
    """`command` starts with the image's entrypoint, or the service's own."""

    name: str
    command: list[str]
    environment: dict[str, str]
    raw: dict[str, Any]


def read_compose(variables: Mapping[str, str]) -> dict[str, Any]:
    """The whole file, with ${NAME}, ${NAME:-word}, ${NAME:+word} and ${NAME:?word} replaced in every value."""
    return _interpolate(yaml.safe_load(FILE.read_text()), variables)


def our_services(variables: Mapping[str, str]) -> dict[str, Service]:
    """The services that run our image."""
    found = read_compose(variables)["services"]
    return {name: _service(name, raw) for name, raw in found.items() if raw.get("image") == OUR_IMAGE}


def image_facts() -> dict[str, Any]:
    """Of the Dockerfile's last stage: ENTRYPOINT, CMD, USER and the ENV variables."""
    facts: dict[str, Any] = {"ENV": {}}
    for line in (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines():
        word, _, rest = line.partition(" ")
        if word == "FROM":
            facts = {"ENV": {}}
        elif word == "ENV":
            facts["ENV"] |= dict(pair.split("=", 1) for pair in rest.split())
        elif word in {"ENTRYPOINT", "CMD"}:
            facts[word] = json.loads(rest)
        elif word in {"USER", "STOPSIGNAL"}:
            facts[word] = rest.strip()
    return facts


def _service(name: str, raw: dict[str, Any]) -> Service:
    image = image_facts()
    command = [*raw.get("entrypoint", image["ENTRYPOINT"]), *raw.get("command", image["CMD"])]
    return Service(name, command, {**image["ENV"], **raw["environment"]}, raw)


def _interpolate(value: Any, variables: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _interpolate(item, variables) for key, item in value.items()}
    if isinstance(value, list):
        return [_interpolate(item, variables) for item in value]
    return _VARIABLE.sub(lambda match: _replaced(match, variables), value) if isinstance(value, str) else value


def _replaced(match: re.Match[str], variables: Mapping[str, str]) -> str:
    held, mark, word = variables.get(match["name"], ""), match["mark"], match["word"]
    if mark == ":-":
        return held or word
    if mark == ":+":
        return word if held else ""
    if mark == ":?" and not held:
        raise Missing(f"{match['name']}: {word}")
    return held
