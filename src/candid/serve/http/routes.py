"""The routes: each reads a request, calls the service, and writes the response."""

from __future__ import annotations

import asyncio
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Final

import pydantic
from fastapi import FastAPI, Query, Request, Response
from pydantic_core import to_json
from starlette.convertors import StringConvertor, register_url_convertor

from candid.serve.browse import find_items, find_users, model_info, user_info
from candid.serve.errors import RequestError
from candid.serve.http import schemas
from candid.serve.http.bodies import read_body, read_optional_body
from candid.serve.http.openapi import document_route
from candid.serve.map import ItemMaps
from candid.serve.requests import Id, ItemRequest, RecommendRequest, SimilarRequest
from candid.serve.service import Service

STATIC: Final = Path(str(files("candid.serve.http") / "static"))
Model = Annotated[
    str | None, Query(max_length=1000, description="name of the model; null: the first")
]
SearchText = Annotated[str, Query(max_length=200, description="words of a title, or an id")]
Limit = Annotated[int, Query(ge=1, le=100)]
FurtherItems = Annotated[
    tuple[Id, ...], Query(max_length=200, description="further items to place")
]


class SourceIdConvertor(StringConvertor):
    """Part of a path that is an id: any text, with slashes and line breaks."""

    regex = "(?s:.*)"


register_url_convertor("source_id", SourceIdConvertor())


def add_recommend_routes(app: FastAPI, service: Service) -> None:
    """Add the routes that rank items."""
    config = service.config

    @app.post("/v1/recommend", **document_route("RecommendRequest", "Answer", "unknown_user"))
    async def recommend(request: Request) -> Response:
        """Recommend items to a user of the data, or from a history and attributes."""
        body = await read_body(request, RecommendRequest, config)
        return _json_response(await service.recommend(body))

    @app.post(
        "/v1/recommend/batch", **document_route("BatchRequest", "BatchAnswer", "unknown_user")
    )
    async def recommend_batch(request: Request) -> Response:
        """Recommend to several users at once; if one query fails, the whole request fails."""
        body = await read_body(request, schemas.BatchRequest, config)
        if len(body.queries) > config.max_queries:
            raise RequestError("invalid", f"at most {config.max_queries} queries", "queries")
        answers = await service.recommend_batch(body.queries)
        return _json_response(b'{"answers":[' + b",".join(answers) + b"]}")

    @app.post("/v1/similar", **document_route("SimilarRequest", "Answer"))
    async def similar(request: Request) -> Response:
        """Find the items whose vectors have the largest cosine with the vector of an item."""
        body = await read_body(request, SimilarRequest, config)
        return _json_response(await service.similar(body))


def add_item_routes(app: FastAPI, service: Service) -> None:
    """Add the routes that find, show and update items."""
    config, models, maps = service.config, service.models, ItemMaps()

    @app.get("/v1/items", **document_route(None, "ItemList"))
    async def search_items(
        query: SearchText = "", limit: Limit = 20, model: Model = None
    ) -> Response:
        """Find items by words of their title, or by id, most popular first."""
        version = models.get(model)
        entries = await service.look_up(lambda: find_items(version, query, limit))
        items = [schemas.Item(**entry) for entry in entries]
        return _model_response(schemas.ItemList(model=version.name, items=items))

    @app.get("/v1/items/{id:source_id}", **document_route(None, "Item", "not_found"))
    async def get_item(id: str, model: Model = None) -> Response:
        """Return one item."""
        version = models.get(model)
        item_id = version.live_item(id, "id", "not_found")
        [entry] = version.items.describe([item_id], include_attributes=True)
        return _json_response(to_json(entry))

    @app.put(
        "/v1/items/{id:source_id}",
        **document_route("ItemRequest", "ItemUpdated", "needs_key", "not_stored"),
    )
    async def put_item(id: str, request: Request, model: Model = None) -> Response:
        """Create or update an item."""
        body = await read_body(request, ItemRequest, config)
        version, outcome = await service.update(lambda: models.put_item(model, id, body))
        return _updated_response(version.name, version.items.ids.to_source_id(id), outcome)

    @app.delete(
        "/v1/items/{id:source_id}",
        **document_route(None, "ItemUpdated", "needs_key", "not_found", "not_stored"),
    )
    async def delete_item(id: str, model: Model = None) -> Response:
        """Remove an item from all recommendations; histories may still contain it."""
        version = await service.update(lambda: models.delete_item(model, id))
        return _updated_response(version.name, version.items.ids.to_source_id(id), "deleted")

    @app.get("/v1/map", **document_route(None, "ItemMap", "unknown_item"))
    async def get_map(
        limit: Annotated[
            int, Query(ge=0, le=5000, description="number of popular items to place")
        ] = 1000,
        item: FurtherItems = (),
        model: Model = None,
    ) -> Response:
        """Place items in two dimensions: the most popular ones, and further items."""
        version = models.get(model)
        content = await service.look_up(lambda: maps.map_of(version, limit, item))
        return _json_response(to_json(content))


def add_user_routes(app: FastAPI, service: Service) -> None:
    """Add the routes that find and show users."""
    models = service.models

    @app.get("/v1/users", **document_route(None, "UserList"))
    async def search_users(
        query: SearchText = "", limit: Limit = 20, model: Model = None
    ) -> Response:
        """Find users of the data by id."""
        version = models.get(model)
        users = await service.look_up(lambda: find_users(version, query, limit))
        return _json_response(to_json({"model": version.name, "users": users}))

    @app.get("/v1/users/{id:source_id}", **document_route(None, "UserHistory", "not_found"))
    async def get_user(
        id: str, limit: Annotated[int, Query(ge=0, le=100)] = 20, model: Model = None
    ) -> Response:
        """Return one user with the latest interactions."""
        version = models.get(model)
        return _json_response(to_json(await service.look_up(lambda: user_info(version, id, limit))))


def add_status_routes(app: FastAPI, service: Service) -> None:
    """Add the routes about models and the server, and the page."""
    models = service.models

    @app.get("/v1/model", **document_route(None, "ModelList"))
    async def get_models() -> Response:
        """Return the models with the requests they support, and the limits."""
        infos = [schemas.ModelInfo(**model_info(models.get(name))) for name in models.names]
        limits = service.config.model_dump(mode="json")
        return _model_response(schemas.ModelList(models=infos, limits=limits))

    @app.post(
        "/v1/admin/reload",
        **document_route(
            "ReloadRequest",
            "Reloaded",
            "needs_key",
            "reload_failed",
            "reload_running",
            "not_ready",
        ),
    )
    async def reload(request: Request) -> Response:
        """Load a model again from its folder; the current version answers meanwhile."""
        body = await read_optional_body(request, schemas.ReloadRequest, service.config)
        versions, seconds = await service.reload(body.model)
        return _model_response(schemas.Reloaded(models=versions, seconds=round(seconds, 3)))

    @app.get("/healthz", **document_route(None, "Health"))
    async def health() -> Response:
        """Return 200 while the process runs."""
        return _model_response(schemas.Health(status="alive"))

    @app.get("/readyz", **document_route(None, "Health", "not_ready"))
    async def ready() -> Response:
        """Return 200 while the server accepts new requests."""
        if service.is_draining:
            raise RequestError("not_ready", "the server is shutting down", retry_after=1)
        return _model_response(schemas.Health(status="ready"))

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        return Response(service.metrics.to_text(), media_type="text/plain; version=0.0.4")

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        text = await asyncio.to_thread((STATIC / "index.html").read_bytes)
        return Response(text, media_type="text/html")


def _updated_response(model: str, source_id: int | str | None, outcome: str) -> Response:
    return _json_response(to_json({"model": model, "item": source_id, "outcome": outcome}))


def _json_response(content: bytes) -> Response:
    return Response(content, media_type="application/json")


def _model_response(body: pydantic.BaseModel) -> Response:
    return _json_response(body.model_dump_json().encode())
