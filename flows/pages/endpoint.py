"""The page of the endpoint: requests, latency, queue, rejects, versions, health, drift and last photos; its start and stop."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from flows.drift import LastDrift, last_drift
from flows.endpoint.recent import MOST, Recent, RecentPhoto
from flows.endpoint.server import start_endpoint, stop_endpoint
from flows.endpoint.state import EndpointHealth, EndpointState, check_endpoint, endpoint_state
from flows.pages.access import Looks, Operates
from flows.pages.site import TheSite, page
from flows.watch import watch_detached

router = APIRouter()
WATCH_PERIOD_S = 5.0


@dataclass(frozen=True)
class EndpointView:
    """The endpoint now, and the last comparison of its traffic with the test photos."""

    state: EndpointState
    drift: LastDrift | None


@dataclass(frozen=True)
class RecentPhotos:
    """The last photos of the page Recognise, newest first; `kept`: further ones are kept, at most `most`."""

    kept: bool
    most: int
    photos: list[RecentPhoto]


class Ports(BaseModel):
    """Ports of the server that is to start."""

    http_port: int = Field(default=8000, ge=1, le=65535)
    grpc_port: int = Field(default=8001, ge=1, le=65535)
    metrics_port: int = Field(default=8002, ge=1, le=65535)


@router.get("/endpoint", include_in_schema=False)
def endpoint_page(request: Request, site: TheSite, person: Looks) -> Response:
    """The endpoint."""
    view = EndpointView(endpoint_state(site.workspace), last_drift(site.workspace))
    photos = asdict(recent(site, person))
    return page(request, "endpoint.html", title="Endpoint", state=asdict(view.state), drift=view.drift, photos=photos)


@router.get("/api/endpoint", tags=["endpoint"])
def show_endpoint(site: TheSite, person: Looks) -> EndpointView:
    """State of the endpoint: if one runs, its counters since each model version was loaded, and the last drift."""
    return EndpointView(endpoint_state(site.workspace), last_drift(site.workspace))


@router.get("/api/endpoint/health", tags=["endpoint"])
def check(site: TheSite, person: Looks) -> EndpointHealth:
    """Asks the endpoint for a photo whose answer is known."""
    return check_endpoint(site.workspace)


@router.post("/api/endpoint/start", tags=["endpoint"])
def start(site: TheSite, person: Operates, body: Ports) -> EndpointState:
    """Starts the workspace's own server with the current model, and a watcher that restarts it; both outlive this one."""
    start_endpoint(site.workspace, http_port=body.http_port, grpc_port=body.grpc_port, metrics_port=body.metrics_port)
    watch_detached(site.workspace, period_s=WATCH_PERIOD_S)
    return endpoint_state(site.workspace)


@router.post("/api/endpoint/stop", tags=["endpoint"])
def stop(site: TheSite, person: Operates) -> EndpointState:
    """Stops the workspace's own server and its watcher; clients get no answers from then on."""
    stop_endpoint(site.workspace)
    return endpoint_state(site.workspace)


@router.get("/api/endpoint/photos", tags=["endpoint"])
def recent(site: TheSite, person: Looks) -> RecentPhotos:
    """The last photos that people sent on the page Recognise with the answers, if `cleanshelf web --keep-photos` keeps them."""
    return RecentPhotos(site.keeps_photos, MOST, Recent(site.workspace.state).photos())


@router.get("/api/endpoint/photos/{sha256}", tags=["endpoint"], response_class=Response)
def recent_picture(site: TheSite, person: Looks, sha256: str) -> Response:
    """A kept photo as a JPEG of at most 256 pixels on its longer side."""
    return Response(Recent(site.workspace.state).picture(sha256), media_type="image/jpeg")


@router.delete("/api/endpoint/photos/{sha256}", tags=["endpoint"])
def forget(site: TheSite, person: Operates, sha256: str) -> RecentPhotos:
    """Deletes a kept photo."""
    Recent(site.workspace.state).remove(sha256)
    return recent(site, person)


@router.delete("/api/endpoint/photos", tags=["endpoint"])
def forget_all(site: TheSite, person: Operates) -> RecentPhotos:
    """Deletes all kept photos."""
    Recent(site.workspace.state).clear()
    return recent(site, person)
