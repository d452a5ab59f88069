"""What a server without keys refuses, so that no web page and no other machine can use it.

Owns: the loopback rule for the Host name, the checks of Origin and Sec-Fetch-Site.
No CORS header is ever sent. With keys none of this is needed: a browser holds no key.
"""

from __future__ import annotations

from collections.abc import Mapping

from batch.domain.errors import Forbidden
from batch.domain.loopback import is_loopback


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


def _host_name(host: str) -> str:
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0]
