"""Which parameter a 400 names, in the words of many providers."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from batch.providers.error_shapes import read_error
from batch.providers.params import demotable_param


def named(body: Any) -> str | None:
    return demotable_param(read_error(orjson.dumps(body), 400))


def said(message: str, **more: Any) -> dict[str, Any]:
    return {"error": {"message": message, **more}}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (said("'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."), "max_tokens"),
        (said("Unsupported parameter", param="max_tokens", code="unsupported_parameter"), "max_tokens"),
        (said("'temperature' does not support 0 here.", param="temperature", code="unsupported_value"), "temperature"),
        (said("Unrecognized request argument supplied: logit_bias"), "logit_bias"),
        (said("Unknown parameter: 'seed'.", param="seed", code="unknown_parameter"), "seed"),
        (said("Argument not supported on this model: presencePenalty"), "presence_penalty"),
        (said("Model grok-4 does not support parameter presencePenalty."), "presence_penalty"),
        (said("property 'logprobs' is unsupported"), "logprobs"),
        (said("'n' : number must be at most 1"), "n"),
        (said("`logprobs` is not yet supported by any of our models"), "logprobs"),
        ({"detail": [{"loc": ["body", "logit_bias"], "msg": "Extra inputs are not permitted"}]}, "logit_bias"),
        ({"detail": "Unexpected fields in the request: {'parallel_tool_calls'}"}, "parallel_tool_calls"),
        (said("'response_format' of type 'json_schema' is not supported", param="response_format"), "response_format"),
        (said("response_format.json_schema is not supported", param="response_format.json_schema"), "response_format"),
        (said("stop is not supported with this model"), "stop"),
    ],
)  # fmt: skip
def test_an_unsupported_key_is_named(body: Any, param: str) -> None:
    """The OpenAI spelling comes back, whatever spelling the provider used."""
    assert named(body) == param


@pytest.mark.parametrize(
    "body",
    [
        said("temperature must be between 0 and 2", param="temperature"),
        said("Invalid value for 'top_p': expected a number", param="top_p"),
        said("messages: at least one message is required", param="messages"),
        said("Unknown role 'foo' in messages[0]", param="messages[0].role"),
        said("Extra inputs are not permitted", param="tools.0.function.strict"),
        said("This model does not support image input"),
        said("The user must not be empty"),
        said("Something is not supported"),
    ],
)
def test_a_wrong_value_or_another_place_demotes_nothing(body: Any) -> None:
    """Only words that say that the key itself is unknown lose a capability."""
    assert named(body) is None
