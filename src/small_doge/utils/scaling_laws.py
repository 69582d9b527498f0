"""Batch and learning rate for a model size and a token budget: published laws, and what this project trains with."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class ReleasedRun:
    """How a released size was pretrained: steps, tokens in a step, peak AdamW learning rate."""

    steps: int
    batch_tokens: int
    learning_rate: float

    @property
    def tokens(self) -> int:
        return self.steps * self.batch_tokens


RELEASED_RUNS = {
    "20M": ReleasedRun(8_000, 2**19, 8e-3),
    "60M": ReleasedRun(16_000, 2**20, 6e-3),
    "160M": ReleasedRun(24_000, 3 * 2**19, 4e-3),
    "320M": ReleasedRun(32_000, 2**21, 2e-3),
}

# The short track (benchmarks/short_track.py, one H100, 70M tokens, the 20M only): a batch of 131k tokens was
# far better than 524k; AdamW's best rate was the released 8e-3; Muon's matrices did best at 0.02, the rest at 1.6e-2.
SHORT_TOKENS, SHORT_BATCH = 70e6, 2**17
MUON_RATE, MUON_ADAMW_SHARE = 0.02, 2.0


def released_run(size: str) -> ReleasedRun:
    """How a size was released.

    Raises:
        ValueError: it never was.
    """
    if size not in RELEASED_RUNS:
        raise ValueError(f"no budget is known for the size {size!r}: choose one of {', '.join(RELEASED_RUNS)}.")
    return RELEASED_RUNS[size]


def step_law(parameters: float, tokens: float) -> tuple[float, float]:
    """Step Law (arXiv 2503.04715): AdamW's best peak learning rate, and batch in tokens.

    Args:
        parameters: Without embeddings.
        tokens: Of the whole run.
    """
    return 1.79 * parameters**-0.713 * tokens**0.307, 0.58 * tokens**0.571


def chinchilla_tokens(parameters: float) -> float:
    """Compute-optimal tokens for a model, about 20 a parameter (arXiv 2203.15556, table 3)."""
    return 20.0 * parameters


def chinchilla_loss(parameters: float, tokens: float) -> float:
    """Nats a token that the parametric fit foretells (arXiv 2203.15556, equation 10), on its data and tokenizer."""
    return 1.69 + 406.4 / parameters**0.34 + 410.7 / tokens**0.28


@dataclass(frozen=True)
class Budget:
    """What a token budget comes to.

    Attributes:
        rows: Rows in a step, over all processes.
        steps: Optimizer steps.
        learning_rate: Peak of AdamW, or of what AdamW trains beside Muon.
        muon_learning_rate: Peak of the matrices under Muon.
    """

    rows: int
    steps: int
    learning_rate: float
    muon_learning_rate: float


def plan(size: str, tokens: float, optimizer: str = "adamw", length: int = 2048, multiple: int = 8) -> Budget:
    """Batch, steps and rates for pretraining a size on `tokens`.

    The batch is a power of the tokens through two points: the short track's and the released run's of the size. The
    rates are those of the released run, which the short track found best too; beside Muon AdamW takes twice that, as
    the short track found. Beyond the 20M nothing of this was measured.

    Args:
        size: A released size, such as "20M".
        tokens: Of the whole run.
        optimizer: "adamw" or "muon".
        length: Tokens in a row.
        multiple: The rows of a step are a multiple of this.

    Raises:
        ValueError: an unknown size, or fewer tokens than ten steps take.
    """
    released = released_run(size)
    power = math.log(released.batch_tokens / SHORT_BATCH) / math.log(released.tokens / SHORT_TOKENS)
    batch = SHORT_BATCH * (tokens / SHORT_TOKENS) ** power
    rows = max(1, round(batch / length / multiple)) * multiple
    steps = round(tokens / (rows * length))
    if steps < 10:
        raise ValueError(
            f"tokens: {tokens:g} are {steps} steps of {rows} rows: give at least {10 * rows * length:,} tokens, or set "
            "max_steps and the batch by hand."
        )
    share = MUON_ADAMW_SHARE if optimizer == "muon" else 1.0
    return Budget(rows, steps, released.learning_rate * share, MUON_RATE)
