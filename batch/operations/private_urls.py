"""Addresses in a request that an own engine would fetch: which of them point inside.

Owns: finding the URLs of content parts and judging them by how they are written. Names are not resolved:
they mean what the engine's resolver says later, so a public name for a private address passes; the
engine's own allow-list of media domains closes that. May not touch: the network. Serves ingest.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from batch.domain.line import LineProblem
from batch.operations.webhook_targets import is_public
from batch.providers.provider import Provider

_INSIDE = (".localhost", ".local", ".internal", ".home.arpa", ".lan")


def is_own(provider: Provider) -> bool:
    """An engine of ours: by its preset, or because it is reached at a private address."""
    return provider.engine is not None or any(is_private(url) for url in provider.base_urls)


def find_private_url(body: dict[str, Any]) -> LineProblem | None:
    """The first content part whose URL an own engine must not fetch; the URL itself is not repeated."""
    key = "messages" if "messages" in body else "input"
    for place, url in _urls(body.get(key), key):
        if not url.startswith("data:") and is_private(url):
            message = "The URL points into a private network, or is no http(s) URL (block_private_urls)."
            return LineProblem("private_url", message, f"body.{place}")
    return None


def is_private(url: str) -> bool:
    """True for private, loopback and link-local addresses in any spelling, local names, and other schemes."""
    try:
        parts = urlsplit(url.replace("\\", "/"))  # as browsers and many clients read it
        host = (parts.hostname or "").rstrip(".")
    except ValueError:
        return True
    if parts.scheme not in ("http", "https") or not host:
        return True
    try:
        return not is_public(ipaddress.ip_address(host.partition("%")[0]))
    except ValueError:
        pass
    try:  # 127.1, 2130706433, 0x7f000001, 0177.0.0.1
        return not is_public(ipaddress.IPv4Address(socket.inet_aton(host)))
    except OSError:
        return "." not in host or f".{host}".endswith(_INSIDE)


def _urls(items: Any, place: str) -> Iterator[tuple[str, str]]:
    for index, item in enumerate(items if isinstance(items, list) else ()):
        content = item.get("content") if isinstance(item, dict) else None
        for number, part in enumerate(content if isinstance(content, list) else ()):
            for name, value in part.items() if isinstance(part, dict) else ():
                url = value.get("url") if isinstance(value, dict) else value
                if name.endswith("_url") and isinstance(url, str):
                    yield f"{place}[{index}].content[{number}].{name}", url
