"""One running API for the shelf; tests that need their own start it with tests.harness.api."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import httpx
import pytest
from openai import OpenAI

from tests.harness.api import RunningApi, running_api
from tests.harness.databases import fresh_postgres


@pytest.fixture(scope="session", params=["sqlite", "postgresql"])
def api(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApi]:
    """A server without keys, on each database in turn."""
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(fresh_postgres()) if request.param == "postgresql" else None
        yield stack.enter_context(running_api(tmp_path_factory.mktemp("api"), url))


@pytest.fixture
def client(api: RunningApi) -> OpenAI:
    """The unmodified openai SDK, with only base_url changed."""
    return api.sdk()


@pytest.fixture
def http(api: RunningApi) -> Iterator[httpx.Client]:
    with api.http() as plain:
        yield plain
