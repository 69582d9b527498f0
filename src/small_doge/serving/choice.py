"""How the next token of one completion is chosen from its logits, where the engine's own sampling does not do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from small_doge.inference.sampling import SamplingParams, draw, filtered_weights, penalize
from small_doge.serving.grammar import Constraint

Logits = NDArray[np.float32]


@dataclass(frozen=True)
class TokenRules:
    """What a request says about the choice of tokens.

    Args:
        temperature: 0 takes the most likely token; above, the logits are divided by it.
        top_k: Keep the k most likely tokens; 0 for all.
        top_p: Keep the most likely tokens up to this share of the probability (arXiv 1904.09751).
        min_p: Keep tokens of at least this share of the most likely one's probability (arXiv 2407.01082).
        repetition_penalty: Divide the positive logits of tokens seen by this, multiply the negative (arXiv 1909.05858).
        presence_penalty: Taken off the logits of tokens that the completion has (OpenAI's definition).
        frequency_penalty: Taken off as often as the completion has the token (OpenAI's definition).
        logit_bias: Added to the logits of these tokens.
        top_logprobs: Number of likely tokens to report beside the chosen one; None reports no log-probabilities.
        seed: The same request with the same seed draws the same tokens.
        constraint: A grammar that the completion keeps to.
        free_until: Bytes after which the grammar begins, for example the end of a thought.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    top_logprobs: int | None = None
    seed: int = 0
    constraint: Constraint | None = None
    free_until: bytes = b""

    @property
    def fit_the_engine(self) -> bool:
        """Whether the engine can draw the tokens by itself, several in a row."""
        return (
            self.presence_penalty == 0
            and self.frequency_penalty == 0
            and not self.logit_bias
            and self.top_logprobs is None
            and self.constraint is None
        )

    def engine_params(self) -> SamplingParams:
        """The same rules for the engine."""
        return SamplingParams(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            seed=self.seed,
        )


@dataclass(frozen=True)
class TokenLogprob:
    """Natural log-probability of a token under the model, before temperature and filters, and the likeliest ones."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class TokenChooser:
    """Chooses the tokens of one completion.

    Args:
        rules: What the request says.
        prompt: Tokens before the completion.
    """

    def __init__(self, rules: TokenRules, prompt: Sequence[int]) -> None:
        self.rules = rules
        self.constraint = rules.constraint.copy() if rules.constraint else None
        self._seen = set(prompt)
        self._counts: Counter[int] = Counter()
        self._random = np.random.default_rng(rules.seed)
        self._waiting_for = rules.free_until
        self._text = b""

    def choose(self, logits: Logits) -> TokenLogprob:
        """The next token from fp32 logits [V], which are left as they are."""
        adjusted = self._adjust(logits)
        if self.rules.temperature == 0:
            token = int(adjusted.argmax())
        else:
            token = draw(filtered_weights(adjusted, self.rules), self._random.random())
        if self.rules.top_logprobs is None:
            return TokenLogprob(token, 0.0)
        logprobs = logits - _log_sum_exp(logits)
        likely = np.argsort(-logprobs, kind="stable")[: self.rules.top_logprobs]
        return TokenLogprob(token, float(logprobs[token]), tuple((int(t), float(logprobs[t])) for t in likely))

    def take(self, token: int, text: bytes) -> None:
        """Go on past a chosen token, which stands for these bytes."""
        self._seen.add(token)
        self._counts[token] += 1
        if self.constraint is None:
            return
        if self._waiting_for:
            self._text = (self._text + text)[-len(self._waiting_for) - len(text) :]
            if self._waiting_for in self._text:
                self._waiting_for = b""
            return
        self.constraint.take(token)

    @property
    def finished(self) -> bool:
        """Whether the grammar allows nothing more."""
        return self.constraint is not None and not self._waiting_for and self.constraint.finished

    def _adjust(self, logits: Logits) -> NDArray[np.float64]:
        rules, adjusted = self.rules, logits.astype(np.float64)
        penalize(adjusted, self._seen, rules.repetition_penalty)
        for token, count in self._counts.items() if rules.presence_penalty or rules.frequency_penalty else ():
            adjusted[token] -= rules.presence_penalty + count * rules.frequency_penalty
        for token, bias in rules.logit_bias.items():
            adjusted[token] += bias
        if self.constraint is not None and not self._waiting_for:
            adjusted[~self.constraint.allowed()] = -np.inf
        return adjusted


def _log_sum_exp(logits: Logits) -> float:
    highest = float(logits.max())
    return highest + float(np.log(np.exp(logits.astype(np.float64) - highest).sum()))
