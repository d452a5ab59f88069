"""/healthz, /readyz, /metrics: for supervisors and Prometheus, without a key.

Owns: the routes. None tells ids, names of projects, or addresses.
"""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from batch.api.routing import WorldDep
from batch.api.shapes import answer
from batch.operations.check_ready import OK, check_ready
from batch.storage.gauges import measure_load
from batch.telemetry import METRICS_CONTENT_TYPE, render_metrics

router = APIRouter(tags=["operation"])


@router.get("/healthz")
async def healthz() -> Response:
    """The process lives and its event loop turns."""
    return answer({"status": OK})


@router.get("/readyz")
def readyz(world: WorldDep) -> Response:
    """200 when the database, the broker and the file store answer, else 503 with what does not."""
    parts = check_ready(world)
    is_ready = all(state == OK for state in parts.values())
    return answer({"status": OK if is_ready else "not ready", **parts}, 200 if is_ready else 503)


@router.get("/metrics")
def metrics(world: WorldDep) -> Response:
    """Prometheus text; workers serve their own on metrics_port."""
    with world.db.read() as connection:
        measure_load(connection)
    return Response(render_metrics(), media_type=METRICS_CONTENT_TYPE)
