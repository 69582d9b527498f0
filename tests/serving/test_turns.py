"""A crowd is let in a few at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from small_doge.serving.turns import AT_ONCE, TakeTurns

Work = Callable[["Crowd", Callable, Callable], Awaitable[None]]


class Crowd:
    """Ten requests that come at once to an application which does `work` with each."""

    def __init__(self, work: Work, method: str = "POST") -> None:
        self.work, self.method = work, method
        self.let_in = self.finished = 0
        self.go_on = asyncio.Event()

    async def app(self, scope, receive, send):
        self.let_in += 1
        await receive()
        await self.work(self, receive, send)
        self.finished += 1

    async def come(self) -> int:
        """How many are let in while none is done."""
        middleware = TakeTurns(self.app)

        async def receive():
            return {"type": "http.request", "body": b"{}", "more_body": False}

        async def send(message):
            pass

        scope = {"type": "http", "method": self.method}
        calls = [asyncio.ensure_future(middleware(scope, receive, send)) for _ in range(10)]
        for _ in range(50):
            await asyncio.sleep(0)
        let_in = self.let_in
        self.go_on.set()
        self.ends = await asyncio.gather(*calls, return_exceptions=True)
        return let_in


async def thinks(crowd, receive, send):
    await crowd.go_on.wait()


async def waits_for_tokens(crowd, receive, send):
    await receive()
    await crowd.go_on.wait()


async def streams(crowd, receive, send):
    await send({"type": "http.response.start"})
    await crowd.go_on.wait()


async def breaks(crowd, receive, send):
    raise RuntimeError("broken")


@pytest.mark.parametrize(
    ("work", "method", "let_in"),
    [
        (thinks, "POST", AT_ONCE),
        (waits_for_tokens, "POST", 10),
        (streams, "POST", 10),
        (thinks, "GET", 10),
    ],
    ids=["at work: two at once", "waiting: all", "answering: all", "without a body: all"],
)
def test_who_is_let_in(work, method, let_in):
    async def check() -> None:
        crowd = Crowd(work, method)
        assert await crowd.come() == let_in
        assert crowd.finished == 10

    asyncio.run(check())


def test_one_that_breaks_gives_its_turn_back():
    async def check() -> None:
        crowd = Crowd(breaks)
        assert await crowd.come() == 10
        assert all(isinstance(end, RuntimeError) for end in crowd.ends)

    asyncio.run(check())
