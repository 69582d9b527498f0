"""Greedy generation up to stop strings, for tasks with many prompts: rows leave the batch when they are done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from small_doge.inference.sampling import SamplingParams
from small_doge.inference.torch_backend import served_by_slots
from small_doge.inference.torch_slots import TorchSlots

LOOK_EVERY = 8
"""Steps between two looks for stop strings: decoding the text on the host costs more than a step on a GPU."""

SLOT_LOOK_EVERY = 32
"""The same in our engine, whose steps are a replayed graph."""


@torch.inference_mode()
def generate_greedily(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    stops: Sequence[str],
    batch_tokens: int,
) -> list[str]:
    """The text that follows each prompt, without special tokens; it may run past a stop string, which the caller cuts.

    On a GPU a Doge answers through our engine, elsewhere and with any other model through the model's own cache.

    Args:
        prompts: Token ids, at least one each.
        max_new_tokens: Longest answer.
        stops: A row is done when its text holds one of these, or at an end token.
        batch_tokens: Padded tokens, prompts and answers together, of one batch.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)
    texts: dict[int, str] = {}
    if prompts and model.device.type == "cuda" and served_by_slots(model):
        ordered = [prompts[i] for i in order]
        found = generate_in_slots(model, tokenizer, ordered, max_new_tokens, stops, batch_tokens)
        texts |= dict(zip(order, found, strict=True))
        return [texts[i] for i in range(len(prompts))]
    start = 0
    while start < len(order):
        longest = len(prompts[order[start]]) + max_new_tokens
        batch = order[start : start + max(1, batch_tokens // longest)]
        start += len(batch)
        answers = _generate_batch(model, tokenizer, [prompts[i] for i in batch], max_new_tokens, stops)
        texts |= dict(zip(batch, answers, strict=True))
    return [texts[i] for i in range(len(prompts))]


def _generate_batch(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    max_new_tokens: int,
    stops: Sequence[str],
) -> list[str]:
    device, longest = model.device, len(prompts[0])
    pad = tokenizer.pad_token_id or 0
    ids_BT = torch.tensor([[pad] * (longest - len(prompt)) + prompt for prompt in prompts]).to(device)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    mask_BT = (torch.arange(longest, device=device) >= longest - lengths[:, None]).long()
    # Positions count from each prompt's own beginning, as in a row without padding.
    position_BT = (mask_BT.cumsum(1) - 1).clamp(min=0)
    ends = torch.tensor(_end_ids(model, tokenizer), device=device)
    texts = [""] * len(prompts)
    alive = list(range(len(prompts)))
    generated: list[torch.Tensor] = []
    step_input: dict[str, Any] = {"input_ids": ids_BT, "attention_mask": mask_BT, "position_ids": position_BT}
    cache = None
    for step in range(1, max_new_tokens + 1):
        outputs = model(**step_input, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = outputs.past_key_values
        generated.append(outputs.logits[:, -1].argmax(-1))
        if step % LOOK_EVERY == 0 or step == max_new_tokens:
            tokens_BN = torch.stack(generated, 1)
            ended = torch.isin(tokens_BN, ends)
            lengths_found = torch.where(ended.any(1), ended.int().argmax(1), tokens_BN.shape[1]).tolist()
            stay = []
            for row, (tokens, found) in enumerate(zip(tokens_BN.tolist(), lengths_found, strict=True)):
                text = str(tokenizer.decode(tokens[:found], skip_special_tokens=True))
                texts[alive[row]] = text
                if found == len(tokens) and not any(stop and stop in text for stop in stops):
                    stay.append(row)
            if not stay or step == max_new_tokens:
                break
            if len(stay) < len(alive):
                kept = torch.tensor(stay, device=device)
                alive = [alive[row] for row in stay]
                cache.batch_select_indices(kept)
                mask_BT, position_BT, tokens_BN = mask_BT[kept], position_BT[kept], tokens_BN[kept]
            generated = list(tokens_BN.unbind(1))
        mask_BT = torch.cat((mask_BT, mask_BT.new_ones(len(alive), 1)), 1)
        position_BT = position_BT[:, -1:] + 1
        step_input = {"input_ids": generated[-1][:, None], "attention_mask": mask_BT, "position_ids": position_BT}
    return texts


def generate_in_slots(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    stops: Sequence[str],
    batch_tokens: int,
) -> list[str]:
    """`generate_greedily` through our engine, for a Doge that it serves; the longest prompt comes first."""
    longest = len(prompts[0]) + max_new_tokens
    width = min(len(prompts), max(1, batch_tokens // longest))
    session = TorchSlots(model, width, longest)
    ends = tuple(_end_ids(model, tokenizer))
    # A stop string has no more tokens than bytes.
    before = max((len(stop.encode()) for stop in stops), default=0)
    texts: list[str] = []
    for start in range(0, len(prompts), width):
        batch = prompts[start : start + width]
        answers: list[list[int]] = [[] for _ in batch]
        alive = list(range(len(batch)))
        session.reset(alive)
        session.extend(batch, alive)
        for done in range(0, max_new_tokens, SLOT_LOOK_EVERY):
            steps = min(SLOT_LOOK_EVERY, max_new_tokens - done)
            drawn = session.decode(steps, [SamplingParams()] * len(alive), [ends] * len(alive), alive)
            stay = []
            for row, tokens, length, ended in zip(alive, drawn.tokens, drawn.lengths, drawn.stopped, strict=True):
                # The end token is not part of the answer.
                answers[row] += tokens[: length - ended].tolist()
                tail = str(tokenizer.decode(answers[row][-steps - before :], skip_special_tokens=True))
                if not ended and not any(stop and stop in tail for stop in stops):
                    stay.append(row)
            alive = stay
            if not alive:
                break
        texts += [str(tokenizer.decode(answer, skip_special_tokens=True)) for answer in answers]
    return texts


def _end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    ends = model.generation_config.eos_token_id if model.generation_config else None
    ends = model.config.eos_token_id if ends is None else ends
    found = list(ends) if isinstance(ends, (list, tuple)) else [ends]
    return [end for end in (*found, tokenizer.eos_token_id) if end is not None]
