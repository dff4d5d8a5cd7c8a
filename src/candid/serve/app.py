"""The routes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, TypeVar

import pydantic
import torch
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.staticfiles import StaticFiles
from pydantic_core import to_json
from starlette.exceptions import HTTPException

import candid
from candid.serve import schemas
from candid.serve.batcher import Lane
from candid.serve.bodies import read_body, read_optional_body
from candid.serve.config import ServeConfig
from candid.serve.documents import described, document
from candid.serve.explore import find_items, find_users, model_info, user_info
from candid.serve.logs import fault, tell
from candid.serve.map import ItemMaps
from candid.serve.metrics import Metrics
from candid.serve.models import Models
from candid.serve.problems import Problem
from candid.serve.served import Question, Result

T = TypeVar("T")
STATIC = Path(str(files("candid.serve") / "static"))
PAGE_POLICY = (
    "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; "
    "form-event_type 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
"""The page loads and asks this server alone, and can make no HTML of text."""
Model = Annotated[str | None, Query(max_length=1000, description="none: the first")]
Text = Annotated[str, Query(max_length=200, description="words of a title, or an id")]
Limit = Annotated[int, Query(ge=1, le=100)]
MoreItems = Annotated[tuple[schemas.Id, ...], Query(max_length=200, description="these as well")]


class Service:
    """What the routes share.

    Args:
        models: which generation answers.
        config: limits.
        metrics: of the whole server.

    Attributes:
        is_draining: whether the server is about to stop.
    """

    def __init__(self, models: Models, config: ServeConfig, metrics: Metrics) -> None:
        self.models = models
        self.config = config
        self.metrics = metrics
        self.is_draining = False
        self._lanes: dict[bool, Lane] = {}
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="candid-side")
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="candid-load")

    def start(self) -> None:
        """Begin to answer; on the thread of the event loop, which answers too."""
        if self.config.threads is not None:
            torch.set_num_threads(self.config.threads)  # A run that was opened set its own.
        for is_slow, name in ((False, "fast"), (True, "slow")):
            self._lanes[is_slow] = Lane(
                name,
                batch_size=self.config.batch_size,
                # What is slow gains nothing by company: it is searched one by one.
                wait=0.0 if is_slow else self.config.batch_wait_ms / 1000,
                max_waiting=self.config.max_waiting,
                timeout=self.config.timeout_ms / 1000,
                threads=self.config.threads,
                quick=0.0 if is_slow else self.config.quick_ms / 1000,
                metrics=self.metrics,
                failed=lambda error: tell("failed", 40, route="model", **fault(error)),
            )

    def stop(self) -> None:
        """Answer what waits, then no more."""
        for lane in self._lanes.values():
            lane.close()
        self._pool.shutdown(cancel_futures=True)
        self._loader.shutdown(wait=False, cancel_futures=True)

    async def ask(self, questions: Sequence[Question]) -> list[Result]:
        """Answers to questions, in their order."""
        slow = [question.is_slow for question in questions]
        if len(set(slow)) == 1:
            return await self._lanes[slow[0]].ask(questions)
        found: list[Result | None] = [None] * len(questions)

        async def in_lane(is_slow: bool) -> None:
            places = [place for place, each in enumerate(slow) if each == is_slow]
            answers = await self._lanes[is_slow].ask([questions[place] for place in places])
            for place, answer in zip(places, answers, strict=True):
                found[place] = answer

        await asyncio.gather(in_lane(False), in_lane(True))
        return [answer for answer in found if answer is not None]

    async def beside(self, work: Callable[[], T]) -> T:
        """Do what takes milliseconds in a thread, while others are answered."""
        try:
            async with asyncio.timeout(self.config.timeout_ms / 1000):
                return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        except TimeoutError:
            self.metrics.refused.labels("timeout").inc()
            raise Problem(
                "timeout",
                f"no answer within {self.config.timeout_ms:.0f} ms: try again in a moment",
                retry_after=1,
            ) from None

    async def change(self, work: Callable[[], T]) -> T:
        """Change an item in a thread, however long it takes: half a change is none."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    async def reload(self, name: str | None) -> tuple[dict[str, int], float]:
        """Load a model again, while the one before answers."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._loader, self.models.reload, name)


def make_app(service: Service) -> FastAPI:
    """The application, without the gate."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await asyncio.to_thread(service.stop)

    app = FastAPI(
        title="candid",
        version=candid.__version__,
        lifespan=lifespan,
        docs_url=None,  # Its page loads scripts from elsewhere.
        redoc_url=None,
        redirect_slashes=False,
        # What an exporter would be told, a request may have said; and each look costs time.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.add_exception_handler(Problem, _on_problem)
    app.add_exception_handler(RequestValidationError, _on_bad_parameters)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(Exception, _on_failure)
    _add_questions(app, service)
    _add_items(app, service)
    _add_facts(app, service)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    app.openapi = lambda: document(app)  # type: ignore[method-assign]
    return app


def _add_questions(app: FastAPI, service: Service) -> None:
    config, models = service.config, service.models

    @app.post("/v1/recommend", **described("RecommendRequest", "Answer", "unknown_user"))
    async def recommend(request: Request) -> Response:
        """Recommend items to a user, or to whoever has the given history and features."""
        asked = await read_body(request, schemas.RecommendRequest, config)
        [result] = await service.ask([models.get(asked.model).question(asked)])
        if isinstance(result, Problem):
            raise result
        return _json(result)

    @app.post("/v1/recommend/batch", **described("BatchRequest", "BatchAnswer", "unknown_user"))
    async def recommend_batch(request: Request) -> Response:
        """Recommend to several at once: all are answered, or none."""
        asked = await read_body(request, schemas.BatchRequest, config)
        if len(asked.queries) > config.max_queries:
            raise Problem("invalid", f"at most {config.max_queries} queries", "queries")
        questions = []
        for place, each in enumerate(asked.queries):
            try:
                questions.append(models.get(each.model).question(each))
            except Problem as problem:
                raise problem.within(f"queries.{place}") from None
        bodies = []
        for place, result in enumerate(await service.ask(questions)):
            if isinstance(result, Problem):
                raise result.within(f"queries.{place}")
            bodies.append(result)
        return _json(b'{"answers":[' + b",".join(bodies) + b"]}")

    @app.post("/v1/similar", **described("SimilarRequest", "Answer"))
    async def similar(request: Request) -> Response:
        """Find the items whose vectors have the largest cosine with that of an item."""
        asked = await read_body(request, schemas.SimilarRequest, config)
        [result] = await service.ask([models.get(asked.model).similar_question(asked)])
        if isinstance(result, Problem):
            raise result
        return _json(result)


def _add_items(app: FastAPI, service: Service) -> None:
    config, models, maps = service.config, service.models, ItemMaps()

    @app.get("/v1/items", **described(None, "ItemList"))
    async def search_items(query: Text = "", limit: Limit = 20, model: Model = None) -> Response:
        """Find items by words of their title, or by id; the most popular first."""
        served = models.get(model)
        found = await service.beside(lambda: find_items(served, query, limit))
        return _written(schemas.ItemList(model=served.name, items=found))

    @app.get("/v1/items/{id:path}", **described(None, "Item", "not_found"))
    async def get_item(id: str, model: Model = None) -> Response:
        """Look an item up."""
        served = models.get(model)
        item_id = served.live_item(id, "id", "not_found")
        return _json(to_json(served.items.describe([item_id], with_attributes=True)[0]))

    @app.put("/v1/items/{id:path}", **described("ItemRequest", "ItemChange", "needs_key"))
    async def put_item(id: str, request: Request, model: Model = None) -> Response:
        """Add an item by its features, or change those of a known one."""
        asked = await read_body(request, schemas.ItemRequest, config)
        served, outcome = await service.change(lambda: models.put(model, id, asked))
        return _changed(served.name, served.items.ids.key(id), outcome)

    @app.delete("/v1/items/{id:path}", **described(None, "ItemChange", "needs_key", "not_found"))
    async def delete_item(id: str, model: Model = None) -> Response:
        """Recommend an item no more; histories may still name it."""
        served = await service.change(lambda: models.delete(model, id))
        return _changed(served.name, served.items.ids.key(id), "deleted")

    @app.get("/v1/map", **described(None, "ItemMap", "unknown_item"))
    async def get_map(
        limit: Annotated[int, Query(ge=0, le=5000, description="so many popular items")] = 1000,
        item: MoreItems = (),
        model: Model = None,
    ) -> Response:
        """Place items in two dimensions: the most popular ones, and those named."""
        served = models.get(model)
        made = await service.beside(lambda: maps.map_of(served, limit, item))
        return _json(to_json(made))

    @app.get("/v1/users", **described(None, "UserList"))
    async def search_users(query: Text = "", limit: Limit = 20, model: Model = None) -> Response:
        """Find users of the data by id."""
        served = models.get(model)
        found = await service.beside(lambda: find_users(served, query, limit))
        return _json(to_json({"model": served.name, "users": found}))

    @app.get("/v1/users/{id:path}", **described(None, "UserHistory", "not_found"))
    async def get_user(
        id: str, limit: Annotated[int, Query(ge=0, le=100)] = 20, model: Model = None
    ) -> Response:
        """Look a user up, with the latest interactions."""
        served = models.get(model)
        return _json(to_json(await service.beside(lambda: user_info(served, id, limit))))


def _add_facts(app: FastAPI, service: Service) -> None:
    models = service.models

    @app.get("/v1/model", **described(None, "ModelList"))
    async def get_models() -> Response:
        """Tell what the models are, what may be asked of them, and the limits."""
        infos = [model_info(models.get(name)) for name in models.names]
        limits = service.config.model_dump(mode="json")
        return _written(schemas.ModelList(models=infos, limits=limits))

    @app.post("/v1/admin/reload", **described("ReloadRequest", "Reloaded", "needs_key", "reload"))
    async def reload(request: Request) -> Response:
        """Load a model again from its folder; answers go on meanwhile, and no request fails."""
        asked = await read_optional_body(request, schemas.ReloadRequest, service.config)
        generations, seconds = await service.reload(asked.model)
        return _written(schemas.Reloaded(models=generations, seconds=round(seconds, 3)))

    @app.get("/healthz", **described(None, "Health"))
    async def health() -> Response:
        """Say that the process lives."""
        return _written(schemas.Health(status="alive"))

    @app.get("/readyz", **described(None, "Health", "not_ready"))
    async def ready() -> Response:
        """Say whether new requests should come here."""
        if service.is_draining:
            raise Problem("not_ready", "the server is shutting down", retry_after=1)
        return _written(schemas.Health(status="ready"))

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        text = await asyncio.to_thread((STATIC / "index.html").read_bytes)
        headers = {"content-security-policy": PAGE_POLICY, "referrer-policy": "no-referrer"}
        return Response(text, media_type="text/html", headers=headers)


def _changed(model: str, item: int | str | None, outcome: str) -> Response:
    return _json(to_json({"model": model, "item": item, "outcome": outcome}))


def _json(content: bytes) -> Response:
    return Response(content, media_type="application/json")


def _written(body: pydantic.BaseModel) -> Response:
    return _json(body.model_dump_json().encode())


def _failed(problem: Problem) -> Response:
    return Response(problem.body(), problem.status, problem.headers())


async def _on_problem(_: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return _failed(error)


async def _on_failure(_: Request, __: Exception) -> Response:
    # What it was goes on to the gate, which writes it into the log.
    return _failed(Problem("internal", "the server failed; its log says where"))


async def _on_bad_parameters(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first: dict[str, Any] = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"][1:]) or None
    return _failed(Problem("invalid", first["msg"], place))


async def _on_http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return _failed(Problem("not_found", "there is nothing at this address"))
    if error.status_code == 405:
        response = _failed(Problem("bad_method", "this address does not know this method"))
        response.headers.update(error.headers or {})
        return response
    return _failed(Problem("bad_request", "the request cannot be read"))
