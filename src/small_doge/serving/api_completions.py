"""POST /v1/completions: text that goes on, without a chat template."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from small_doge.serving.choice import TokenLogprob
from small_doge.serving.preparation import prepare_completions
from small_doge.serving.responses import CompletionResponse
from small_doge.serving.schemas import CompletionBody
from small_doge.serving.service import Served
from small_doge.serving.streaming import EventStream, while_connected
from small_doge.serving.text import TextCodec
from small_doge.serving.tickets import Piece, Ticket
from small_doge.serving.usage import TokenCounts, usage_of

router = APIRouter()


@router.post("/v1/completions", response_model=CompletionResponse, summary="Continue a text")
async def completions(body: CompletionBody, request: Request, service: Served) -> Response:
    """Completions of one or more prompts, whole or as server-sent events."""
    model = service.models[body.model]
    service.log_text("prompt", str(body.prompt))
    requests = await model.in_text_thread(lambda: prepare_completions(model, body, service.settings))
    ticket = model.batcher.submit(requests)
    n = body.n or 1
    counts = TokenCounts(prompt=sum(len(r.prompt) for r in requests[::n]))
    head = {"id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion", "created": int(time.time())}
    head["model"] = model.name
    if body.stream:
        return EventStream(_chunks(ticket, counts, head, body, model.codec), ticket.cancel)
    pieces = await while_connected(request, _collect(ticket, counts), ticket.cancel)
    choices = [_choice(index, pieces[index], body, model.codec) for index in range(len(requests))]
    for choice in choices:
        service.log_text("completion", choice["text"])
    return JSONResponse({**head, "choices": choices, "usage": usage_of(counts)})


async def _collect(ticket: Ticket, counts: TokenCounts) -> dict[int, list[Piece]]:
    pieces: dict[int, list[Piece]] = {}
    async for piece in ticket:
        pieces.setdefault(piece.index, []).append(piece)
        _count(piece, counts)
    return pieces


def _count(piece: Piece, counts: TokenCounts) -> None:
    counts.completions[piece.index] = piece.tokens
    counts.cached = max(counts.cached, piece.cached)


def _choice(index: int, pieces: Sequence[Piece], body: CompletionBody, codec: TextCodec) -> dict[str, Any]:
    logprobs = [item for piece in pieces for item in piece.logprobs]
    return {
        "index": index,
        "text": "".join(piece.text for piece in pieces),
        "logprobs": None if body.logprobs is None else _logprobs(logprobs, codec, 0),
        "finish_reason": pieces[-1].finish_reason,
    }


def _logprobs(logprobs: Sequence[TokenLogprob], codec: TextCodec, offset: int) -> dict[str, Any]:
    """The older API's lists; `text_offset` counts characters from the beginning of the completion."""
    names = [codec.name_of(item.token) for item in logprobs]
    offsets = []
    for item in logprobs:
        offsets.append(offset)
        offset += len(codec.bytes_of(item.token).decode("utf-8", errors="replace"))
    return {
        "tokens": names,
        "token_logprobs": [item.logprob for item in logprobs],
        "top_logprobs": [{codec.name_of(token): value for token, value in item.top} for item in logprobs],
        "text_offset": offsets,
    }


async def _chunks(
    ticket: Ticket, counts: TokenCounts, head: dict[str, Any], body: CompletionBody, codec: TextCodec
) -> AsyncIterator[dict[str, Any]]:
    wants_usage = body.stream_options is not None and body.stream_options.include_usage
    head = {**head, **({"usage": None} if wants_usage else {})}
    offsets: dict[int, int] = {}
    async for piece in ticket:
        _count(piece, counts)
        logprobs = None
        if piece.logprobs:
            logprobs = _logprobs(piece.logprobs, codec, offsets.get(piece.index, 0))
            last = codec.bytes_of(piece.logprobs[-1].token).decode("utf-8", errors="replace")
            offsets[piece.index] = logprobs["text_offset"][-1] + len(last)
        choice = {"index": piece.index, "text": piece.text, "logprobs": logprobs}
        yield {**head, "choices": [{**choice, "finish_reason": piece.finish_reason}]}
    if wants_usage:
        yield {**head, "choices": [], "usage": usage_of(counts)}
