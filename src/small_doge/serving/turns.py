"""A crowd that comes at once is let in a few at a time, so that the event loop gets round to everyone else."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Enough to keep the thread that tokenizes busy. Each more makes a round of the event loop longer by a few milliseconds.
AT_ONCE = 2


class TakeTurns:
    """ASGI middleware: at most `AT_ONCE` requests with a body are checked and queued at the same time.

    A request's turn ends when it answers, or has nothing to do but wait: it listens for its client's leaving then.

    Args:
        app: What comes behind it; the whole body is in the first message that it receives.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        await self._turns.acquire()
        over, has_body = False, False

        def end_turn() -> None:
            nonlocal over
            if not over:
                over = True
                self._turns.release()

        async def receive_or_wait() -> Message:
            nonlocal has_body
            if has_body:
                end_turn()
            has_body = True
            return await receive()

        async def answer(message: Message) -> None:
            end_turn()
            await send(message)

        try:
            await self.app(scope, receive_or_wait, answer)
        finally:
            end_turn()
