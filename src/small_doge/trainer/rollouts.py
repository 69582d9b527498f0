"""Rollouts through our own engine: TRL's `rollout_func` for GRPO, on a `TorchSlots` that shares the training model.

Nothing is written to disk and nothing is loaded: the prompts go through the training model itself, and the tokens
through fused copies of its weights, refreshed in place before each round of rollouts. A prompt that stands several
times in the batch, once for each of its completions, is read once.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from small_doge.inference.sampling import SamplingParams
from small_doge.inference.torch_slots import TorchSlots
from small_doge.models.doge.modeling_doge import DogeForCausalLM

LENGTH_STEP = 128
"""A session is made for a multiple of this many tokens, so that a longer prompt seldom asks for a new one."""


class SlotRollouts:
    """Called by `GRPOTrainer` with its prompts; returns their tokens, the completions and their log-probabilities.

    `draw` alone serves trainers that have the prompts' token ids.

    The log-probabilities cover the end token. They are the model's own, as the training forward has them at temperature
    1; at another there are none.

    Raises:
        ValueError: the model is no Doge, or its parameters are spread over processes.
    """

    def __init__(self) -> None:
        self.session: TorchSlots | None = None
        self._calls: dict[str, tuple[int, int]] = {}  # by mode: the optimizer step, and how many rounds it has had

    def __call__(self, prompts: list[Any], trainer: Any) -> dict[str, list[Any] | None]:
        prompt_ids = encode(prompts, trainer.processing_class)
        completion_ids, log_probs = self.draw(prompt_ids, trainer)
        # At another temperature the training forward's are of the tempered distribution.
        return {
            "prompt_ids": prompt_ids,
            "completion_ids": completion_ids,
            "logprobs": log_probs if trainer.temperature == 1 else None,
        }

    def draw(self, prompt_ids: list[list[int]], trainer: Any) -> tuple[list[list[int]], list[list[float]]]:
        """A completion of each prompt, and its tokens' log-probabilities at temperature 1."""
        longest = max(map(len, prompt_ids)) + trainer.max_completion_length
        started = time.perf_counter()
        session = self._session_for(trainer, len(prompt_ids), longest)
        rows = list(range(len(prompt_ids)))
        first_of: dict[tuple[int, ...], int] = {}
        sources = [first_of.setdefault(tuple(ids), row) for row, ids in zip(rows, prompt_ids, strict=True)]
        session.extend([prompt_ids[row] for row in first_of.values()], list(first_of.values()))
        copies = [(source, row) for source, row in zip(sources, rows, strict=True) if source != row]
        if copies:
            session.copy_rows(*map(list, zip(*copies, strict=True)))
        stops = tuple(trainer.eos_token_ids)
        drawn = session.decode(trainer.max_completion_length, self._sampling(trainer, rows), [stops] * len(rows), rows)
        lengths = drawn.lengths.tolist()
        mode = "train" if trainer.model.training else "eval"
        rate = sum(lengths) / (time.perf_counter() - started)
        trainer._metrics[mode]["rollouts/tokens_per_second"].append(rate)
        return (
            [row[:n].tolist() for row, n in zip(drawn.tokens, lengths, strict=True)],
            [row[:n].tolist() for row, n in zip(drawn.logprobs, lengths, strict=True)],
        )

    def _session_for(self, trainer: Any, rows: int, longest: int) -> TorchSlots:
        model = trainer.accelerator.unwrap_model(trainer.model)
        if not isinstance(model, DogeForCausalLM):
            raise ValueError(
                f"rollout_engine slots generates with a Doge, and this is a {type(model).__name__}: "
                "set rollout_engine: transformers."
            )
        zero = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
        if trainer.is_fsdp_enabled or (zero is not None and zero.zero_stage == 3):
            raise ValueError(
                "rollout_engine slots needs whole parameters in each process, FSDP and ZeRO-3 spread them: "
                "set rollout_engine: transformers."
            )
        session = self.session
        if session is None or session.batch < rows or session.max_length < longest:
            self.session = None  # the old one's memory first
            length = -(-longest // LENGTH_STEP) * LENGTH_STEP
            dtype = torch.bfloat16 if trainer.args.bf16 else model.dtype
            self.session = session = TorchSlots(model, rows, length, dtype)
        else:
            session.refresh()
        return session

    def _sampling(self, trainer: Any, rows: list[int]) -> list[SamplingParams]:
        step, training = trainer.state.global_step, trainer.model.training
        mode = "train" if training else "eval"
        before, rounds = self._calls.get(mode, (-1, 0))
        self._calls[mode] = (step, rounds + 1 if before == step else 0)
        # The same draws after a resume, and others in each mode, round, process and row.
        call = (trainer.args.seed, trainer.accelerator.process_index, training, *self._calls[mode])
        seed = hash(call) & 0xFFFFFFFF
        fields = {
            "temperature": trainer.temperature,
            "top_k": trainer.top_k or 0,
            "top_p": trainer.top_p,
            "min_p": trainer.min_p or 0.0,
            "repetition_penalty": trainer.repetition_penalty,
        }
        return [SamplingParams(**fields, seed=seed << 20 | row) for row in rows]


def encode(prompts: list[Any], tokenizer: Any) -> list[list[int]]:
    """Token ids of conversations (through the chat template, ready for an answer) or of texts."""
    if isinstance(prompts[0], str):
        return tokenizer(prompts)["input_ids"]
    return tokenizer.apply_chat_template(prompts, add_generation_prompt=True, tokenize=True, return_dict=True)[
        "input_ids"
    ]
