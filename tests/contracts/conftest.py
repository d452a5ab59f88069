"""One running API for the shelf of contracts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.harness.api import RunningApi, running_api


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApi]:
    with running_api(tmp_path_factory.mktemp("contract")) as running:
        yield running
