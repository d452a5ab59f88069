"""Webhooks: endpoints by the SDK, and deliveries that arrive signed, once allowed, and are tried again."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import openai
import pytest
from openai import OpenAI

from batch.operations import webhook_targets
from batch.operations.bells import Bells
from batch.operations.deliver_webhooks import DeliveryReport, backoff_ms, deliver_webhooks
from batch.operations.webhook_endpoints import create_endpoint, rotate_endpoint_secret
from batch.operations.webhook_targets import is_public, post_webhook, resolve
from batch.operations.world import World, open_world
from batch.settings import Settings
from batch.storage import projects, webhooks
from batch.storage.engine import Database, db_now
from batch.storage.tables import webhook_deliveries
from tests.harness.api import RunningApi
from tests.harness.clock import FakeClock


class Receiver:
    """Answers with the next of `statuses` (200 when empty) and keeps what came."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.received: list[tuple[dict[str, str], bytes]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                outer.received.append(({k.lower(): v for k, v in self.headers.items()}, body))
                status = outer.statuses.pop(0) if outer.statuses else 200
                self.send_response(status)
                if status == 302:
                    self.send_header("location", "/elsewhere")
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def world(db: Database, tmp_path: Path) -> Iterator[World]:
    settings = Settings(
        data_dir=tmp_path,
        database_url=db.url.render_as_string(hide_password=False),
        webhook_allow_private=True,
        webhook_secret="whsec_" + "QUJD" * 8,  # type: ignore[arg-type]
    )
    opened = open_world(settings, bells=Bells())
    yield opened
    opened.close()


class _Batch:
    def __init__(self, project_id: int) -> None:
        self.id, self.public_id, self.project_id = 7, "batch_abc", project_id


def _project(world: World) -> int:
    with world.db.write() as connection:
        return projects.ensure_project(connection).id


def _enqueue(world: World, project_id: int, event: str = "batch.completed") -> None:
    with world.db.write() as connection:
        webhooks.enqueue_event(connection, _Batch(project_id), event)


def _make_due(world: World) -> None:
    with world.db.write() as connection:
        connection.execute(
            webhook_deliveries.update().where(webhook_deliveries.c.next_at.is_not(None)).values(next_at=db_now())
        )


def test_an_event_reaches_who_wants_it_signed(world: World, receiver: Receiver) -> None:
    """The openai SDK unwraps what arrives."""
    project = _project(world)
    row = create_endpoint(world, project, name="h", url=receiver.url, event_types=["batch.completed"])
    create_endpoint(world, project, name="other", url=receiver.url, event_types=["batch.failed"])
    _enqueue(world, project)
    assert deliver_webhooks(world) == DeliveryReport(delivered=1)
    [(headers, body)] = receiver.received
    event = OpenAI(api_key="x").webhooks.unwrap(body, headers, secret=row.secret)
    assert (event.type, event.data.id) == ("batch.completed", "batch_abc")  # type: ignore[union-attr]
    assert headers["content-type"] == "application/json" and headers["webhook-id"].startswith("wh_")
    assert deliver_webhooks(world) == DeliveryReport()


def test_a_failure_is_tried_again_with_the_same_id_and_a_fresh_signature(world: World, receiver: Receiver) -> None:
    """Redirects are not followed: a 302 is a failure."""
    project = _project(world)
    row = create_endpoint(world, project, name="h", url=receiver.url, event_types=["batch.expired"])
    receiver.statuses = [500, 302]
    _enqueue(world, project, "batch.expired")
    assert deliver_webhooks(world).failed == 1
    assert deliver_webhooks(world) == DeliveryReport(), "not due yet"
    _make_due(world)
    assert deliver_webhooks(world).failed == 1
    _make_due(world)
    assert deliver_webhooks(world).delivered == 1
    assert len({headers["webhook-id"] for headers, _body in receiver.received}) == 1
    headers, body = receiver.received[-1]
    OpenAI(api_key="x").webhooks.unwrap(body, headers, secret=row.secret)


def test_after_three_days_it_is_given_up(world: World, receiver: Receiver) -> None:
    project = _project(world)
    create_endpoint(world, project, name="h", url=receiver.url, event_types=["batch.failed"])
    _enqueue(world, project, "batch.failed")
    with world.db.write() as connection:
        connection.execute(webhook_deliveries.update().values(created_at=db_now() - 72 * 3_600_000))
    receiver.statuses = [503]
    assert deliver_webhooks(world).given_up == 1
    _make_due(world)
    assert deliver_webhooks(world) == DeliveryReport()


def test_both_secrets_sign_for_a_day_after_a_rotation(world: World, receiver: Receiver) -> None:
    project = _project(world)
    old = create_endpoint(world, project, name="h", url=receiver.url, event_types=["batch.completed"])
    new = rotate_endpoint_secret(world, project, old.public_id, keep_old=True)
    _enqueue(world, project)
    deliver_webhooks(world)
    headers, body = receiver.received[-1]
    for secret in (old.secret, new.secret):
        OpenAI(api_key="x").webhooks.unwrap(body, headers, secret=secret)
    newest = rotate_endpoint_secret(world, project, old.public_id, keep_old=False)
    _enqueue(world, project)
    deliver_webhooks(world)
    headers, body = receiver.received[-1]
    OpenAI(api_key="x").webhooks.unwrap(body, headers, secret=newest.secret)
    with pytest.raises(openai.InvalidWebhookSignatureError):
        OpenAI(api_key="x").webhooks.unwrap(body, headers, secret=new.secret)


def test_configured_urls_get_every_event(world: World, receiver: Receiver) -> None:
    settings = world.settings.model_copy(update={"webhook_urls": [receiver.url]})
    world.settings = settings
    _enqueue(world, _project(world), "batch.paused")
    assert deliver_webhooks(world).delivered == 1
    headers, body = receiver.received[0]
    assert settings.webhook_secret is not None
    OpenAI(api_key="x").webhooks.verify_signature(body, headers, secret=settings.webhook_secret.get_secret_value())
    assert json.loads(body)["type"] == "batch.paused"


def test_an_event_of_a_rolled_back_transaction_is_never_sent(world: World, receiver: Receiver) -> None:
    project = _project(world)
    create_endpoint(world, project, name="h", url=receiver.url, event_types=["batch.completed"])
    with pytest.raises(RuntimeError), world.db.write() as connection:
        webhooks.enqueue_event(connection, _Batch(project), "batch.completed")
        raise RuntimeError
    assert deliver_webhooks(world) == DeliveryReport()


def test_private_targets_are_refused_unless_allowed(receiver: Receiver) -> None:
    port = receiver.server.server_port
    for host in ("127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "10.0.0.1", "169.254.169.254"):
        answer = post_webhook(f"https://{host}:{port}/", b"{}", {}, allow_private=False)
        assert answer.status is None and "private" in answer.reason, host
    assert receiver.received == []


def test_a_host_that_drips_its_answer_gets_no_more_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """One deadline for the whole exchange, however many bytes come in time."""
    monkeypatch.setattr(webhook_targets, "TIMEOUT_S", 0.3)
    listening, stop = socket.create_server(("127.0.0.1", 0)), threading.Event()

    def drip() -> None:
        connection, _ = listening.accept()
        with connection, contextlib.suppress(OSError):
            connection.send(b"HTTP/1.1 200 OK\r\n")
            while not stop.wait(0.02):
                connection.send(b"x")

    dripping = threading.Thread(target=drip, daemon=True)
    dripping.start()
    with listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/"
        assert post_webhook(url, b"{}", {}, allow_private=True).reason == "did not answer (TimeoutError)"
    stop.set()
    dripping.join()


def test_a_name_is_judged_by_all_its_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS rebinding: the address that was checked is the one that is called."""
    entries = [(0, 0, 0, "", (address, 443)) for address in ("93.184.216.34", "127.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_options: entries)
    with pytest.raises(Exception, match="private network"):
        resolve("rebind.example", 443, False)
    assert resolve("rebind.example", 443, True) == "93.184.216.34"


@pytest.mark.parametrize(
    ("address", "public"),
    [("8.8.8.8", True), ("2606:4700::1", True), ("100.64.0.1", False), ("fe80::1", False), ("fd00::1", False),
     ("64:ff9b::7f00:1", False), ("2002:7f00:1::", False), ("0.0.0.0", False), ("224.0.0.1", False)],
)  # fmt: skip
def test_what_counts_as_public(address: str, public: bool) -> None:
    import ipaddress

    assert is_public(ipaddress.ip_address(address)) is public


def test_the_back_off_doubles_up_to_six_hours() -> None:
    clock = FakeClock()
    assert [backoff_ms(attempt, 1.0) for attempt in (1, 2, 3)] == [5_000, 10_000, 20_000]
    assert backoff_ms(50, clock.uniform(0.8, 1.2)) <= 6 * 3_600_000 * 1.2


def test_the_sdk_manages_endpoints(client: OpenAI, api: RunningApi) -> None:
    """client.webhooks.create, retrieve, update, list, rotate_secret, delete."""
    made = client.webhooks.create(name="n", url="https://example.com/x", event_types=["batch.completed"])
    assert made.signing_secret.startswith("whsec_") and made.object == "webhook_endpoint"
    assert made.signing_secret_hint == f"whsec_...{made.signing_secret[-4:]}"
    fetched = client.webhooks.retrieve(made.id)
    assert (fetched.name, fetched.url, fetched.event_types) == ("n", "https://example.com/x", ["batch.completed"])
    assert "signing_secret" not in fetched.model_dump()
    changed = client.webhooks.update(made.id, name="m", event_types=["batch.failed"])
    assert (changed.name, changed.event_types) == ("m", ["batch.failed"])
    second = client.webhooks.create(name="n2", url="https://example.com/y", event_types=["batch.expired"])
    assert [endpoint.id for endpoint in client.webhooks.list(limit=1)] == [second.id, made.id]
    rotated = client.webhooks.rotate_secret(made.id, keep_old_secret_active_for_24_hours=True)
    assert rotated.signing_secret != made.signing_secret
    deleted = client.webhooks.delete(made.id)
    assert (deleted.object, deleted.deleted) == ("webhook_endpoint.deleted", True)
    with pytest.raises(openai.NotFoundError):
        client.webhooks.retrieve(made.id)
    with pytest.raises(openai.BadRequestError, match="private network"):
        client.webhooks.create(name="n", url="https://127.0.0.1/", event_types=["batch.completed"])
    with pytest.raises(openai.BadRequestError, match="could not be called"):
        client.webhooks.test(second.id, event_type="batch.completed")


def test_a_test_call_tells_what_the_endpoint_answered(world: World, receiver: Receiver) -> None:
    from batch.operations.webhook_endpoints import try_endpoint

    project = _project(world)
    row = create_endpoint(world, project, name="h", url=receiver.url, event_types=["batch.completed"])
    receiver.statuses = [418]
    assert try_endpoint(world, project, row.public_id, "batch.failed") == 418
    headers, body = receiver.received[0]
    OpenAI(api_key="x").webhooks.unwrap(body, headers, secret=row.secret)
