"""What a request's reader finds when it comes late."""

from __future__ import annotations

import asyncio

import pytest

from small_doge.serving.choice import TokenLogprob
from small_doge.serving.errors import engine_failed
from small_doge.serving.tickets import Piece, Ticket


def piece(text: str, tokens: int, index: int = 0, reason: str | None = None) -> Piece:
    return Piece(index, text, (TokenLogprob(tokens, -1.0),), tokens, cached=3, finish_reason=reason)


async def ticket_of(*pieces: Piece, completions: int = 1) -> Ticket:
    ticket = Ticket(asyncio.get_running_loop(), completions, lambda: None)
    for each in pieces:
        ticket.put(each)
    return ticket


def test_pieces_that_wait_are_read_as_one():
    async def check() -> None:
        ticket = await ticket_of(piece("To", 1), piece("m h", 2), piece("as", 3, reason="stop"))
        (read,) = [read async for read in ticket]
        logprobs = tuple(TokenLogprob(token, -1.0) for token in (1, 2, 3))
        assert read == Piece(0, "Tom has", logprobs, 3, 3, "stop")

    asyncio.run(check())


def test_a_reader_in_time_reads_each_piece():
    async def check() -> None:
        ticket = await ticket_of(piece("a", 1))
        texts = []
        async for read in ticket:
            texts.append(read.text)
            if read.finish_reason is None:
                ticket.put(piece("b", 2, reason="length"))
        assert texts == ["a", "b"]

    asyncio.run(check())


def test_completions_of_one_request_are_kept_apart():
    async def check() -> None:
        pieces = [piece("a", 1), piece("x", 1, index=1), piece("b", 2, reason="stop")]
        ticket = await ticket_of(*pieces, piece("y", 2, index=1, reason="length"), completions=2)
        assert {read.index: (read.text, read.finish_reason) async for read in ticket} == {
            0: ("ab", "stop"),
            1: ("xy", "length"),
        }

    asyncio.run(check())


def test_an_error_comes_after_the_text_that_waited():
    async def check() -> None:
        ticket = await ticket_of(piece("a", 1))
        ticket.put(engine_failed())
        reader = aiter(ticket)
        assert (await anext(reader)).text == "a"
        with pytest.raises(type(engine_failed()), match="Generation failed"):
            await anext(reader)

    asyncio.run(check())
