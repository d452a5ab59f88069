"""/v1/webhook_endpoints: who is told when a batch ends.

Owns: the routes that `client.webhooks` of the openai SDK calls. A secret is shown when it is made.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Query
from pydantic import BaseModel, Field
from starlette.responses import Response

from batch.api.routing import CallerDep, WorldDep, make_router
from batch.api.shapes import DeletedObject, Page, WebhookEndpointObject, answer, page
from batch.operations import webhook_endpoints as endpoints
from batch.operations.deliver_webhooks import EVENTS
from batch.storage import webhooks

router = make_router("webhooks")


class CreateEndpoint(BaseModel):
    name: str = Field(min_length=1, max_length=200)
    url: str
    event_types: list[str] = Field(max_length=50)


class UpdateEndpoint(BaseModel):
    name: str | None = Field(default=None, min_length=1, max_length=200)
    url: str | None = None
    event_types: list[str] | None = Field(default=None, max_length=50)


class RotateSecret(BaseModel):
    keep_old_secret_active_for_24_hours: bool = False


class TryEndpoint(BaseModel):
    event_type: str


@router.post("/v1/webhook_endpoints", response_model=WebhookEndpointObject)
def create(body: CreateEndpoint, world: WorldDep, caller: CallerDep) -> Response:
    """The answer holds `signing_secret`, this once."""
    row = endpoints.create_endpoint(
        world, caller.project_id, name=body.name, url=body.url, event_types=body.event_types
    )
    return answer({**_endpoint_object(row), "signing_secret": row.secret})


@router.get("/v1/webhook_endpoints", response_model=Page)
def read_page(
    world: WorldDep, caller: CallerDep, after: str | None = None, limit: Annotated[int, Query(ge=1, le=100)] = 20
) -> Response:
    with world.db.read() as connection:
        rows, has_more = webhooks.list_endpoints(connection, caller.project_id, after=after, limit=limit)
    return page(rows, has_more, _endpoint_object)


@router.get("/v1/webhook_endpoints/event_types")
def read_event_types(world: WorldDep, caller: CallerDep) -> Response:
    return answer({"object": "list", "data": list(EVENTS)})


@router.get("/v1/webhook_endpoints/{endpoint_id}", response_model=WebhookEndpointObject)
def read_one(endpoint_id: str, world: WorldDep, caller: CallerDep) -> Response:
    with world.db.read() as connection:
        return answer(_endpoint_object(webhooks.get_endpoint(connection, caller.project_id, endpoint_id)))


@router.post("/v1/webhook_endpoints/{endpoint_id}", response_model=WebhookEndpointObject)
def update(endpoint_id: str, body: UpdateEndpoint, world: WorldDep, caller: CallerDep) -> Response:
    changes = body.model_dump(exclude_none=True)
    return answer(_endpoint_object(endpoints.update_endpoint(world, caller.project_id, endpoint_id, changes)))


@router.delete("/v1/webhook_endpoints/{endpoint_id}", response_model=DeletedObject)
def remove(endpoint_id: str, world: WorldDep, caller: CallerDep) -> Response:
    with world.db.write() as connection:
        webhooks.delete_endpoint(connection, caller.project_id, endpoint_id)
    return answer({"id": endpoint_id, "object": "webhook_endpoint.deleted", "deleted": True})


@router.post("/v1/webhook_endpoints/{endpoint_id}/rotate_secret", response_model=WebhookEndpointObject)
def rotate(
    endpoint_id: str, world: WorldDep, caller: CallerDep, body: RotateSecret | None = None
) -> Response:
    """The answer holds the new `signing_secret`, this once."""
    keep_old = body is not None and body.keep_old_secret_active_for_24_hours
    row = endpoints.rotate_endpoint_secret(world, caller.project_id, endpoint_id, keep_old=keep_old)
    return answer({**_endpoint_object(row), "signing_secret": row.secret})


@router.post("/v1/webhook_endpoints/{endpoint_id}/test")
def send_test(endpoint_id: str, body: TryEndpoint, world: WorldDep, caller: CallerDep) -> Response:
    """Send one sample now and tell what the endpoint answered."""
    status = endpoints.try_endpoint(world, caller.project_id, endpoint_id, body.event_type)
    return answer(
        {
            "object": "webhook_endpoint.test",
            "event_type": body.event_type,
            "status_code": status,
            "success": True,
            "webhook_endpoint_id": endpoint_id,
        }
    )


def _endpoint_object(row: Any) -> dict[str, Any]:
    return {
        "id": row.public_id,
        "object": "webhook_endpoint",
        "name": row.name,
        "url": row.url,
        "event_types": list(row.event_types),
        "created_at": row.created_at // 1000,
        "updated_at": row.updated_at // 1000,
        "signing_secret_hint": f"whsec_...{row.secret[-4:]}",
    }
