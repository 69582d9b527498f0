"""How the next token is chosen from the logits: one set of settings for every engine, and what they mean in NumPy."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

# A logit over a smaller one may leave the range of fp32.
SMALLEST_PENALTY = 0.01


@dataclass(frozen=True)
class SamplingParams:
    """What a generation may do; the defaults are greedy. The filters act in the order of transformers' logits
    processors: repetition penalty, temperature, top-k, top-p, min-p.

    Args:
        max_new_tokens: Most tokens to generate for a prompt.
        temperature: 0 takes the most likely token; above, the logits are divided by it.
        top_k: Keep the k most likely tokens; 0 for all.
        top_p: Keep the most likely tokens up to this share of the probability (arXiv 1904.09751).
        min_p: Keep tokens of at least this share of the most likely one's probability (arXiv 2407.01082).
        repetition_penalty: Divide the positive logits of tokens seen by this, multiply the negative (arXiv 1909.05858).
        seed: Of the random choice; fresh for each call if not given.
        stop_token_ids: Tokens that end a completion; the model's own end tokens if not given.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop_token_ids: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        checks = (
            (self.max_new_tokens >= 1, f"max_new_tokens is {self.max_new_tokens}: ask for at least 1."),
            (0 <= self.temperature < math.inf, f"temperature is {self.temperature}: give 0 (greedy) or more."),
            (self.top_k >= 0, f"top_k is {self.top_k}: give 0 (off) or more."),
            (0 < self.top_p <= 1, f"top_p is {self.top_p}: give a share above 0, up to 1."),
            (0 <= self.min_p <= 1, f"min_p is {self.min_p}: give a share from 0 to 1."),
            (
                SMALLEST_PENALTY <= self.repetition_penalty < math.inf,
                f"repetition_penalty is {self.repetition_penalty}: give {SMALLEST_PENALTY} or more.",
            ),
        )
        for holds, message in checks:
            if not holds:
                raise ValueError(message)


class Filters(Protocol):
    """What `filtered_weights` reads of a request."""

    @property
    def temperature(self) -> float: ...
    @property
    def top_k(self) -> int: ...
    @property
    def top_p(self) -> float: ...
    @property
    def min_p(self) -> float: ...


def penalize(logits_V: NDArray[np.float64], seen: Collection[int], penalty: float) -> None:
    """Apply the repetition penalty to the tokens seen, in place."""
    if penalty == 1:
        return
    at = np.fromiter(seen, dtype=np.int64)
    values = logits_V[at]
    logits_V[at] = np.where(values > 0, values / penalty, values * penalty)


def filtered_weights(logits_V: NDArray[np.float64], how: Filters) -> NDArray[np.float64]:
    """Unnormalized probabilities [V] at a temperature above 0; 0 where a filter rules a token out, at most 1."""
    with np.errstate(over="ignore"):
        scaled = (logits_V - logits_V.max()) / how.temperature  # in this order a tiny temperature leaves the largest 0
    if 0 < how.top_k < len(scaled):
        scaled[scaled < np.partition(scaled, -how.top_k)[-how.top_k]] = -np.inf
    weights = np.exp(scaled)
    if how.top_p < 1:
        order = np.argsort(-weights, kind="stable")
        before = np.cumsum(weights[order]) - weights[order]
        weights[order[1:][before[1:] >= how.top_p * weights.sum()]] = 0  # the likeliest always stays
    weights[weights < how.min_p] = 0
    return weights


def draw(weights_V: NDArray[np.float64], uniform: float) -> int:
    """The token that a number from [0, 1) falls on."""
    total = np.cumsum(weights_V)
    return int(np.searchsorted(total, uniform * total[-1], side="right"))
