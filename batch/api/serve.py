"""Serve the API: one process, uvloop and httptools, until SIGTERM.

Owns: the rule that a server without keys listens on loopback only, and uvicorn's bounds.
May not touch: migrations and the broker; `batchmill up` sees to them first.
"""

from __future__ import annotations

import sys

import uvicorn

from batch.api.app import create_app
from batch.api.connections import BoundedProtocol, allow_connections
from batch.domain.errors import BatchmillError
from batch.domain.loopback import check_listen_address
from batch.operations.world import open_world
from batch.settings import ConfigError, Settings, load_settings
from batch.storage import projects
from batch.telemetry import configure_logs, emit

_POOL_SIZE = 20
_KEEP_ALIVE_S = 75
_DRAIN_S = 20
_BACKLOG = 1024


def serve(settings: Settings) -> None:
    """Blocks until SIGTERM or SIGINT. Raises InvalidConfiguration before anything listens."""
    configure_logs(settings.log_format, settings.log_level)
    world = open_world(settings, pool_size=_POOL_SIZE)
    try:
        with world.db.read() as connection:
            has_keys = projects.any_key_exists(connection)
        check_listen_address(settings.host, has_keys=has_keys)
        emit("api_started", host=settings.host, port=settings.port, keys="required" if has_keys else "none: loopback")
        BoundedProtocol.max_connections = allow_connections()
        uvicorn.Server(_config(settings, create_app(world))).run()
    finally:
        world.close()


def main() -> int:
    """`python -m batch.api.serve`, as `batchmill up` starts it; 2 for a wrong configuration."""
    try:
        serve(load_settings())
    except (ConfigError, BatchmillError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _config(settings: Settings, app: object) -> uvicorn.Config:
    return uvicorn.Config(
        app,  # type: ignore[arg-type]  # any ASGI application
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http=BoundedProtocol,
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        date_header=True,
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_DRAIN_S,
        backlog=_BACKLOG,
    )


if __name__ == "__main__":
    sys.exit(main())
