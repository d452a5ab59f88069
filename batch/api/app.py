"""The application: routes, frame, error handlers, OpenAPI.

Owns: how they are put together. A process makes one; the world is given, not opened here.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from fastapi import FastAPI

from batch.api import batches, files, health, models, uploads, webhooks
from batch.api.access import Access
from batch.api.errors import install_handlers
from batch.api.frame import Frame
from batch.operations.world import World

_ABOUT = "OpenAI-compatible files and batches; each input line comes out exactly once."


def create_app(world: World) -> FastAPI:
    """A FastAPI application on `world`; the caller closes the world."""
    app = FastAPI(title="Batchmill", version=_version(), description=_ABOUT, redoc_url=None)
    app.state.world = world
    install_handlers(app)
    for module in (files, uploads, batches, models, webhooks, health):
        app.include_router(module.router)
    app.router.routes.insert(0, batches.POLL)
    app.add_middleware(Frame, world=world, access=Access(world))
    return app


def _version() -> str:
    try:
        return version("batchmill")
    except PackageNotFoundError:
        return "0"
