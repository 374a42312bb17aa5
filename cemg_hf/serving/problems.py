"""Errors of one shape: problem details as JSON (RFC 9457)."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

MEDIA_TYPE = "application/problem+json"


class ProblemDetails(BaseModel):
    """What is wrong with a request, or with the service."""

    type: str = "about:blank"
    title: str = Field(description="The status in words.")
    status: int
    detail: str = Field(description="What happened here, and what to do about it.")
    unknown: list[str] | None = Field(None, description="Item ids that the catalogue lacks.")
    errors: list[dict[str, Any]] | None = Field(None, description="Where the body is wrong, entry by entry.")


class Problem(HTTPException):
    """A request that ends with an error."""

    def __init__(self, status: int, detail: str, *, headers: Mapping[str, str] | None = None, **more: Any) -> None:
        super().__init__(status, detail, headers)
        self.more = more

    def response(self) -> JSONResponse:
        status = self.status_code
        content = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": self.detail, **self.more}
        return JSONResponse(content, status, headers=self.headers, media_type=MEDIA_TYPE)


def describe(statuses: Mapping[int, str]) -> dict[int | str, dict[str, Any]]:
    """The problems of a route, for its OpenAPI description."""
    schema = {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}
    return {status: {"description": text, "content": {MEDIA_TYPE: schema}, "model": ProblemDetails} for status, text in statuses.items()}


def install_handlers(app: FastAPI) -> None:
    """Make every error of the app a problem: its own, those of validation, of routing, and the unexpected."""
    app.add_exception_handler(Problem, _own)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unexpected)


def _own(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Problem)
    return error.response()


def _validation(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    errors = [{"loc": list(entry["loc"]), "msg": entry["msg"]} for entry in error.errors()]  # without the input, which may be long
    first = ".".join(map(str, errors[0]["loc"]))
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return Problem(422, f"{first}: {errors[0]['msg']}{more}", errors=errors).response()


def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return Problem(error.status_code, str(error.detail), headers=error.headers).response()


def _unexpected(request: Request, error: Exception) -> JSONResponse:
    return Problem(500, "the service failed at this request; its log says why").response()
