"""One request's completions between the event loop, which waits for them, and the worker thread, which makes them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace

from small_doge.serving.choice import Logits, TokenChooser, TokenLogprob, TokenRules
from small_doge.serving.errors import ApiError
from small_doge.serving.text import TextCodec, TextStream


@dataclass(frozen=True)
class CompletionRequest:
    """One completion to make.

    Args:
        prompt: Token ids, at least one.
        rules: How tokens are chosen.
        max_tokens: Most tokens to generate.
        stops: Strings that end the completion and are not part of it.
        seconds: Most time from now on; after it the completion ends as if it had reached max_tokens.
    """

    prompt: tuple[int, ...]
    rules: TokenRules
    max_tokens: int
    stops: tuple[str, ...] = ()
    seconds: float = 300.0


@dataclass(frozen=True)
class Piece:
    """More of one completion.

    Args:
        index: Which completion of the request.
        text: Text since the last piece.
        logprobs: Log-probabilities of the tokens since the last piece, where the request wants them.
        tokens: Tokens of the completion so far.
        cached: Tokens of the prompt that the prefix cache had.
        finish_reason: "stop" or "length" in the last piece.
    """

    index: int
    text: str
    logprobs: tuple[TokenLogprob, ...]
    tokens: int
    cached: int
    finish_reason: str | None = None

    def followed_by(self, more: Piece) -> Piece:
        """Both as one piece."""
        return replace(more, text=self.text + more.text, logprobs=self.logprobs + more.logprobs)


class Ticket:
    """What `Batcher.submit` returns: iterate over the pieces of all completions, in the event loop that submitted.

    Pieces of a completion that wait are joined, so a reader who falls behind has no more to do than to catch up once.
    Leaving the iteration early is not enough to stop the generation: `cancel` does.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, completions: int, on_cancel: Callable[[], None]) -> None:
        self.loop = loop
        self.cancelled = False
        self._pieces: dict[int, Piece] = {}
        self._error: ApiError | None = None
        self._news = asyncio.Event()
        self._unfinished = completions
        self._on_cancel = on_cancel

    def put(self, piece: Piece | ApiError) -> None:
        """Hand over a piece, or the error that ends the request; in the event loop."""
        if isinstance(piece, ApiError):
            self._error = piece
        elif (waiting := self._pieces.get(piece.index)) is not None:
            self._pieces[piece.index] = waiting.followed_by(piece)
        else:
            self._pieces[piece.index] = piece
        self._news.set()

    def cancel(self) -> None:
        """Stop all completions of the request and free their rows; does nothing once they are done."""
        if not self.cancelled and self._unfinished:
            self.cancelled = True
            self._on_cancel()

    async def __aiter__(self) -> AsyncIterator[Piece]:
        while self._unfinished:
            await self._news.wait()
            self._news.clear()
            while self._pieces:
                piece = self._pieces.pop(next(iter(self._pieces)))
                if piece.finish_reason is not None:
                    self._unfinished -= 1
                yield piece
            if self._error is not None:
                self._unfinished = 0
                raise self._error


@dataclass(eq=False)
class CompletionState:
    """One completion as the worker sees it."""

    ticket: Ticket
    index: int
    request: CompletionRequest
    codec: TextCodec
    end_ids: tuple[int, ...]
    row: int = -1
    prefilled: int = 0
    cached: int = 0
    cuts: tuple[int, ...] = ()
    logits: Logits | None = None
    in_row: list[int] = field(default_factory=list)  # tokens that the engine's row holds
    tokens: int = 0
    finish_reason: str | None = None
    submitted: float = field(default_factory=time.monotonic)
    first_token: float | None = None

    def __post_init__(self) -> None:
        self.stream = TextStream(self.codec, self.request.stops)
        fits = self.request.rules.fit_the_engine
        self.chooser = None if fits else TokenChooser(self.request.rules, self.request.prompt)
        self.engine_params = self.request.rules.engine_params() if fits else None
        self._text: list[str] = []
        self._logprobs: list[TokenLogprob] = []

    @property
    def remaining(self) -> int:
        """Tokens that may still come."""
        return self.request.max_tokens - self.tokens

    @property
    def late(self) -> bool:
        """Whether its time is over."""
        return time.monotonic() - self.submitted > self.request.seconds

    def take(self, token: int, logprob: TokenLogprob | None = None) -> None:
        """Go on by one token; sets `finish_reason` where it is the last."""
        self.tokens += 1
        if self.first_token is None:
            self.first_token = time.monotonic()
        if logprob is not None and self.request.rules.top_logprobs is not None:
            self._logprobs.append(logprob)
        if token in self.end_ids:
            self.finish("stop")
            return
        self._text.append(self.stream.push(token))
        if self.chooser is not None:
            self.chooser.take(token, self.codec.bytes_of(token))
        if self.stream.stopped or (self.chooser is not None and self.chooser.finished):
            self.finish("stop")
        elif self.remaining == 0:
            self.finish("length")

    def finish(self, reason: str) -> None:
        """End here; the text held back comes out."""
        self.finish_reason = reason
        self._text.append(self.stream.finish())

    def piece(self) -> Piece | None:
        """What came since the last call, if anything did."""
        text, logprobs = "".join(self._text), tuple(self._logprobs)
        self._text.clear()
        self._logprobs.clear()
        if not text and not logprobs and self.finish_reason is None:
            return None
        return Piece(self.index, text, logprobs, self.tokens, self.cached, self.finish_reason)
