"""Generation through torch: batched prefill and decode with the bounded cache, for any device."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from small_doge.inference.sampling import SamplingParams, sample

Prompt = str | list[dict[str, Any]] | list[int]


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


class Engine:
    """Generates with a Doge model and its tokenizer.

    Args:
        model: A causal language model that makes its own cache.
        tokenizer: Its tokenizer; needs a chat template for conversations.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        ends = model.generation_config.eos_token_id if model.generation_config else None
        ends = model.config.eos_token_id if ends is None else ends
        self.end_ids: tuple[int, ...] = tuple(ends) if isinstance(ends, (list, tuple)) else (ends,)

    def generate(
        self, prompts: Sequence[Prompt], params: SamplingParams | None = None, batch_size: int = 64, **overrides: Any
    ) -> list[Completion]:
        """Complete each prompt; a string is continued, a conversation answered, a list of token ids continued as it is.

        Args:
            prompts: Of any mix of kinds.
            params: How to sample; `overrides` replace single fields (`generate(prompts, temperature=0.8)`).
            batch_size: Prompts generated together.
        """
        params = dataclasses.replace(params or SamplingParams(), **overrides)
        encoded = [self.encode(prompt) for prompt in prompts]
        # Prompts of like length go together: less padding.
        order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
        generator = self._generator(params)
        completions: dict[int, Completion] = {}
        for start in range(0, len(order), batch_size):
            indices = order[start : start + batch_size]
            rows = self._generate_batch([encoded[i] for i in indices], params, generator)
            for index, (ids, log_probs) in zip(indices, rows, strict=True):
                completions[index] = self._completion(encoded[index], ids, log_probs, params)
        return [completions[i] for i in range(len(encoded))]

    def stream(self, prompt: Prompt, params: SamplingParams | None = None, **overrides: Any) -> Iterator[str]:
        """Complete one prompt, yielding text as soon as it is certain (a character may span several tokens)."""
        params = dataclasses.replace(params or SamplingParams(), **overrides)
        ids: list[int] = []
        shown = 0
        for tokens, _ in self._steps([self.encode(prompt)], params, self._generator(params)):
            token = int(tokens[0])
            if token in self._stops(params):
                break
            ids.append(token)
            text = self._text(ids)
            if not text.endswith("\ufffd"):
                yield text[shown:]
                shown = len(text)
        yield self._text(ids)[shown:]

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

    def _text(self, ids: list[int]) -> str:
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        assert isinstance(text, str)
        return text

    def _generator(self, params: SamplingParams) -> torch.Generator:
        generator = torch.Generator(self.model.device)
        if params.seed is None:
            generator.seed()
        else:
            generator.manual_seed(params.seed)
        return generator

    def _stops(self, params: SamplingParams) -> tuple[int, ...]:
        return self.end_ids if params.stop_token_ids is None else params.stop_token_ids

    def _generate_batch(
        self, prompts: list[list[int]], params: SamplingParams, generator: torch.Generator
    ) -> list[tuple[list[int], list[float]]]:
        stops = torch.tensor(self._stops(params), device=self.model.device)
        tokens, log_probs = [], []
        done = torch.zeros(len(prompts), dtype=torch.bool, device=self.model.device)
        for token_B, log_prob_B in self._steps(prompts, params, generator):
            tokens.append(token_B)
            log_probs.append(log_prob_B)
            done |= torch.isin(token_B, stops)
            if bool(done.all()):
                break
        ids = torch.stack(tokens, 1)
        ended = torch.isin(ids, stops)
        lengths = torch.where(ended.any(1), ended.int().argmax(1) + 1, ids.shape[1]).tolist()
        scores = torch.stack(log_probs, 1).tolist()
        return [(row[:n], score[:n]) for row, score, n in zip(ids.tolist(), scores, lengths, strict=True)]

    @torch.inference_mode()
    def _steps(
        self, prompts: list[list[int]], params: SamplingParams, generator: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Tokens [B] and their log-probabilities [B], step by step, for a batch of prompts."""
        device, longest = self.model.device, max(map(len, prompts))
        input_ids = torch.full((len(prompts), longest), self.tokenizer.pad_token_id, device=device)
        valid = torch.zeros(len(prompts), longest, dtype=torch.long, device=device)
        for row, ids in enumerate(prompts):
            input_ids[row, longest - len(ids) :] = torch.tensor(ids, device=device)
            valid[row, longest - len(ids) :] = 1
        seen = None
        if params.repetition_penalty != 1:
            seen = torch.zeros(len(prompts), self.model.config.vocab_size, dtype=torch.bool, device=device)
            seen.scatter_(1, input_ids, valid.bool())
        padded = min(map(len, prompts)) < longest
        outputs = self.model(
            input_ids=input_ids, attention_mask=valid if padded else None, use_cache=True, logits_to_keep=1
        )
        for step in range(params.max_new_tokens):
            logits = outputs.logits[:, -1].float()
            token = sample(logits, seen, params, generator)
            yield token, logits.log_softmax(-1).gather(-1, token[:, None])[:, 0]
            if seen is not None:
                seen.scatter_(1, token[:, None], True)
            if step + 1 < params.max_new_tokens:
                outputs = self.model(
                    input_ids=token[:, None], past_key_values=outputs.past_key_values, use_cache=True, logits_to_keep=1
                )

    def _completion(
        self, prompt: list[int], ids: list[int], log_probs: list[float], params: SamplingParams
    ) -> Completion:
        return Completion(
            text=self._text(ids),
            token_ids=ids,
            log_probs=log_probs,
            finish_reason="stop" if ids[-1] in self._stops(params) else "length",
            prompt_tokens=len(prompt),
        )
