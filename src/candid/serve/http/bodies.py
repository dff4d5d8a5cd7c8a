"""Request bodies: read with limits of size and time, and validated in one pass."""

from __future__ import annotations

import asyncio
from typing import TypeVar

import pydantic
from fastapi import Request
from starlette.requests import ClientDisconnect

from candid.serve.config import ServeConfig
from candid.serve.errors import RequestError
from candid.serve.http.validation_errors import from_validation

T = TypeVar("T", bound=pydantic.BaseModel)


async def read_body(request: Request, schema: type[T], config: ServeConfig) -> T:
    """Read and validate a body.

    pydantic parses the bytes itself: it is fast, limits the depth, is strict about UTF-8, and
    creates no object for anything outside the schema.

    Raises:
        RequestError: the body is too large, too slow, cut short, of another content type, not
            JSON, or does not match the schema.
    """
    content = await _read_content(request, config)
    try:
        return schema.model_validate_json(content)
    except pydantic.ValidationError as error:
        raise from_validation(error) from None


async def read_optional_body(request: Request, schema: type[T], config: ServeConfig) -> T:
    """Read a body like ``read_body``; without one, return the defaults of the schema."""
    if request.headers.get("content-length", "0") == "0" and (
        "transfer-encoding" not in request.headers
    ):
        return schema()
    return await read_body(request, schema, config)


async def _read_content(request: Request, config: ServeConfig) -> bytes:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise RequestError("bad_type", "send the body with content-type: application/json")
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise RequestError("bad_type", "send the body without content-encoding")
    too_large = RequestError("too_large", f"the body is larger than {config.max_body} bytes")
    length = request.headers.get("content-length", "0")
    if length.isascii() and length.isdigit() and int(length[:20]) > config.max_body:
        raise too_large
    chunks, size = [], 0
    try:
        async with asyncio.timeout(config.body_timeout_ms / 1000):
            async for chunk in request.stream():
                size += len(chunk)
                if size > config.max_body:
                    raise too_large
                chunks.append(chunk)
    except TimeoutError:
        raise RequestError(
            "slow_body", f"the body took longer than {config.body_timeout_ms:.0f} ms to arrive"
        ) from None
    except ClientDisconnect:
        raise RequestError("bad_request", "the body was cut short") from None
    return b"".join(chunks)
