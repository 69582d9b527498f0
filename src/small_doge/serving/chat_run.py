"""A chat request under way: the parts of its replies as they come; the API and the chat page both read from here."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

from small_doge.serving.choice import TokenLogprob
from small_doge.serving.models import ServedModel
from small_doge.serving.preparation import PreparedChat, prepare_chat
from small_doge.serving.reply import Call, Part, ReplyParser
from small_doge.serving.schemas import ChatRequest
from small_doge.serving.settings import ServerSettings
from small_doge.serving.usage import TokenCounts


@dataclass(frozen=True)
class Update:
    """More of one reply.

    Args:
        index: Which of the `n` replies.
        parts: What came.
        logprobs: Of the tokens since the last update.
        finish_reason: "stop", "length" or "tool_calls" in the last update of a reply.
    """

    index: int
    parts: list[Part]
    logprobs: tuple[TokenLogprob, ...]
    finish_reason: str | None


class ChatRun:
    """The replies to one chat request, which is queued when this is made.

    Raises:
        ApiError: the queue is full, or the server is shutting down.
    """

    def __init__(self, model: ServedModel, prepared: PreparedChat) -> None:
        self._prepared = prepared
        self._ticket = model.batcher.submit(prepared.completions)
        self.counts = TokenCounts(prompt=len(prepared.completions[0].prompt))

    async def updates(self) -> AsyncIterator[Update]:
        """The parts of all replies, in the order in which they come."""
        prepared, total = self._prepared, len(self._prepared.completions)
        parsers = [ReplyParser(prepared.thinking, prepared.functions) for _ in range(total)]
        done: set[int] = set()
        async for piece in self._ticket:
            if piece.index in done:  # its one call is there; what follows is not wanted
                continue
            parser = parsers[piece.index]
            self.counts.completions[piece.index] = piece.tokens
            self.counts.cached = max(self.counts.cached, piece.cached)
            parts = parser.push(piece.text)
            reason = piece.finish_reason
            if reason is not None:
                parts += parser.finish()
            if parser.calls and not prepared.several_calls:
                parts, reason = _up_to_first_call(parts), "stop"
            if reason is not None:
                done.add(piece.index)
                if parser.calls and reason == "stop":
                    reason = "tool_calls"
            if parts or piece.logprobs or reason is not None:
                yield Update(piece.index, parts, piece.logprobs, reason)
            if len(done) == total:
                self.cancel()
                return

    def cancel(self) -> None:
        """Stop, and free the rows."""
        self._ticket.cancel()


async def start_chat(model: ServedModel, request: ChatRequest, settings: ServerSettings) -> ChatRun:
    """Prepare and queue a chat request.

    Raises:
        ApiError: what is asked cannot be done, or the queue is full.
    """
    prepared = await model.in_text_thread(lambda: prepare_chat(model, request, settings))
    return ChatRun(model, prepared)


def _up_to_first_call(parts: list[Part]) -> list[Part]:
    at = next((i for i, part in enumerate(parts) if isinstance(part, Call)), len(parts) - 1)
    return parts[: at + 1]
