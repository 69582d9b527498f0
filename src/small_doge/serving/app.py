"""The application: routes, errors in OpenAI's shape, and what stands in front of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from small_doge import __version__
from small_doge.serving import api_chat, api_completions, api_rest
from small_doge.serving.errors import ApiError
from small_doge.serving.metrics import Metrics
from small_doge.serving.models import ModelList, ServedModel
from small_doge.serving.responses import ErrorResponse
from small_doge.serving.security import Guard
from small_doge.serving.service import Service
from small_doge.serving.settings import ServerSettings
from small_doge.serving.streaming import ClientLeft
from small_doge.serving.turns import TakeTurns

ERRORS = {
    400: "The request cannot be answered as it is.",
    401: "No valid API key.",
    404: "No such model.",
    408: "The body took too long.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    421: "The server is called by a name that it does not have.",
    429: "The queue is full; Retry-After says when to try again.",
    500: "Generation failed.",
    503: "The server is shutting down.",
}


def create_app(models: Sequence[ServedModel], settings: ServerSettings, metrics: Metrics) -> FastAPI:
    """The API over these models, and the chat page where the settings ask for it.

    Args:
        models: All models that will ever be served.
        settings: The server's options.
        metrics: Those that the models count in.
    """
    service = Service(ModelList(models), settings, metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await asyncio.to_thread(service.close)

    app = FastAPI(
        title="SmallDoge",
        version=__version__,
        # Their pages would load scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        responses={status: {"model": ErrorResponse, "description": text} for status, text in ERRORS.items()},
    )
    app.state.service = service
    for router in (api_chat.router, api_completions.router, api_rest.router):
        app.include_router(router)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(ClientLeft, _nobody_left)
    app.add_exception_handler(Exception, _unexpected)
    _describe_models(app, service.models)
    app.add_middleware(TakeTurns)
    app.add_middleware(Guard, settings=settings)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
        )
    app.add_middleware(CountRequests, metrics=metrics)
    if settings.ui:
        from small_doge.serving.page import mount_page

        mount_page(app, service)
    return app


class CountRequests:
    """ASGI middleware: counts requests by path and status, and their time."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.monotonic(), "none"

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        try:
            await self.app(scope, receive, send_and_note)
        finally:
            # Clients make paths up; only those of the API get a name.
            path = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(path, status).inc()
            self.metrics.request_seconds.labels(path).observe(time.monotonic() - start)


def _describe_models(app: FastAPI, models: ModelList) -> None:
    """Name the models in the API's own description, so that a reader (or a fuzzer) knows what to ask for."""
    original = app.openapi

    def openapi() -> dict[str, Any]:
        schema = original()
        names = [model.name for model in models]
        for body in ("ChatRequest", "CompletionBody", "EmbeddingRequest"):
            schema["components"]["schemas"][body]["properties"]["model"]["enum"] = names
        for name in ("/v1/chat/completions", "/v1/completions"):
            content = schema["paths"][name]["post"]["responses"]["200"]["content"]
            # Before OpenAPI 3.2 the schema of a stream is that of each event.
            event = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}
            content["text/event-stream"] = {"schema": event}
        for path in schema["paths"].values():
            for operation in path.values():
                # FastAPI's own answer to bad input, which this server gives as 400.
                operation["responses"].pop("422", None)
        return schema

    app.openapi = openapi  # type: ignore[method-assign]


def _answer(error: ApiError) -> Response:
    return JSONResponse(error.body(), error.status, error.headers())


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return _answer(error)


async def _invalid(request: Request, error: Exception) -> Response:
    """Bad input: the first thing that is wrong with it, and where."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    # The field, and the number of an entry in it; what follows are pydantic's names for the kinds of value it tried.
    place = [step for step in first["loc"] if step != "body"]
    param = ".".join(str(step) for i, step in enumerate(place) if i == 0 or (i == 1 and isinstance(step, int))) or None
    what = first["msg"].removeprefix("Value error, ")
    if first["type"] == "json_invalid":
        param, what = None, f"the body is not valid JSON at character {first['loc'][-1]}: correct it"
    elif first["type"] == "extra_forbidden":
        what = "this option is not supported: leave it out"
    return _answer(ApiError(400, f"{param}: {what}" if param else what, param=param, code=first["type"]))


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    answer = _answer(ApiError(error.status_code, str(error.detail)))
    answer.headers.update(error.headers or {})
    return answer


async def _nobody_left(request: Request, error: Exception) -> Response:
    # Nobody reads it; 499 is what proxies write into their logs for this.
    return Response(status_code=499)


async def _unexpected(request: Request, error: Exception) -> Response:
    return _answer(ApiError(500, "The server failed: its log has the reason.", kind="server_error"))
