"""One running API for the shelf; tests that need their own start it with tests.harness.api."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from openai import OpenAI

from tests.harness.api import RunningApi, running_api


@pytest.fixture(scope="session")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApi]:
    """A server without keys."""
    with running_api(tmp_path_factory.mktemp("api")) as running:
        yield running


@pytest.fixture
def client(api: RunningApi) -> OpenAI:
    """The unmodified openai SDK, with only base_url changed."""
    return api.sdk()


@pytest.fixture
def http(api: RunningApi) -> Iterator[httpx.Client]:
    with api.http() as plain:
        yield plain
