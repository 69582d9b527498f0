"""The seam between engines and what generates with them: rows of sequences that are prefilled and decoded together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from small_doge.inference.sampling import SamplingParams


@dataclass(frozen=True)
class Generation:
    """What one `decode` call produced.

    Args:
        tokens: int32 [rows, n], -1 behind a row's end.
        logprobs: float32 [rows, n], natural log-probabilities of the tokens under the model's own distribution
            (temperature 1, no filter), 0 behind a row's end.
        lengths: int32 [rows], tokens of each row.
        stopped: bool [rows], whether a stop id ended the row; that id is its last token.
    """

    tokens: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    lengths: NDArray[np.int32]
    stopped: NDArray[np.bool_]

    @property
    def finish_reasons(self) -> list[str]:
        """ "stop" or "length" for each row."""
        return ["stop" if stopped else "length" for stopped in self.stopped]


class SlotSession(Protocol):
    """Sequences decoded side by side: row i holds one sequence with its own length and bounded cache.

    Every method raises ValueError for a row that is not there or named twice, an empty prompt, an id outside the
    vocabulary, or a row asked to go on that holds nothing.
    """

    @property
    def batch(self) -> int:
        """Number of rows."""

    def prefill(self, prompts: Sequence[Sequence[int]], rows: Sequence[int]) -> NDArray[np.float32]:
        """Append prompts[i] to row rows[i]; fp32 logits [len(rows), V] of each last position."""

    def step(self, tokens: Sequence[int], rows: Sequence[int]) -> NDArray[np.float32]:
        """Append one given token to each row; fp32 logits [len(rows), V]."""

    def decode(
        self,
        n_tokens: int,
        sampling: Sequence[SamplingParams],
        stop_ids: Sequence[Sequence[int]],
        rows: Sequence[int],
    ) -> Generation:
        """Draw up to n_tokens for each row inside the engine, going on from where the row stands.

        `sampling` and `stop_ids` have one entry a row. A row with a seed draws the same tokens whatever stands beside
        it and however the calls are cut.
        """

    def reset(self, rows: Sequence[int]) -> None:
        """Empty rows, so that other sequences can take their place."""

    def length(self, row: int) -> int:
        """Tokens of the row that went through the layers (a token just drawn is not yet among them)."""

    def copy(self, source: int, target: int) -> None:
        """Make row target a copy of row source."""
