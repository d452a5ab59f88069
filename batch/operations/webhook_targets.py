"""Where a webhook may go, and the one guarded POST.

Owns: the check of a target's URL, the resolution of its name to an allowed address, the connection to
exactly that address (so that a name cannot change its meaning between check and use), no redirects,
no proxies, bounded time, an answer that is not read.
May not touch: rows.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpcore
import httpx

from batch.domain.errors import InvalidRequest

TIMEOUT_S = 10.0
_USER_AGENT = "Batchmill-Webhooks/1"


@dataclass(frozen=True, slots=True)
class Answer:
    """`status` is None when no HTTP status was read; `reason` then says what happened."""

    status: int | None
    reason: str

    @property
    def is_success(self) -> bool:
        return self.status is not None and 200 <= self.status < 300


def check_target(url: str, *, allow_private: bool, param: str = "url") -> None:
    """Refuse what can never be called: raises InvalidRequest. Names are resolved at delivery, not here."""
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, UnicodeError):
        raise InvalidRequest("The webhook URL is not a valid URL.", param=param) from None
    allowed = ("https", "http") if allow_private else ("https",)
    if parsed.scheme not in allowed or not parsed.host:
        raise InvalidRequest(f"The webhook URL must start with {' or '.join(f'{s}://' for s in allowed)}.", param=param)
    if parsed.userinfo or len(url) > 2048:
        raise InvalidRequest("The webhook URL must hold no user name and at most 2048 characters.", param=param)
    literal = _literal(parsed.host)
    if literal and not allow_private and not is_public(literal):
        raise InvalidRequest("The webhook URL points into a private network (webhook_allow_private).", param=param)


def post_webhook(url: str, body: bytes, headers: Mapping[str, str], *, allow_private: bool) -> Answer:
    """One attempt. Every outcome is a value; the answer's body is never read."""
    try:
        check_target(url, allow_private=allow_private)
        status = asyncio.run(_post(url, body, headers, allow_private))
        return Answer(status, f"answered {status}")
    except InvalidRequest as refused:
        return Answer(None, refused.message)
    except (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError, OSError, ValueError) as fault:
        return Answer(None, f"did not answer ({type(fault).__name__})")


async def _post(url: str, body: bytes, headers: Mapping[str, str], allow_private: bool) -> int:
    """Asynchronous for its one time limit: a host that drips bytes gets no more time than one that is silent."""
    target = httpx.URL(url)
    sent = {
        "content-type": "application/json", "user-agent": _USER_AGENT, "connection": "close", **headers,
        "host": target.netloc.decode(), "content-length": str(len(body)),
    }  # fmt: skip
    pool = httpcore.AsyncConnectionPool(
        network_backend=_GuardedBackend(allow_private), ssl_context=httpx.create_ssl_context()
    )
    async with (
        asyncio.timeout(TIMEOUT_S),
        pool,
        pool.stream("POST", str(target), headers=list(sent.items()), content=body) as response,
    ):
        return response.status


def resolve(host: str, port: int, allow_private: bool) -> str:
    """One address of `host` that may be called; raises InvalidRequest when any of them may not."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError):
        raise InvalidRequest("the host name does not resolve") from None
    addresses = [str(entry[4][0]) for entry in found]
    if not allow_private and not all(is_public(ipaddress.ip_address(a.partition("%")[0])) for a in addresses):
        raise InvalidRequest("the host is in a private network (webhook_allow_private = false)")
    return addresses[0]


class _GuardedBackend(httpcore.AnyIOBackend):
    """Connects to the very address that was checked."""

    def __init__(self, allow_private: bool) -> None:
        self._allow_private = allow_private

    async def connect_tcp(self, host: str, port: int, *args: Any, **named: Any) -> httpcore.AsyncNetworkStream:
        address = await asyncio.to_thread(resolve, host, port, self._allow_private)
        return await super().connect_tcp(address, port, *args, **named)


def is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """A global unicast address; addresses that carry an IPv4 one inside are judged by it."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or _nat64(address)
        if inner is not None:
            return is_public(inner)
    return address.is_global and not address.is_multicast and not address.is_reserved


_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def _nat64(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF) if address in _NAT64 else None


def _literal(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
