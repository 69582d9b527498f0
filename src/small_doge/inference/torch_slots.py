"""Sequences decoded side by side in torch, on a CPU or a GPU: the engine behind `load` where there is a GPU, and the
rollouts of GRPO.

A row holds one sequence with a bounded cache. Drawing goes on on the device for many tokens; the host looks only now
and then whether every row has ended. On a GPU the whole token step is a CUDA graph (`gpu_graphs`); elsewhere the same
step runs eagerly (`gpu_step`), which is the definition that the kernels are tested against.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from small_doge.inference.gpu_sampling import choose, record
from small_doge.inference.gpu_state import MAX_STOPS, SlotState
from small_doge.inference.gpu_step import Rows, feed, head_logits, read
from small_doge.inference.gpu_weights import DecodeWeights
from small_doge.inference.slots import Generation
from small_doge.models.doge.cache_doge import DogeCache
from small_doge.models.doge.modeling_doge import DogeForCausalLM

PREFILL_TOKENS = 32768
"""Tokens, padding included, that one forward of a prefill takes at most."""

COLDEST = 1e-6
"""Below this temperature a row is greedy: a logit over a smaller one may leave the range of fp32."""

STEPS_BETWEEN_LOOKS = 16
"""Tokens drawn before the host looks which rows have ended: a look costs a GPU some 20 us of idling."""


class EagerStep:
    """The token step without a graph: exact rows, no padding, every operation launched by itself."""

    def __init__(self, weights: DecodeWeights, state: SlotState) -> None:
        self.weights, self.state = weights, state
        self.rows: Rows = slice(0, 0)

    def set_rows(self, rows: Sequence[int]) -> None:
        """The rows that the next calls work on."""
        one_after_another = list(rows) == list(range(rows[0], rows[0] + len(rows)))
        device = self.state.length.device
        self.rows = slice(rows[0], rows[-1] + 1) if one_after_another else torch.tensor(list(rows), device=device)
        # Read once: from here on each step adds one token at most.
        self.longest = int(self.state.length[self.rows].max())

    def read(self, rows: Tensor, ids: Tensor, lengths: Tensor) -> Tensor:
        """`gpu_step.read`."""
        return read(self.weights, self.state, rows, ids, lengths)

    def feed(self) -> None:
        """Append each row's token and keep the next logits."""
        self.state.logits[self.rows] = self._feed()
        self.state.length[self.rows] += self.state.active[self.rows]

    def pick(self, filtered: bool) -> None:
        """Draw from the logits that a prefill left."""
        logits, rows = self.state.logits[self.rows], self.rows
        record(self.state, rows, choose(self.state, rows, logits, self.state.length[rows], filtered), logits, fed=False)

    def draw(self, filtered: bool, steps: int) -> None:
        """Append each row's token and draw the next, `steps` times."""
        state, rows = self.state, self.rows
        for _ in range(steps):
            logits = self._feed()
            record(state, rows, choose(state, rows, logits, state.length[rows] + 1, filtered), logits, fed=True)

    def _feed(self) -> Tensor:
        self.longest += 1
        return feed(self.weights, self.state, self.rows, self.longest)


class TorchSlots:
    """A `SlotSession` in torch.

    Args:
        model: A Doge. Prompts and the token step go through fused copies of its weights; a prompt that continues a row
            or is longer than the window goes through the model itself.
        batch: Number of rows.
        max_length: Tokens a row must hold; by default the longest that the model's positions are made for. The cache
            has `min(keep_window_size, max_length)` slots a head, and where the window is the smaller, a row may go on
            beyond max_length for ever.
        dtype: Of the cache and of the fused weights; the model's own by default.

    Raises:
        ValueError: no row, or a model that the token step does not serve (`DecodeWeights`).
    """

    def __init__(
        self, model: DogeForCausalLM, batch: int = 1, max_length: int | None = None, dtype: torch.dtype | None = None
    ) -> None:
        if batch < 1:
            raise ValueError(f"batch is {batch}: ask for at least 1 row.")
        self.model = model
        self.batch = batch
        self.dtype = dtype or model.dtype
        self.max_length = max_length or model.config.max_position_embeddings
        self.weights = DecodeWeights(model, self.dtype)
        slots = min(model.config.keep_window_size, self.max_length)
        self.state = SlotState(model.config, batch, slots, self.dtype, model.device)
        self.state.reserve(self.max_length)
        self.runner: Any = self._runner()
        self._length = [0] * batch
        # None: empty. "logits": the next token is to be drawn from state.logits. "token": a drawn token is to be fed.
        self._waiting: list[str | None] = [None] * batch

    def _runner(self) -> Any:
        if self.model.device.type == "cuda":
            from small_doge.inference.gpu_graphs import GraphedStep, can_serve

            if can_serve(self.weights, self.state):
                return GraphedStep(self.weights, self.state)
        return EagerStep(self.weights, self.state)

    def refresh(self) -> None:
        """Follow the model's parameters after an optimizer step; every row is emptied."""
        self.weights.refresh()
        self.reset(range(self.batch))

    def length(self, row: int) -> int:
        """Tokens of the row that went through the layers (a token just drawn is not yet among them)."""
        return self._length[row]

    def reset(self, rows: Sequence[int]) -> None:
        """Empty rows, so that other sequences can take their place."""
        rows = list(rows)
        if rows:
            self.state.reset(self._index(rows))
        for row in rows:
            self._length[row], self._waiting[row] = 0, None

    def copy(self, source: int, target: int) -> None:
        """Make row `target` a copy of row `source`."""
        self.copy_rows([source], [target])

    def copy_rows(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Make each row targets[i] a copy of sources[i]; no row is both."""
        self.state.copy(self._index(sources), self._index(targets))
        for source, target in zip(sources, targets, strict=True):
            self._length[target], self._waiting[target] = self._length[source], self._waiting[source]

    def prefill(self, prompts: Sequence[Sequence[int]], rows: Sequence[int]) -> np.ndarray:
        """Append prompts[i] to row rows[i]; the fp32 logits [len(rows), V] of each last position.

        Raises:
            ValueError: an empty prompt, an id outside the vocabulary, a row twice, or a sequence too long.
        """
        self.extend(prompts, rows)
        return self.state.logits[self._index(rows)].cpu().numpy()

    @torch.inference_mode()
    def extend(self, prompts: Sequence[Sequence[int]], rows: Sequence[int]) -> None:
        """`prefill` that leaves the logits on the device."""
        rows = self._checked(rows)
        if len(prompts) != len(rows):
            raise ValueError(f"{len(prompts)} prompts for {len(rows)} rows: give one a row.")
        for prompt, row in zip(prompts, rows, strict=True):
            self._check_prompt(list(prompt), row)
        full = [self._with_waiting(row, list(prompt)) for prompt, row in zip(prompts, rows, strict=True)]
        continued = [i for i, row in enumerate(rows) if self._length[row]]
        fresh = sorted(set(range(len(rows))) - set(continued), key=lambda i: len(full[i]))
        while fresh:
            # The longest together: less padding.
            together = fresh[-max(1, PREFILL_TOKENS // len(full[fresh[-1]])) :]
            del fresh[-len(together) :]
            self._prefill([full[i] for i in together], [rows[i] for i in together], None)
        for i in continued:
            self._prefill([full[i]], [rows[i]], self.state.load(rows[i], self._length[rows[i]]))

    def _prefill(self, prompts: list[list[int]], rows: list[int], cache: DogeCache | None) -> None:
        device, longest = self.model.device, max(map(len, prompts))
        padded = torch.zeros(len(prompts), longest, dtype=torch.long)
        for row, prompt in zip(padded, prompts, strict=True):
            row[: len(prompt)] = torch.tensor(prompt)
        ids, at = padded.to(device), self._index(rows)
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        valid = torch.arange(longest, device=device) < lengths[:, None]
        self.state.seen[at[:, None].expand_as(ids)[valid], ids[valid]] = 1
        if cache is None and longest <= self.state.slots:
            self.state.logits[at] = self.runner.read(at, ids, lengths)
        else:
            self._prefill_model(at, ids, lengths, valid, cache or DogeCache(self.model.config))
        for row, prompt in zip(rows, prompts, strict=True):
            self._length[row] += len(prompt)
            self._waiting[row] = "logits"

    def _prefill_model(self, at: Tensor, ids: Tensor, lengths: Tensor, valid: Tensor, cache: DogeCache) -> None:
        """Through the model with its own cache: rows that hold tokens already, and prompts beyond the window."""
        longest = ids.shape[1]
        # Padding on the right is never seen by a real query; it matters only where it could push a key out.
        mask = valid.long() if longest > self.model.config.keep_window_size else None
        training = self.model.training
        self.model.eval()
        with self._precision():
            hidden = self.model.model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True)[0]
        self.model.train(training)
        last = hidden[torch.arange(len(ids), device=ids.device), lengths - 1].to(self.dtype)
        self.state.logits[at] = head_logits(last, self.weights.head)
        self.state.store(cache, at, self.state.length[at] + lengths)

    @torch.inference_mode()
    def step(self, tokens: Sequence[int], rows: Sequence[int]) -> np.ndarray:
        """Append one given token to each row; the next logits, fp32 [len(rows), V]."""
        rows = self._checked(rows)
        drawn = [row for row in rows if self._waiting[row] == "token"]
        if drawn:
            self._feed(drawn)
        for token, row in zip(tokens, rows, strict=True):
            self._check_prompt([token], row)
        at = self._index(rows)
        given = torch.tensor(list(tokens), dtype=torch.int32, device=at.device)
        self.state.token[at] = given
        self.state.seen[at, given.long()] = 1
        self._feed(rows)
        return self.state.logits[at].cpu().numpy()

    def _feed(self, rows: list[int]) -> None:
        self.state.active[self._index(rows)] = 1
        self.runner.set_rows(rows)
        self.runner.feed()
        self.state.active[self._index(rows)] = 0
        for row in rows:
            self._length[row] += 1
            self._waiting[row] = "logits"

    @torch.inference_mode()
    def decode(
        self, n_tokens: int, sampling: Sequence[Any], stop_ids: Sequence[Sequence[int]], rows: Sequence[int]
    ) -> Generation:
        """Draw up to n_tokens for each row, going on from where it stands.

        Args:
            sampling: One a row, with the fields of `SamplingParams`. A row with a seed draws the same tokens whatever
                stands beside it.
            stop_ids: For each row the ids, at most 8, that end it; the id is its last token.

        Raises:
            ValueError: n_tokens below 1, a row without tokens, too many stop ids, or a sequence too long.
        """
        rows = self._checked(rows)
        if n_tokens < 1:
            raise ValueError(f"n_tokens is {n_tokens}: ask for at least 1.")
        for row in rows:
            if self._waiting[row] is None:
                raise ValueError(f"row {row} holds no tokens: prefill it first.")
            self._check_length(row, n_tokens - 1)
        filtered = self._begin(n_tokens, sampling, stop_ids, rows)
        fresh = [row for row in rows if self._waiting[row] == "logits"]
        if fresh:
            self.runner.set_rows(fresh)
            self.runner.pick(filtered)
        self._draw(n_tokens - (len(fresh) == len(rows)), rows, any(map(len, stop_ids)), filtered)
        return self._end(n_tokens, rows)

    def _begin(
        self, n_tokens: int, sampling: Sequence[Any], stop_ids: Sequence[Sequence[int]], rows: list[int]
    ) -> bool:
        """Put the rows' settings on the device; whether any of them needs the filters."""
        if not len(sampling) == len(stop_ids) == len(rows):
            raise ValueError(
                f"{len(sampling)} settings, {len(stop_ids)} lists of stop ids and {len(rows)} rows differ."
            )
        if max(map(len, stop_ids)) > MAX_STOPS:
            raise ValueError(f"a row has more than {MAX_STOPS} stop ids: look for the others in its text.")
        state, at = self.state, self._index(rows)
        if state.reserve(n_tokens):
            self.runner = self._runner()
        seeds = [secrets.randbits(31) if s.seed is None else s.seed for s in sampling]
        settings = {
            "temperature": [s.temperature if s.temperature >= COLDEST else 0.0 for s in sampling],
            "top_k": [s.top_k for s in sampling],
            "top_p": [s.top_p for s in sampling],
            "min_p": [s.min_p for s in sampling],
            "penalty": [s.repetition_penalty for s in sampling],
            "seed": [fold_seed(seed) for seed in seeds],
            "stops": [[*stops, *[-1] * (MAX_STOPS - len(stops))] for stops in stop_ids],
            "active": 1,
            "stopped": 0,
            "count": 0,
            "budget": n_tokens,
        }
        for name, values in settings.items():
            into = getattr(state, name)
            into[at] = torch.as_tensor(values, dtype=into.dtype).to(into.device)
        off = (0, 1.0, 0.0, 1.0)
        return any((s.top_k, s.top_p, s.min_p, s.repetition_penalty) != off for s in sampling)

    def _draw(self, steps: int, rows: list[int], may_stop: bool, filtered: bool) -> None:
        width = 0
        while steps > 0:
            if may_stop:
                alive = self.state.active[self._index(rows)].tolist()
                rows = [row for row, on in zip(rows, alive, strict=True) if on]
                if not rows:
                    return
            # Fewer rows make a faster step; changing them costs a little.
            if not width or len(rows) <= 0.75 * width:
                width = len(rows)
                self.runner.set_rows(rows)
            now = min(steps, STEPS_BETWEEN_LOOKS if may_stop else steps)
            self.runner.draw(filtered, now)
            steps -= now

    def _end(self, n_tokens: int, rows: list[int]) -> Generation:
        state, at = self.state, self._index(rows)
        tokens, log_probs = (t[at, :n_tokens].cpu().numpy() for t in (state.tokens, state.log_probs))
        count, stopped, length = (t[at].cpu().numpy() for t in (state.count, state.stopped, state.length))
        beyond = np.arange(n_tokens) >= count[:, None]
        state.active[at] = 0
        for row, reached in zip(rows, length.tolist(), strict=True):
            self._length[row], self._waiting[row] = reached, "token"
        return Generation(
            tokens=np.where(beyond, -1, tokens),
            logprobs=np.where(beyond, np.float32(0), log_probs),
            lengths=count,
            stopped=stopped.astype(bool),
        )

    def _precision(self) -> AbstractContextManager[Any]:
        if self.dtype == self.model.dtype:
            return nullcontext()
        return torch.autocast(self.model.device.type, self.dtype)

    def _index(self, rows: Sequence[int]) -> Tensor:
        return torch.tensor(list(rows), dtype=torch.long, device=self.model.device)

    def _with_waiting(self, row: int, prompt: list[int]) -> list[int]:
        return [int(self.state.token[row]), *prompt] if self._waiting[row] == "token" else prompt

    def _checked(self, rows: Sequence[int]) -> list[int]:
        rows = list(rows)
        if not rows or len(set(rows)) < len(rows) or not all(0 <= row < self.batch for row in rows):
            raise ValueError(f"rows are {rows}: name each of the rows 0 .. {self.batch - 1} once at the most.")
        return rows

    def _check_prompt(self, prompt: list[int], row: int) -> None:
        vocab = self.model.config.vocab_size
        if not prompt:
            raise ValueError("a prompt is empty: begin it with the beginning-of-text token.")
        if not 0 <= min(prompt) <= max(prompt) < vocab:
            raise ValueError(f"a prompt holds an id outside 0 .. {vocab - 1}: encode it with the model's tokenizer.")
        self._check_length(row, len(prompt))

    def _check_length(self, row: int, more: int) -> None:
        # A full window replaces its keys; a cache cut below the window cannot.
        held = self._length[row] + (self._waiting[row] == "token") + more
        if self.state.slots < self.model.config.keep_window_size and held > self.state.slots:
            raise ValueError(
                f"row {row} would hold {held} tokens, the session was made for {self.state.slots}: "
                "give a higher max_length."
            )


def fold_seed(seed: int) -> int:
    """A seed of any size as a signed 32-bit integer."""
    low = (seed ^ (seed >> 32)) & 0xFFFFFFFF
    return low - (1 << 32) if low >> 31 else low
