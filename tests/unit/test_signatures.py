"""Webhook signatures, against a published vector and two independent verifiers."""

from __future__ import annotations

import json
import time

import openai
import pytest
import standardwebhooks

from batch.domain.signatures import make_secret, sign, signature_headers

SECRET = "whsec_RdvaYFYUXuIFuEbvZHwMfYFhUf7aMYjYcmM24+Aj40c="
PAYLOAD = (
    '{"id": "evt_685c059ae3a481909bdc86819b066fb6", "object": "event", "created_at": 1750861210, '
    '"type": "response.completed", "data": {"id": "resp_123"}}'
)


def test_the_vector_of_openai_node_is_reproduced() -> None:
    """Source: openai-node, tests/lib/webhooks.test.ts."""
    signature = sign(SECRET, "wh_685c059ae39c8190af8c71ed1022a24d", 1750861210, PAYLOAD.encode())
    assert signature == "v1,gUAg4R2hWouRZqRQG4uJypNS8YK885G838+EHb4nKBY="


@pytest.mark.parametrize("secret", [SECRET, make_secret(bytes(range(32)))])
def test_the_openai_sdk_and_standardwebhooks_accept_our_headers(secret: str) -> None:
    headers = signature_headers([secret], "wh_1", int(time.time()), PAYLOAD.encode())
    event = openai.OpenAI(api_key="x").webhooks.unwrap(PAYLOAD, headers, secret=secret)
    assert event.id == json.loads(PAYLOAD)["id"]
    assert standardwebhooks.Webhook(secret).verify(PAYLOAD, headers) == json.loads(PAYLOAD)


def test_two_secrets_sign_during_a_rotation() -> None:
    new = make_secret(b"n" * 32)
    headers = signature_headers([new, SECRET], "wh_1", int(time.time()), PAYLOAD.encode())
    for secret in (new, SECRET):
        openai.OpenAI(api_key="x").webhooks.unwrap(PAYLOAD, headers, secret=secret)


def test_a_changed_body_is_noticed() -> None:
    headers = signature_headers([SECRET], "wh_1", int(time.time()), PAYLOAD.encode())
    with pytest.raises(openai.InvalidWebhookSignatureError):
        openai.OpenAI(api_key="x").webhooks.unwrap(PAYLOAD + " ", headers, secret=SECRET)


def test_without_a_secret_nothing_claims_to_be_signed() -> None:
    assert "webhook-signature" not in signature_headers([], "wh_1", 1, b"{}")
