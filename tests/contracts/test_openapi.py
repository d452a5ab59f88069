"""Generated requests against our own OpenAPI description: no 5xx, every error in the envelope."""

from __future__ import annotations

import contextlib
from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error

from tests.harness.api import RunningApi

_BOUNDS = settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def test_no_request_breaks_the_server(api: RunningApi) -> None:
    """Each operation with valid and with invalid requests; /readyz may say 503 and is left out."""
    schema = schemathesis.openapi.from_url(f"{api.url}/openapi.json").exclude(path="/readyz")
    tried = 0
    for found in schema.get_all_operations():
        operation = found.ok()
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            with contextlib.suppress(Unsatisfiable):  # an operation without input has nothing to get wrong
                _BOUNDS(given(case=operation.as_strategy(generation_mode=mode))(_check))()
        tried += 1
    assert tried > 20


def _check(case: Any) -> None:
    response = case.call()
    case.validate_response(response, checks=[not_a_server_error])
    assert response.headers["x-request-id"][0].startswith("req_")
    if response.status_code >= 400:
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}
