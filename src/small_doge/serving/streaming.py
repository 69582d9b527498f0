"""Answers that come piece by piece, and clients that leave before the end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from small_doge.serving.errors import ApiError

T = TypeVar("T")
DONE = "data: [DONE]\n\n"


class ClientLeft(Exception):
    """The client closed the connection; there is nobody to answer."""


class EventStream(StreamingResponse):
    """Server-sent events with JSON data, ended by `[DONE]`; an error after the first event is an event too.

    Args:
        events: The data of each event.
        cancel: Called in the end, however it comes.
    """

    def __init__(self, events: AsyncIterator[dict[str, Any]], cancel: Callable[[], None]) -> None:
        self._cancel = cancel
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(_written(events), media_type="text/event-stream", headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._cancel()


async def _written(events: AsyncIterator[dict[str, Any]]) -> AsyncIterator[str]:
    try:
        async for event in events:
            yield f"data: {json.dumps(event, ensure_ascii=False, separators=(',', ':'))}\n\n"
    except ApiError as error:
        yield f"data: {json.dumps(error.body())}\n\n"
    yield DONE


async def while_connected(request: Request, answer: Awaitable[T], cancel: Callable[[], None]) -> T:
    """Wait for an answer; where the client leaves first, or anything else goes wrong, call `cancel`.

    Raises:
        ClientLeft: the client closed the connection.
    """
    work = asyncio.ensure_future(answer)
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({work, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientLeft
        return work.result()
    finally:
        for task in (work, leaving):
            task.cancel()
        cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
