"""Reading a request's body: bounded in size and time, and checked in one pass."""

from __future__ import annotations

import asyncio
from typing import TypeVar

import pydantic
from fastapi import Request
from starlette.requests import ClientDisconnect

from candid.serve.config import ServeConfig
from candid.serve.problems import Problem, from_validation

T = TypeVar("T", bound=pydantic.BaseModel)


async def read_body(request: Request, kind: type[T], config: ServeConfig) -> T:
    """The body as what it should be.

    pydantic reads the bytes itself: as fast as they come, to a bounded depth, and strict about
    UTF-8, so that nothing else of a body ever becomes an object.

    Raises:
        Problem: too large, too slow, of another type, cut short, not JSON, or not such a body.
    """
    content = await _content(request, config)
    try:
        return kind.model_validate_json(content)
    except pydantic.ValidationError as error:
        raise from_validation(error) from None


async def read_optional_body(request: Request, kind: type[T], config: ServeConfig) -> T:
    """As ``read_body``; nothing at all is a body of defaults."""
    if request.headers.get("content-length", "0") == "0" and (
        "transfer-encoding" not in request.headers
    ):
        return kind()
    return await read_body(request, kind, config)


async def _content(request: Request, config: ServeConfig) -> bytes:
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media != "application/json":
        raise Problem("bad_type", "send the body as content-type: application/json")
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise Problem("bad_type", "send the body as it is: no content-encoding is read")
    too_large = Problem("too_large", f"the body is larger than {config.max_body} bytes")
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
        raise Problem(
            "slow_body", f"the body took longer than {config.body_timeout_ms:.0f} ms to arrive"
        ) from None
    except ClientDisconnect:
        raise Problem("bad_request", "the body was cut short") from None
    return b"".join(chunks)
