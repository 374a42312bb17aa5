"""The routes. Without `from __future__ import annotations`: FastAPI reads the types of bodies that are made here, with their limits."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, TypeVar

from fastapi import APIRouter, Body, Depends, FastAPI, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import Field

from .metrics import CONTENT_TYPE
from .middleware import BodyLimit, CountRequests
from .problems import Problem, describe, install_handlers
from .recommender import Found
from .schemas import (
    AddRequest,
    CatalogueChange,
    CatalogueState,
    Health,
    ItemsAdded,
    RecommendAnswer,
    RecommendedItem,
    ReloadRequest,
    RemoveRequest,
    limited,
)
from .service import RecommendService

T = TypeVar("T")

NEW_ITEMS_SHOWN = 100
PROBLEMS = {
    413: "The body is too large.",
    422: "The body is wrong, names unknown items, or has settings that mean nothing to the model that is served.",
    429: "The queue is full; Retry-After says when to come back.",
    503: "The model is being loaded, or the service is stopping.",
    504: "No answer before the deadline.",
}
ADMIN_PROBLEMS = {401: "No bearer token, or a wrong one.", 413: PROBLEMS[413], 422: "The change cannot be made.", 503: PROBLEMS[503]}


def create_app(service: RecommendService, admin_token: str | None = None) -> FastAPI:
    """The HTTP service.

    Args:
        service: started and finished with the app.
        admin_token: what changes of the catalogue must bring; None leaves their routes out.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # In a task, so that the port answers while the model is loaded: alive, not ready.
        loading = asyncio.create_task(service.start(), name="cemg-loading")
        yield
        await loading
        await service.finish()

    app = FastAPI(
        title="CEMG recommendations",
        description="Next items for histories of items.",
        version=version("cemg-hf"),
        lifespan=lifespan,
    )
    install_handlers(app)
    app.add_middleware(BodyLimit, max_bytes=int(service.config.max_body_mb * 1e6))
    app.add_middleware(CountRequests, metrics=service.metrics)
    app.include_router(recommend_routes(service))
    app.include_router(state_routes(service))
    if admin_token is not None:
        app.include_router(admin_routes(service, admin_token))
    return app


def recommend_routes(service: RecommendService) -> APIRouter:
    router = APIRouter(tags=["recommend"], responses=describe(PROBLEMS))
    Request = limited(service.config)
    Requests = Annotated[list[Request], Field(min_length=1, max_length=service.config.max_requests), Body()]  # type: ignore[valid-type]

    def answer(found: Found) -> RecommendAnswer:
        items = [RecommendedItem(item_id=i, score=score, title=service.titles.get(i)) for i, score in found.recommendations]
        return RecommendAnswer(recommendations=items, unknown=found.unknown, catalogue=found.fingerprint)

    @router.post("/recommend", response_model_exclude_none=True)
    async def recommend(request: Request) -> RecommendAnswer:  # type: ignore[valid-type]
        """The k most probable next items after a history; every one of them is an item of the catalogue that the answer names."""
        return answer((await service.recommend([request.query()]))[0])  # type: ignore[attr-defined]

    @router.post("/recommend/batch", response_model_exclude_none=True)
    async def recommend_batch(requests: Requests) -> list[RecommendAnswer]:
        """Several requests at once, answered in order: all of them or none."""
        return [answer(found) for found in await service.recommend([request.query() for request in requests])]  # type: ignore[attr-defined]

    return router


def state_routes(service: RecommendService) -> APIRouter:
    router = APIRouter(tags=["state"])

    @router.get("/health/live", responses=describe({503: "There was no model to load."}))
    async def live() -> Health:
        """Whether the process is worth keeping."""
        if service.state == "failed":
            raise Problem(503, str(service.failure))
        return Health(status=service.state)

    @router.get("/health/ready", responses=describe({503: PROBLEMS[503]}))
    async def ready() -> Health:
        """Whether to send requests here."""
        service.check_ready()
        return Health(status=service.state)

    @router.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Metrics for Prometheus."""
        return Response(service.metrics.exposition(), media_type=CONTENT_TYPE)

    @router.get("/catalogue", responses=describe({503: PROBLEMS[503]}))
    async def catalogue() -> CatalogueState:
        """The catalogue that is recommended from."""
        service.check_ready()
        current = service.recommender.catalogue
        new = current.new_item_ids
        latest = list(new[-NEW_ITEMS_SHOWN:])
        return CatalogueState(items=len(current.known), fingerprint=current.fingerprint, new_items=len(new), new_item_ids=latest)

    return router


def admin_routes(service: RecommendService, token: str) -> APIRouter:
    bearer = HTTPBearer(auto_error=False, description="The service's admin token.")

    def authorised(credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]) -> None:
        given = "" if credentials is None else credentials.credentials
        if not secrets.compare_digest(given.encode(), token.encode()):
            raise Problem(401, "this route needs the admin token: Authorization: Bearer …", headers={"WWW-Authenticate": "Bearer"})
        service.check_ready()

    router = APIRouter(prefix="/catalogue", tags=["catalogue"], dependencies=[Depends(authorised)], responses=describe(ADMIN_PROBLEMS))

    @router.post("/items")
    async def add_items(request: AddRequest) -> ItemsAdded:
        """Add items to the catalogue of this process; nothing is retrained and no code changes.

        A network over whole items (SASRec, GRU4Rec) takes none, and answers 422.
        """
        moved, now = await _changed(service.keeper.add(request.item_ids, request.vectors, request.masks, request.collaborative))
        return ItemsAdded(items=len(now.known), fingerprint=now.fingerprint, moved=moved)

    @router.delete("/items")
    async def remove_items(request: RemoveRequest) -> CatalogueChange:
        """Take items out of the catalogue of this process."""
        now = await _changed(service.keeper.remove(request.item_ids))
        return CatalogueChange(items=len(now.known), fingerprint=now.fingerprint)

    @router.post("/reload")
    async def reload(request: ReloadRequest | None = None) -> CatalogueChange:
        """Read the catalogue from a folder again; what was added or removed here since is gone."""
        folder = None if request is None or request.folder is None else Path(request.folder)
        now = await _changed(service.keeper.reload(folder))
        return CatalogueChange(items=len(now.known), fingerprint=now.fingerprint)

    return router


async def _changed(change: Awaitable[T]) -> T:
    """Raises Problem: 422 with the reason, where the catalogue refuses the change."""
    try:
        return await change
    except ValueError as error:
        raise Problem(422, str(error)) from error
