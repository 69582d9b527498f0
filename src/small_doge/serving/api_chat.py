"""POST /v1/chat/completions."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from small_doge.serving.chat_run import ChatRun, Update, start_chat
from small_doge.serving.choice import TokenLogprob
from small_doge.serving.reply import Call, Content, Part, Reasoning
from small_doge.serving.responses import ChatResponse
from small_doge.serving.schemas import ChatRequest
from small_doge.serving.service import Served
from small_doge.serving.streaming import EventStream, while_connected
from small_doge.serving.text import TextCodec
from small_doge.serving.usage import usage_of

router = APIRouter()


@router.post("/v1/chat/completions", response_model=ChatResponse, summary="Answer a conversation")
async def chat_completions(body: ChatRequest, request: Request, service: Served) -> Response:
    """One or more replies, whole or as server-sent events of `chat.completion.chunk` objects."""
    model = service.models[body.model]
    service.log_text("messages", str([message.model_dump() for message in body.messages]))
    run = await start_chat(model, body, service.settings)
    head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model.name}
    if body.stream:
        return EventStream(_chunks(run, head, body, model.codec), run.cancel)
    choices = await while_connected(request, _choices(run, body, model.codec), run.cancel)
    for choice in choices:
        service.log_text("reply", str(choice["message"]))
    return JSONResponse({**head, "object": "chat.completion", "choices": choices, "usage": usage_of(run.counts)})


async def _choices(run: ChatRun, body: ChatRequest, codec: TextCodec) -> list[dict[str, Any]]:
    parts: list[list[Part]] = [[] for _ in range(body.n or 1)]
    logprobs: list[list[TokenLogprob]] = [[] for _ in parts]
    reasons = [""] * len(parts)
    async for update in run.updates():
        parts[update.index] += update.parts
        logprobs[update.index] += update.logprobs
        reasons[update.index] = update.finish_reason or ""
    return [
        {
            "index": i,
            "message": _message(parts[i]),
            "logprobs": {"content": _logprobs(logprobs[i], codec), "refusal": None} if body.logprobs else None,
            "finish_reason": reasons[i],
        }
        for i in range(len(parts))
    ]


def _message(parts: Sequence[Part]) -> dict[str, Any]:
    content = "".join(part.text for part in parts if isinstance(part, Content))
    reasoning = "".join(part.text for part in parts if isinstance(part, Reasoning))
    calls = [_call(part) for part in parts if isinstance(part, Call)]
    message: dict[str, Any] = {"role": "assistant", "content": content if content or not calls else None}
    if reasoning:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = calls
    return message


def _call(call: Call) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _logprobs(logprobs: Sequence[TokenLogprob], codec: TextCodec) -> list[dict[str, Any]]:
    return [
        {
            **_logprob(item.token, item.logprob, codec),
            "top_logprobs": [_logprob(token, logprob, codec) for token, logprob in item.top],
        }
        for item in logprobs
    ]


def _logprob(token: int, logprob: float, codec: TextCodec) -> dict[str, Any]:
    return {"token": codec.name_of(token), "logprob": logprob, "bytes": list(codec.bytes_of(token)) or None}


async def _chunks(
    run: ChatRun, head: dict[str, Any], body: ChatRequest, codec: TextCodec
) -> AsyncIterator[dict[str, Any]]:
    """The events of a stream: the role first, then what comes, the reason of the end, and the usage if it is wanted."""
    wants_usage = body.stream_options is not None and body.stream_options.include_usage
    head = {**head, "object": "chat.completion.chunk", **({"usage": None} if wants_usage else {})}

    def chunk(index: int, delta: dict[str, Any], logprobs: Any = None, reason: str | None = None) -> dict[str, Any]:
        return {
            **head,
            "choices": [{"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}],
        }

    for index in range(body.n or 1):
        yield chunk(index, {"role": "assistant", "content": ""})
    calls = [0] * (body.n or 1)
    async for update in run.updates():
        logprobs = {"content": _logprobs(update.logprobs, codec), "refusal": None} if update.logprobs else None
        for delta in _deltas(update, calls):
            yield chunk(update.index, delta, logprobs)
            logprobs = None
        if update.finish_reason is not None or logprobs is not None:
            yield chunk(update.index, {}, logprobs, update.finish_reason)
    if wants_usage:
        yield {**head, "choices": [], "usage": usage_of(run.counts)}


def _deltas(update: Update, calls: list[int]) -> list[dict[str, Any]]:
    """The deltas of an update; `calls` counts the calls of each reply."""
    deltas: list[dict[str, Any]] = []
    for part in update.parts:
        if isinstance(part, Call):
            deltas.append({"tool_calls": [{"index": calls[update.index], **_call(part)}]})
            calls[update.index] += 1
        else:
            deltas.append({"content" if isinstance(part, Content) else "reasoning_content": part.text})
    return deltas
