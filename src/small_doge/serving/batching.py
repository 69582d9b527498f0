"""Continuous batching: one thread decodes all requests side by side; they come and go between chunks of tokens."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from small_doge.serving.errors import ApiError, engine_failed, queue_is_full, shutting_down
from small_doge.serving.metrics import ModelMetrics
from small_doge.serving.prefix_cache import PrefixCache
from small_doge.serving.text import TextCodec
from small_doge.serving.tickets import CompletionRequest, CompletionState, Piece, Ticket

if TYPE_CHECKING:
    from small_doge.inference.slots import SlotSession

logger = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class BatchLimits:
    """Bounds of one model's batcher.

    Args:
        rows: Completions decoded side by side.
        cache_rows: Rows of the session kept for the prefix cache; 0 switches it off.
        queue: Completions that may wait for a row.
        prefill_tokens: Most prompt tokens between two chunks of decoding.
        chunk_tokens: Most tokens that the engine decodes before it looks at the queue again.
        chunk_seconds: A chunk takes no longer than this, or is one token.
    """

    rows: int = 16
    cache_rows: int = 4
    queue: int = 64
    prefill_tokens: int = 512
    chunk_tokens: int = 16
    chunk_seconds: float = 0.01


class Batcher:
    """Generates for any number of requests with one session; the thread starts with `start`.

    Args:
        session: Has `limits.rows + limits.cache_rows` rows.
        codec: The model's tokenizer.
        end_ids: Tokens that end a completion.
        limits: Bounds.
        metrics: Counts what goes on.
    """

    def __init__(
        self, session: SlotSession, codec: TextCodec, end_ids: Sequence[int], limits: BatchLimits, metrics: ModelMetrics
    ) -> None:
        assert session.batch == limits.rows + limits.cache_rows
        self.session, self.codec, self.end_ids = session, codec, tuple(end_ids)
        self.limits, self.metrics = limits, metrics
        self._cache = PrefixCache(range(limits.rows, session.batch))
        self._free_rows = list(range(limits.rows))
        self._wake = threading.Condition()
        # Shared with the event loop, under the lock of _wake:
        self._waiting: deque[CompletionState] = deque()
        self._calls: deque[Callable[[], None]] = deque()
        self._changed = False
        self._refusal: ApiError | None = None
        self._abort: ApiError | None = None
        self._closing = False
        # The worker's own:
        self._prefilling: CompletionState | None = None
        self._active: list[CompletionState] = []
        self._outbox: list[tuple[Ticket, Piece | ApiError]] = []
        self._token_seconds = limits.chunk_seconds
        self._request_seconds = 1.0
        self._thread = threading.Thread(target=self._run, name="small-doge-batcher", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def submit(self, requests: Sequence[CompletionRequest]) -> Ticket:
        """Queue the completions of one request; call it in an event loop.

        Raises:
            ApiError: the queue is full (429), or the server is shutting down (503).
        """
        ticket = Ticket(asyncio.get_running_loop(), len(requests), self._notify)
        sequences = [
            CompletionState(ticket, i, request, self.codec, self.end_ids) for i, request in enumerate(requests)
        ]
        with self._wake:
            if self._refusal is not None:
                raise self._refusal
            # What finds a free row at once does not wait, so the bound is on what comes after that.
            if len(self._waiting) + len(sequences) > self.limits.queue + len(self._free_rows):
                raise queue_is_full(self._seconds_until_free())
            self._waiting.extend(sequences)
            self._changed = True
            self._wake.notify()
        return ticket

    def call(self, function: Callable[[], T]) -> Future[T]:
        """Run something in the worker's thread between two chunks, such as another use of the engine."""
        future: Future[T] = Future()

        def run() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function())
                except BaseException as error:  # whatever it is, it belongs to the caller
                    future.set_exception(error)

        with self._wake:
            if self._refusal is not None:
                raise self._refusal
            self._calls.append(run)
            self._changed = True
            self._wake.notify()
        return future

    def refuse_new(self) -> None:
        """Take no more requests; those there go on."""
        with self._wake:
            self._refusal = shutting_down()

    def abort(self) -> None:
        """End all requests that are left with an error, so that clients know their answers are cut short."""
        with self._wake:
            self._refusal = self._abort = shutting_down()
            self._changed = True
            self._wake.notify()

    def close(self) -> None:
        """End the thread; requests that are left end with an error."""
        self.abort()
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether the thread works."""
        return self._thread.is_alive()

    @property
    def idle(self) -> bool:
        """Whether nothing waits or runs."""
        return not self._waiting and not self._active and self._prefilling is None

    def _notify(self) -> None:
        with self._wake:
            self._changed = True
            self._wake.notify()

    def _seconds_until_free(self) -> int:
        return min(60, max(1, math.ceil(self._request_seconds * len(self._waiting) / self.limits.rows)))

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._changed or self._closing or not self.idle):
                    self._wake.wait()
                if self._closing and not self._changed:
                    return
                self._changed = False
                calls, self._calls = self._calls, deque()
                abort, self._abort = self._abort, None
            for call in calls:
                call()
            try:
                if abort is not None:
                    self._fail_all(abort)
                self._drop_the_cancelled()
                self._prefill()
                self._decode()
                self._step()
            except Exception:  # an error of the engine ends the requests it hit, not the server
                logger.exception("generation failed")
                self.metrics.failures.inc()
                self._fail_all(engine_failed())
            self._deliver()

    def _drop_the_cancelled(self) -> None:
        with self._wake:
            kept = [s for s in self._waiting if not (s.ticket.cancelled or s.late)]
            gone = [s for s in self._waiting if s.late and not s.ticket.cancelled]
            self.metrics.cancelled.inc(sum(s.ticket.cancelled for s in self._waiting))
            self._waiting = deque(kept)
        for sequence in gone:
            self._outbox.append((sequence.ticket, queue_is_full(self._seconds_until_free())))
            sequence.ticket.cancelled = True
        for sequence in [*self._active, *([self._prefilling] if self._prefilling else [])]:
            if sequence.ticket.cancelled:
                self.metrics.cancelled.inc()
                self._release(sequence)
            elif sequence.late:
                sequence.finish("length")
                self._settle(sequence)

    def _prefill(self) -> None:
        budget = self.limits.prefill_tokens
        while budget > 0:
            if self._prefilling is None:
                with self._wake:
                    if not self._waiting or not self._free_rows:
                        return
                    self._prefilling = self._waiting.popleft()
                    self._prefilling.row = self._free_rows.pop()
                self._begin(self._prefilling)
            budget -= self._prefill_some(self._prefilling, budget)

    def _begin(self, sequence: CompletionState) -> None:
        prompt = sequence.request.prompt
        plan = self._cache.plan(prompt)
        if plan.row is None:
            self.session.reset([sequence.row])
        else:
            self.session.copy(plan.row, sequence.row)
        sequence.prefilled = sequence.cached = plan.length
        sequence.in_row = list(prompt[: plan.length])
        sequence.cuts = plan.snapshots
        self.metrics.prompt_tokens.inc(len(prompt))
        self.metrics.cached_tokens.inc(plan.length)

    def _prefill_some(self, sequence: CompletionState, budget: int) -> int:
        """Prefill up to `budget` tokens of a prompt; returns how many."""
        prompt, start = sequence.request.prompt, sequence.prefilled
        cut = next((n for n in sequence.cuts if n > start), len(prompt))
        end = min(cut, start + budget)
        logits = self.session.prefill([prompt[start:end]], [sequence.row])
        sequence.prefilled = end
        sequence.in_row += prompt[start:end]
        if end in sequence.cuts:
            self._snapshot(sequence)
        if end == len(prompt):
            sequence.logits = logits[0]
            self._prefilling = None
            self._active.append(sequence)
        return end - start

    def _snapshot(self, sequence: CompletionState) -> None:
        row = self._cache.keep(sequence.in_row)
        if row is not None:
            self.session.copy(sequence.row, row)

    def _decode(self) -> None:
        """A chunk inside the engine, for the requests that need nothing else."""
        sequences = [s for s in self._active if s.chooser is None]
        if not sequences:
            return
        steps = self.limits.chunk_tokens
        if len(sequences) < len(self._active):
            steps = 1  # the others go one token at a time, and should not wait longer for it
        steps = max(1, min(steps, int(self.limits.chunk_seconds / self._token_seconds)))
        steps = min(steps, *(s.remaining for s in sequences))
        start = time.monotonic()
        generation = self.session.decode(
            steps,
            [s.engine_params for s in sequences if s.engine_params],
            [self.end_ids] * len(sequences),
            [s.row for s in sequences],
        )
        self._token_seconds += 0.2 * ((time.monotonic() - start) / steps - self._token_seconds)
        for sequence, tokens, length in zip(sequences, generation.tokens.tolist(), generation.lengths, strict=True):
            sequence.in_row += tokens[:length]
            for token in tokens[:length]:
                sequence.take(token)
                if sequence.finish_reason is not None:
                    break
            self._settle(sequence)

    def _step(self) -> None:
        """One token for each of the requests whose tokens are chosen here."""
        going_on: list[tuple[CompletionState, int]] = []
        for sequence in [s for s in self._active if s.chooser is not None]:
            assert sequence.chooser is not None and sequence.logits is not None
            try:
                choice = sequence.chooser.choose(sequence.logits)
                sequence.take(choice.token, choice)
            except RuntimeError:  # the grammar gave up: this request's fault, and only its
                logger.exception("a constrained completion failed")
                self.metrics.failures.inc()
                self._outbox.append((sequence.ticket, engine_failed()))
                sequence.ticket.cancelled = True
                self._release(sequence)
                continue
            if sequence.finish_reason is None:
                going_on.append((sequence, choice.token))
            self._settle(sequence)
        if not going_on:
            return
        logits = self.session.step([token for _, token in going_on], [s.row for s, _ in going_on])
        for (sequence, token), row_logits in zip(going_on, logits, strict=True):
            sequence.in_row.append(token)
            sequence.logits = row_logits

    def _settle(self, sequence: CompletionState) -> None:
        """Send what came, and free the row of a completion that is done."""
        if (piece := sequence.piece()) is not None:
            self._outbox.append((sequence.ticket, piece))
        if sequence.finish_reason is None:
            return
        now = time.monotonic()
        self._request_seconds += 0.1 * (now - sequence.submitted - self._request_seconds)
        self.metrics.generated_tokens.inc(sequence.tokens)
        if sequence.first_token is not None:
            self.metrics.first_token_seconds.observe(sequence.first_token - sequence.submitted)
        if sequence.prefilled == len(sequence.request.prompt):
            self._snapshot(sequence)
        self._release(sequence)

    def _release(self, sequence: CompletionState) -> None:
        if sequence is self._prefilling:
            self._prefilling = None
        else:
            self._active.remove(sequence)
        with self._wake:
            self._free_rows.append(sequence.row)

    def _fail_all(self, error: ApiError) -> None:
        with self._wake:
            waiting = list(self._waiting) if error.status == 503 else []
            if waiting:
                self._waiting.clear()
        running = [*self._active, *([self._prefilling] if self._prefilling else [])]
        for ticket in dict.fromkeys(s.ticket for s in [*running, *waiting] if not s.ticket.cancelled):
            self._outbox.append((ticket, error))
        for sequence in running:
            self._release(sequence)
        if running:
            self._cache.clear()

    def _deliver(self) -> None:
        """Hand everything to the event loop in one call, whatever the number of streams."""
        self.metrics.running.set(len(self._active) + (self._prefilling is not None))
        self.metrics.waiting.set(len(self._waiting))
        outbox, self._outbox = self._outbox, []
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Ticket, Piece | ApiError]]] = {}
        for ticket, piece in outbox:
            by_loop.setdefault(ticket.loop, []).append((ticket, piece))
        for loop, pieces in by_loop.items():
            with suppress(RuntimeError):  # the loop is closed: nobody is left to read
                loop.call_soon_threadsafe(_put_all, pieces)


def _put_all(pieces: Sequence[tuple[Ticket, Piece | ApiError]]) -> None:
    for ticket, piece in pieces:
        ticket.put(piece)
