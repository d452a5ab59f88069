"""Private CAs, client certificates and proxies, on both transports, over real sockets."""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from batch.domain.errors import InvalidConfiguration
from batch.domain.outcome import FailureKind
from batch.providers.catalog import Catalog
from batch.providers.faults import TransportFault
from batch.providers.transport import UpstreamRequest, make_transport
from batch.settings import Settings
from tests.harness.upstream import always, answer, running_upstream

Kind = Literal["direct", "httpx"]
OK = always(answer(b"{}"))


@pytest.fixture(params=["direct", "httpx"])
def kind(request: pytest.FixtureRequest) -> Kind:
    chosen: Kind = request.param
    return chosen


def certificate(
    folder: Path, name: str, issuer: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """A certificate for 127.0.0.1, written as NAME.pem and NAME.key; its own issuer when none is given."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer[0].subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .sign(issuer[1] if issuer else key, hashes.SHA256())
    )
    (folder / f"{name}.pem").write_bytes(built.public_bytes(serialization.Encoding.PEM))
    (folder / f"{name}.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return built, key


@pytest.fixture
def pki(tmp_path: Path) -> Path:
    """ca.pem, server.pem/.key and client.pem/.key in one folder."""
    ca = certificate(tmp_path, "ca", None)
    certificate(tmp_path, "server", ca)
    certificate(tmp_path, "client", ca)
    return tmp_path


def server_context(pki: Path, *, asks_client: bool = False) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pki / "server.pem", pki / "server.key")
    if asks_client:
        context.load_verify_locations(pki / "ca.pem")
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def exchange(kind: Kind, context: ssl.SSLContext | None, tls: dict[str, Any], url: Callable[[str], str] = str) -> int:
    """The status of one call to a server behind `context`."""

    async def run() -> int:
        async with running_upstream(OK, context) as upstream:
            settings = Settings(providers={"p": {"base_url": f"{upstream.url}/v1", "tls": tls}})
            provider = Catalog.from_settings(settings, environ={}).providers["p"]
            sender = make_transport(kind, provider, settings)
            try:
                return (await sender.send(UpstreamRequest(url(upstream.url), {}, b"{}", 5.0))).status
            finally:
                await sender.close()

    return asyncio.run(run())


def test_a_private_ca_is_trusted_once_it_is_named(kind: Kind, pki: Path) -> None:
    assert exchange(kind, server_context(pki), {"ca": pki / "ca.pem"}) == 200


def test_an_unknown_ca_is_a_connect_fault_and_nothing_is_sent(kind: Kind, pki: Path) -> None:
    with pytest.raises(TransportFault) as caught:
        exchange(kind, server_context(pki), {})
    assert (caught.value.kind, caught.value.sent) == (FailureKind.CONNECT, False)


def test_a_client_certificate_opens_a_server_that_asks_for_one(kind: Kind, pki: Path) -> None:
    tls = {"ca": pki / "ca.pem", "cert": pki / "client.pem", "key": pki / "client.key"}
    assert exchange(kind, server_context(pki, asks_client=True), tls) == 200
    with pytest.raises(TransportFault):
        exchange(kind, server_context(pki, asks_client=True), {"ca": pki / "ca.pem"})


def test_unusable_certificates_are_a_wrong_configuration(kind: Kind, tmp_path: Path) -> None:
    (tmp_path / "junk.pem").write_text("junk")
    for tls in ({"ca": tmp_path / "missing.pem"}, {"cert": tmp_path / "junk.pem"}):
        with pytest.raises(InvalidConfiguration, match="tls"):
            exchange(kind, None, tls)


def test_a_proxy_named_by_the_environment_is_used(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """The call is for a host that does not exist: only the proxy can have answered."""

    async def run() -> tuple[int, str]:
        async with running_upstream(OK) as proxy:
            monkeypatch.setenv("HTTP_PROXY", proxy.url)
            monkeypatch.setenv("http_proxy", proxy.url)
            monkeypatch.delenv("NO_PROXY", raising=False)
            monkeypatch.delenv("no_proxy", raising=False)
            settings = Settings(providers={"p": {"base_url": "http://provider.invalid/v1"}})
            provider = Catalog.from_settings(settings, environ={}).providers["p"]
            sender = make_transport(kind, provider, settings)
            try:
                response = await sender.send(UpstreamRequest("http://provider.invalid/v1/x", {}, b"{}", 5.0))
            finally:
                await sender.close()
            return response.status, proxy.requests[0].path

    assert asyncio.run(run()) == (200, "http://provider.invalid/v1/x")
