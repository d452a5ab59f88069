"""docker-compose.yml says what it should: valid, confined, ordered by health, nothing published by accident."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from compose_pydantic import ComposeSpecification
from pydantic import ValidationError

from tests.compose.composition import OUR_IMAGE, Missing, image_facts, our_services, read_compose
from tests.harness.servers import ROOT

PASSWORDS = {"POSTGRES_PASSWORD": "pg-word", "FLOWER_PASSWORD": "flower-word", "GRAFANA_PASSWORD": "grafana-word"}
HAS_NO_PULSE = {"migrate"}
DOES_NOT_LISTEN = {"worker", "beat", "prometheus", "grafana", "s3", "flower"}


@pytest.fixture
def services() -> dict[str, Any]:
    return read_compose(PASSWORDS)["services"]


def test_the_file_keeps_to_the_compose_specification() -> None:
    """The models are generated from the specification's own JSON Schema; a wrong key shows that they refuse."""
    written = {key: value for key, value in read_compose(PASSWORDS).items() if not key.startswith("x-")}
    ComposeSpecification(**written)
    for wrong in ({"restrat": "no"}, {"ports": "8484"}, {"depends_on": {"db": {"condition": "service_happy"}}}):
        with pytest.raises(ValidationError):
            ComposeSpecification(services={"a": {"image": "x", **wrong}})


@pytest.mark.parametrize("name", sorted(PASSWORDS))
def test_it_refuses_to_start_without_each_password(name: str) -> None:
    with pytest.raises(Missing, match=name):
        read_compose({key: value for key, value in PASSWORDS.items() if key != name})


def test_every_variable_stands_in_the_example_environment() -> None:
    used = set(re.findall(r"\$\{(\w+)", (ROOT / "docker-compose.yml").read_text()))
    shown = set(re.findall(r"^(\w+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
    assert used - shown == {"FLOWER_USER"}
    assert shown <= used


def test_only_the_api_can_be_published_beyond_loopback(services: dict[str, Any]) -> None:
    """BIND_ADDRESS moves the API and nothing else; stores and the broker have no port at all."""
    beyond = read_compose({**PASSWORDS, "BIND_ADDRESS": "0.0.0.0"})["services"]
    published = {name: raw["ports"] for name, raw in beyond.items() if "ports" in raw}
    assert set(published) == {"api", "flower", "grafana"}
    assert [port for name, ports in published.items() if name != "api" for port in ports] == [
        "127.0.0.1:5555:5555", "127.0.0.1:3000:3000",
    ]  # fmt: skip
    assert services["api"]["ports"] == ["127.0.0.1:8484:8484"]


def test_our_containers_are_confined() -> None:
    """No root, no capabilities, a read-only root, and a way to end: longer than a drain for workers."""
    assert image_facts()["USER"] == "batchmill"
    for name, service in our_services(PASSWORDS).items():
        raw = service.raw
        assert raw["read_only"] is True and raw["cap_drop"] == ["ALL"], name
        assert raw["security_opt"] == ["no-new-privileges:true"], name
        assert raw["restart"] == ("no" if name in HAS_NO_PULSE else "unless-stopped"), name
    assert our_services(PASSWORDS)["worker"].raw["stop_grace_period"] == "45s"


def test_starting_order_is_by_health(services: dict[str, Any]) -> None:
    """What waits for health waits for something that has a health check."""
    for name, raw in services.items():
        needs = raw.get("depends_on", {})
        for needed, how in needs.items() if isinstance(needs, dict) else ():
            if how["condition"] == "service_healthy":
                assert "healthcheck" in services[needed], f"{name} waits for the health of {needed}"
        if raw["image"] == OUR_IMAGE and name not in HAS_NO_PULSE:
            assert needs["migrate"] == {"condition": "service_completed_successfully"}, name
        assert "healthcheck" in raw or name in DOES_NOT_LISTEN | HAS_NO_PULSE, name


def test_provider_keys_reach_workers_only() -> None:
    """The API is told which are set, never what they are; it lists and resolves models by that."""
    running = our_services({**PASSWORDS, "XAI_API_KEY": "xai-real-key"})
    holders = [name for name, service in running.items() if "xai-real-key" in str(service.raw)]
    assert holders == ["worker"]
    assert running["api"].environment["XAI_API_KEY"] == "set"
    assert running["api"].environment["OPENAI_API_KEY"] == ""
    named = {key for key in running["worker"].environment if key.endswith("_API_KEY")}
    assert named == {key for key in running["api"].environment if key.endswith("_API_KEY")}


def test_prometheus_scrapes_the_ports_that_are_served() -> None:
    """The API's own port, and from metrics_port upwards one for each process of a worker container."""
    scraped = yaml.safe_load((ROOT / "examples/monitoring/prometheus.yml").read_text())["scrape_configs"]
    targets = [(name, found["port"]) for job in scraped for found in job["dns_sd_configs"] for name in found["names"]]
    first = int(our_services(PASSWORDS)["worker"].environment["BATCHMILL_METRICS_PORT"])
    assert targets == [("api", 8484), ("worker", first), ("worker", first + 1)]
