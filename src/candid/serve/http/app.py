"""The FastAPI application: routes, error handlers and static files, without the middleware."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from candid.serve.errors import RequestError, internal_error
from candid.serve.http.errors import body_of, headers_of, status_of
from candid.serve.http.openapi import build_document
from candid.serve.http.routes import (
    STATIC,
    add_item_routes,
    add_recommend_routes,
    add_status_routes,
    add_user_routes,
)
from candid.serve.service import Service
from candid.version import __version__


def make_app(service: Service) -> FastAPI:
    """Build the application; the service starts and stops with it."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await asyncio.to_thread(service.stop)

    app = FastAPI(
        title="candid",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,  # The page of FastAPI loads scripts from another server.
        redoc_url=None,
        redirect_slashes=False,
        # Telemetry could export parts of requests, and costs time in every request.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.add_exception_handler(RequestError, _handle_request_error)
    app.add_exception_handler(RequestValidationError, _handle_bad_parameters)
    app.add_exception_handler(HTTPException, _handle_http_exception)
    app.add_exception_handler(Exception, _handle_unexpected)
    add_recommend_routes(app, service)
    add_item_routes(app, service)
    add_user_routes(app, service)
    add_status_routes(app, service)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    app.openapi = lambda: build_document(app)  # type: ignore[method-assign]
    return app


def _error_response(error: RequestError) -> Response:
    return Response(body_of(error), status_of(error), headers_of(error))


async def _handle_request_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return _error_response(error)


async def _handle_unexpected(_: Request, __: Exception) -> Response:
    # Starlette raises the error again for the middleware, which logs it.
    return _error_response(internal_error())


async def _handle_bad_parameters(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first: dict[str, Any] = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"][1:]) or None
    return _error_response(RequestError("invalid", first["msg"], field))


async def _handle_http_exception(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return _error_response(RequestError("not_found", "this address does not exist"))
    if error.status_code == 405:
        response = _error_response(
            RequestError("bad_method", "this address does not support this method")
        )
        response.headers.update(error.headers or {})
        return response
    return _error_response(RequestError("bad_request", "the request cannot be parsed"))
