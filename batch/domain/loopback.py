"""Which names and addresses are this machine's own, and who may listen beyond them. Pure."""

from __future__ import annotations

import ipaddress

from batch.domain.errors import InvalidConfiguration


def is_loopback(host: str) -> bool:
    """localhost, 127.0.0.0/8 and ::1, written as names or numbers without a port."""
    name = host.lower().rstrip(".")
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False


def check_listen_address(host: str, *, has_keys: bool) -> None:
    """Raises InvalidConfiguration for an address that others can reach while no key exists."""
    if not has_keys and not is_loopback(host):
        raise InvalidConfiguration(
            f"host = {host}: without API keys the server listens on loopback only\n"
            "make a key first: batchmill admin keys create   or use host = 127.0.0.1",
            param="host",
        )
