"""What a server without keys refuses, so that no web page and no other machine can use it.

Owns: the loopback rule for the address and the Host name, the checks of Origin and Sec-Fetch-Site.
No CORS header is ever sent. With keys none of this is needed: a browser holds no key.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

from batch.domain.errors import Forbidden, InvalidConfiguration


def check_listen_address(host: str, *, has_keys: bool) -> None:
    """Raises InvalidConfiguration for an address that others can reach while no key exists."""
    if not has_keys and not is_loopback(host):
        raise InvalidConfiguration(
            f"host = {host}: without API keys the server listens on loopback only.\n"
            "make a key first: batchmill admin keys create   or use host = 127.0.0.1",
            param="host",
        )


def check_is_local(headers: Mapping[str, str]) -> None:
    """Raises Forbidden for a request that a foreign page, or a rebound name, could have made."""
    host = headers.get("host", "")
    if not is_loopback(_host_name(host)):
        raise Forbidden(
            "This server has no API keys and answers loopback names only (127.0.0.1, localhost). "
            "Make a key with: batchmill admin keys create",
            code="host_not_allowed",
        )
    if headers.get("sec-fetch-site") == "cross-site":
        raise Forbidden("Requests from web pages of other sites are refused.", code="cross_site")
    origin = headers.get("origin")
    if origin is not None and origin.partition("://")[2].lower() != host.lower():
        raise Forbidden("Requests from web pages of other origins are refused.", code="cross_site")


def is_loopback(host: str) -> bool:
    """localhost, 127.0.0.0/8 and ::1, written as names or numbers without a port."""
    name = host.lower().rstrip(".")
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False


def _host_name(host: str) -> str:
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0]
