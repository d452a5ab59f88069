"""/v1/models and /v1/providers: what this server can reach.

Owns: the routes. A project sees only what it may use; keys are named, never shown.
"""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from batch.api.access import Caller
from batch.api.routing import CallerDep, WorldDep, make_router
from batch.api.shapes import ModelObject, answer
from batch.domain.errors import UnknownModel
from batch.operations.providers_view import view_providers
from batch.providers.catalog import ModelInfo

router = make_router("models")
_CREATED = 1_700_000_000  # providers do not say; OpenAI's clients want an integer


@router.get("/v1/models")
def read_models(world: WorldDep, caller: CallerDep) -> Response:
    """Ids known by name; a route with a wildcard serves more than are listed."""
    data = [_model_object(model) for model in world.catalog.models() if _may_use(caller, model.provider)]
    return answer({"object": "list", "data": data})


@router.get("/v1/models/{model_id:path}", response_model=ModelObject)
def read_model(model_id: str, world: WorldDep, caller: CallerDep) -> Response:
    """Any id that would be accepted in a line, also one that is not listed."""
    try:
        route = world.catalog.resolve(model_id, allowed=caller.project.allowed_providers)
    except UnknownModel:
        raise UnknownModel(
            f"The model '{model_id[:200]}' does not exist or you do not have access to it.", param="model"
        ) from None
    name = route.hops[0].provider
    title = world.catalog.providers[name].preset.title if name in world.catalog.providers else name
    return answer(_model_object(ModelInfo(model_id, name, title)))


@router.get("/v1/providers")
def read_providers(world: WorldDep, caller: CallerDep) -> Response:
    """Configured providers as they are now; addresses are for the operator, so not on a server with keys."""
    rows = [row for row in view_providers(world) if _may_use(caller, row["provider"])]
    return answer({"object": "list", "data": [_provider_object(row, caller) for row in rows]})


def _provider_object(row: dict[str, Any], caller: Caller) -> dict[str, Any]:
    shown = {"id": row["provider"], "object": "provider", **row}
    if caller.key_id is not None:
        del shown["base_urls"], shown["replicas"]
    return shown


def _model_object(model: ModelInfo) -> dict[str, Any]:
    return {
        "id": model.id,
        "object": "model",
        "created": _CREATED,
        "owned_by": model.owned_by or model.provider,
        "shutdown_date": None,
    }


def _may_use(caller: Caller, provider: str) -> bool:
    allowed = caller.project.allowed_providers
    return allowed is None or provider in allowed
