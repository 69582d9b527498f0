"""A session around any causal language model of transformers: the plain road for what no faster engine serves."""

from __future__ import annotations

import copy
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from small_doge.inference.sampling import SamplingParams, draw, filtered_weights, penalize
from small_doge.inference.slots import Generation


@dataclass
class Row:
    """One sequence: its cache, its tokens, the last logits [V], and a token that was drawn but not yet fed."""

    cache: Any = None
    tokens: list[int] = field(default_factory=list)
    logits: Tensor | None = None
    drawn: list[int] = field(default_factory=list)


class ModelSlots:
    """A `SlotSession` whose rows go through the model one after another, each with the cache that the model makes.

    Args:
        model: Any causal language model with a cache: the first generation, or a mixture with legacy routing.
        batch: Number of rows.
    """

    def __init__(self, model: PreTrainedModel, batch: int = 1) -> None:
        if batch < 1:
            raise ValueError(f"batch is {batch}: ask for at least 1 row.")
        self.model, self.batch = model, batch
        self._rows = [Row() for _ in range(batch)]

    def prefill(self, prompts: Sequence[Sequence[int]], rows: Sequence[int]) -> np.ndarray:
        """Append prompts[i] to row rows[i]; fp32 logits [len(rows), V] of each last position."""
        vocab = self.model.config.vocab_size
        for prompt in prompts:
            if not prompt:
                raise ValueError("a prompt is empty: begin it with the beginning-of-text token.")
            if not 0 <= min(prompt) <= max(prompt) < vocab:
                raise ValueError(f"a prompt holds an id outside 0 .. {vocab - 1}: use the model's own tokenizer.")
        logits = [self._feed(row, list(prompt)) for prompt, row in zip(prompts, self._at(rows), strict=True)]
        return torch.stack(logits).cpu().numpy()

    def step(self, tokens: Sequence[int], rows: Sequence[int]) -> np.ndarray:
        """Append one given token to each row; fp32 logits [len(rows), V]."""
        return self.prefill([[token] for token in tokens], rows)

    def decode(
        self,
        n_tokens: int,
        sampling: Sequence[SamplingParams],
        stop_ids: Sequence[Sequence[int]],
        rows: Sequence[int],
    ) -> Generation:
        """Draw up to n_tokens for each row, going on from where it stands."""
        if n_tokens < 1:
            raise ValueError(f"n_tokens is {n_tokens}: ask for at least 1.")
        tokens = np.full((len(rows), n_tokens), -1, np.int32)
        log_probs = np.zeros(tokens.shape, np.float32)
        lengths, stopped = np.zeros(len(rows), np.int32), np.zeros(len(rows), bool)
        for i, (row, how, stops) in enumerate(zip(self._at(rows), sampling, stop_ids, strict=True)):
            seed = secrets.randbits(62) if how.seed is None else how.seed
            while lengths[i] < n_tokens and not stopped[i]:
                if row.drawn:
                    self._feed(row, [])
                if row.logits is None:
                    raise ValueError(f"row {rows[i]} holds no tokens: prefill it first.")
                token = choose(row.logits, row.tokens, how, seed)
                tokens[i, lengths[i]] = token
                log_probs[i, lengths[i]] = row.logits.log_softmax(-1)[token]
                row.drawn = [token]
                lengths[i] += 1
                stopped[i] = token in stops
        return Generation(tokens, log_probs, lengths, stopped)

    def reset(self, rows: Sequence[int]) -> None:
        """Empty rows."""
        self._at(rows)
        for row in rows:
            self._rows[row] = Row()

    def length(self, row: int) -> int:
        """Tokens of the row that went through the model."""
        return len(self._rows[row].tokens)

    def copy(self, source: int, target: int) -> None:
        """Make row target a copy of row source."""
        self._rows[target] = copy.deepcopy(self._rows[source])

    @torch.inference_mode()
    def _feed(self, row: Row, tokens: list[int]) -> Tensor:
        """The fp32 logits [V] after the row's drawn token, if any, and these."""
        tokens, row.drawn = row.drawn + tokens, []
        ids = torch.tensor([tokens], device=self.model.device)
        outputs = self.model(input_ids=ids, past_key_values=row.cache, use_cache=True, logits_to_keep=1)
        row.cache, row.logits = outputs.past_key_values, outputs.logits[0, -1].float()
        row.tokens += tokens
        return row.logits

    def _at(self, rows: Sequence[int]) -> list[Row]:
        if len(set(rows)) < len(rows) or not all(0 <= row < self.batch for row in rows):
            raise ValueError(f"rows are {list(rows)}: name each of the rows 0 .. {self.batch - 1} once at the most.")
        return [self._rows[row] for row in rows]


def choose(logits_V: Tensor, seen: Sequence[int], how: SamplingParams, seed: int) -> int:
    """The next token of a sequence whose tokens are `seen`."""
    logits = logits_V.double().cpu().numpy()
    penalize(logits, set(seen), how.repetition_penalty)
    if how.temperature == 0:
        return int(logits.argmax())
    # A generator for each position, so that the draws do not depend on how the calls are cut.
    random = np.random.default_rng([seed & (2**64 - 1), len(seen)])
    return draw(filtered_weights(logits, how), random.random())
