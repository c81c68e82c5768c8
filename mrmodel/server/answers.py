"""What all routes have in common: the form of errors, and their documentation."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Path, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from mrmodel.server import schema
from mrmodel.server.errors import ApiError
from mrmodel.server.gate import error_response

# Of videos and jobs, in paths.
Id = Annotated[str, Path(pattern="^[0-9a-z-]{1,64}$")]


def error_answers(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Documentation of answers that any route, and this one, may give."""
    return {
        status: {"model": schema.ErrorAnswer, "description": "See the code."}
        for status in (400, 401, 403, 405, 408, 413, 421, 422, 500, *statuses)
    }


def content_of(kind: str, description: str) -> dict[int | str, dict[str, Any]]:
    """Documentation of an answer that is no JSON."""
    schema_of_it = {"type": "string", "format": "binary"}
    return {200: {"description": description, "content": {kind: {"schema": schema_of_it}}}}


def request_id_of(request: Request) -> str:
    """The id of a request."""
    found: str = request.state.request_id
    return found


async def on_http(request: Request, error: Exception) -> Response:
    """The answer to an error that a route or the framework raised."""
    assert isinstance(error, HTTPException)
    if not isinstance(error, ApiError):
        codes = {404: "no_such_path", 405: "no_such_method", 400: "bad_request"}
        code = codes.get(error.status_code, "http")
        headers = dict(error.headers or {})
        if error.status_code == 405:  # The framework names those of one route.
            headers["Allow"] = ", ".join(_methods_of(request))
        error = ApiError(error.status_code, code, error.detail, headers)
    return error_response(error, request_id_of(request))


async def on_invalid(request: Request, error: Exception) -> Response:
    """The answer to a request that is not as documented."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part != "body")
    message = f"{place}: {first['msg']}" if place else str(first["msg"])
    return error_response(ApiError(422, "invalid", message), request_id_of(request))


def _methods_of(request: Request) -> list[str]:
    """All methods of a path."""
    found: set[str] = set()
    for route in request.app.routes:
        if route.matches(request.scope)[0] is not Match.NONE:
            found |= route.methods
    return sorted(found)
