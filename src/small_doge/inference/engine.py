"""From prompts to text, over whichever session serves the model: the native core, torch slots, or the model itself."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from small_doge.inference.sampling import SamplingParams
from small_doge.inference.slots import SlotSession

Prompt = str | list[dict[str, Any]] | list[int]

STREAM_TOKENS = 4
"""Tokens that a stream draws at a time: few enough to look steady, enough that Python costs little beside them."""


@dataclass(frozen=True)
class Completion:
    """What was generated for one prompt.

    Args:
        text: The completion without special tokens; thinking tags stay.
        token_ids: Its tokens, the end token included.
        log_probs: Natural log-probability of each token under the model, before temperature and filters.
        finish_reason: "stop" for an end token, "length" for max_new_tokens.
        prompt_tokens: Tokens of the prompt.
    """

    text: str
    token_ids: list[int]
    log_probs: list[float]
    finish_reason: str
    prompt_tokens: int


class Backend(Protocol):
    """What an engine asks of a loaded model."""

    def new_session(self, batch: int, longest: int | None = None) -> SlotSession:
        """Rows for `batch` sequences, of up to `longest` tokens each; by default as long as the model allows."""

    def hidden(self, prompts: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        """The last hidden states [T, d] of each prompt, after the final norm."""


class Engine:
    """Generates with a model and its tokenizer.

    Args:
        backend: The loaded model.
        tokenizer: Its tokenizer; needs a chat template for conversations.
        end_ids: Tokens that end a completion unless the parameters name others.
    """

    def __init__(self, backend: Backend, tokenizer: PreTrainedTokenizerBase, end_ids: Sequence[int]) -> None:
        self.backend = backend
        self.tokenizer = tokenizer
        self.end_ids = tuple(end_ids)

    def new_session(self, batch: int) -> SlotSession:
        """Rows for `batch` sequences, to drive by hand."""
        return self.backend.new_session(batch)

    def generate(
        self, prompts: Sequence[Prompt], params: SamplingParams | None = None, batch_size: int = 64, **overrides: Any
    ) -> list[Completion]:
        """Complete each prompt; a string is continued, a conversation answered, a list of token ids continued as it is.

        Args:
            prompts: Of any mix of kinds.
            params: How to sample; `overrides` replace single fields (`generate(prompts, temperature=0.8)`). With a
                seed, prompt i draws with seed + i.
            batch_size: Prompts generated together.
        """
        if not prompts:
            return []
        params = dataclasses.replace(params or SamplingParams(), **overrides)
        encoded = [self.encode(prompt) for prompt in prompts]
        # Prompts of like length go together: they end their prefill together.
        order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
        session = self.backend.new_session(min(batch_size, len(order)), self._longest(encoded, params))
        stops = self._stops(params)
        completions: dict[int, Completion] = {}
        for start in range(0, len(order), batch_size):
            indices = order[start : start + batch_size]
            rows = range(len(indices))
            session.reset(rows)
            session.prefill([encoded[i] for i in indices], rows)
            how = [self._of_row(params, i) for i in indices]
            drawn = session.decode(params.max_new_tokens, how, [stops] * len(indices), rows)
            for row, index in enumerate(indices):
                n = int(drawn.lengths[row])
                ids, log_probs = drawn.tokens[row, :n].tolist(), drawn.logprobs[row, :n].tolist()
                completions[index] = self._completion(encoded[index], ids, log_probs, params)
        return [completions[i] for i in range(len(encoded))]

    def stream(
        self, prompt: Prompt, params: SamplingParams | None = None, **overrides: Any
    ) -> Generator[str, None, Completion]:
        """Complete one prompt, yielding text as soon as it is certain (a character may span several tokens).

        The generator's value (what `yield from` gives) is the whole `Completion`.
        """
        params = dataclasses.replace(params or SamplingParams(), **overrides)
        encoded, stops = self.encode(prompt), self._stops(params)
        session = self.backend.new_session(1, self._longest([encoded], params))
        session.prefill([encoded], [0])
        how = [self._of_row(params, 0)]
        pieces = Pieces(self.tokenizer)
        ids: list[int] = []
        log_probs: list[float] = []
        while len(ids) < params.max_new_tokens:
            # The first token alone: it should be seen at once.
            now = min(STREAM_TOKENS if ids else 1, params.max_new_tokens - len(ids))
            drawn = session.decode(now, how, [stops], [0])
            n = int(drawn.lengths[0])
            ids += drawn.tokens[0, :n].tolist()
            log_probs += drawn.logprobs[0, :n].tolist()
            ended = bool(drawn.stopped[0])
            for token in ids[-n : -1 if ended else None]:
                if piece := pieces.add(token):
                    yield piece
            if ended:
                break
        if piece := pieces.rest():
            yield piece
        return self._completion(encoded, ids, log_probs, params)

    def embed(self, texts: Sequence[Prompt]) -> NDArray[np.float32]:
        """The mean of the last hidden states over each text's tokens: [n, d]."""
        return np.stack([states.mean(0) for states in self.backend.hidden([self.encode(text) for text in texts])])

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt: a conversation through the chat template, a string after the beginning-of-text token.

        Raises:
            ValueError: a conversation, but the tokenizer has no chat template; or an empty list of ids.
        """
        if isinstance(prompt, str):
            return [self.tokenizer.bos_token_id, *self.tokenizer(prompt, add_special_tokens=False)["input_ids"]]
        if not prompt:
            raise ValueError("an empty prompt: give at least one message or token.")
        if isinstance(prompt[0], int):
            return list(prompt)
        if not self.tokenizer.chat_template:
            raise ValueError(
                "the tokenizer has no chat template, so it takes no conversations: pass a string to continue."
            )
        encoded: Any = self.tokenizer.apply_chat_template(
            prompt, tokenize=True, add_generation_prompt=True, return_dict=True
        )
        return encoded["input_ids"]

    def _stops(self, params: SamplingParams) -> tuple[int, ...]:
        return self.end_ids if params.stop_token_ids is None else params.stop_token_ids

    def _of_row(self, params: SamplingParams, index: int) -> SamplingParams:
        seed = secrets.randbits(62) if params.seed is None else params.seed + index
        return dataclasses.replace(params, seed=seed)

    def _longest(self, encoded: Sequence[Sequence[int]], params: SamplingParams) -> int:
        return max(map(len, encoded)) + params.max_new_tokens

    def _completion(
        self, prompt: list[int], ids: list[int], log_probs: list[float], params: SamplingParams
    ) -> Completion:
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        assert isinstance(text, str)
        return Completion(
            text=text,
            token_ids=ids,
            log_probs=log_probs,
            finish_reason="stop" if ids[-1] in self._stops(params) else "length",
            prompt_tokens=len(prompt),
        )


class Pieces:
    """Text from tokens, piece by piece, each only once no later token can change it.

    Only the last few tokens are decoded again: the ones shown last, since a tokenizer may treat the beginning of a text
    in its own way, and the ones not yet shown.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.shown: list[int] = []
        self.waiting: list[int] = []

    def add(self, token: int) -> str:
        """The text that is certain now and was not before; often empty."""
        self.waiting.append(token)
        text = self._text()
        if text.endswith("\ufffd"):
            return ""
        self.shown, self.waiting = self.waiting, []
        return text

    def rest(self) -> str:
        """What is left when no token follows."""
        return self._text() if self.waiting else ""

    def _text(self) -> str:
        before: Any = self.tokenizer.decode(self.shown, skip_special_tokens=True)
        both: Any = self.tokenizer.decode([*self.shown, *self.waiting], skip_special_tokens=True)
        return both[len(before) :]
