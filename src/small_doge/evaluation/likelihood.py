"""What a model thinks of given text: bits per byte, loss on answers, preference between answers."""

from __future__ import annotations

import gzip
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Scored:
    """A sequence to score: token ids, and the positions from which on each token is to be predicted."""

    ids: list[int]
    counted: list[bool]


@torch.inference_mode()
def log_likelihoods(
    model: PreTrainedModel, sequences: Sequence[Scored], batch_tokens: int = 16384
) -> list[tuple[float, int]]:
    """Sum of log-probabilities (nats) of each sequence's counted tokens, and how many there are.

    Sequences are batched by length, at most `batch_tokens` padded tokens at once; the order of the result is that of
    the input. A sequence's first token follows nothing and is never counted.
    """
    was_training = model.training
    model.eval()
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i].ids), reverse=True)
    results: list[tuple[float, int]] = [(0.0, 0)] * len(sequences)
    start = 0
    while start < len(order):
        longest = len(sequences[order[start]].ids)
        batch = order[start : start + max(1, batch_tokens // max(1, longest))]
        start += len(batch)
        ids = torch.zeros(len(batch), longest, dtype=torch.long)
        counted = torch.zeros(len(batch), longest, dtype=torch.bool)
        for row, index in enumerate(batch):
            sequence = sequences[index]
            ids[row, : len(sequence.ids)] = torch.tensor(sequence.ids)
            counted[row, : len(sequence.ids)] = torch.tensor(sequence.counted)
        ids, counted = ids.to(model.device), counted[:, 1:].to(model.device)
        # Padding stands on the right, where no real token sees it: no attention mask is needed.
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        losses = F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view_as(counted)
        sums, counts = -(losses * counted).sum(1), counted.sum(1)
        for row, index in enumerate(batch):
            results[index] = (sums[row].item(), int(counts[row].item()))
    model.train(was_training)
    return results


def text_windows(ids: list[int], max_length: int) -> list[Scored]:
    """Cut a document into windows of `max_length` that overlap by one token, so that every token but the first is
    predicted once.
    """
    windows = []
    for start in range(0, max(1, len(ids) - 1), max_length - 1):
        piece = ids[start : start + max_length]
        windows.append(Scored(piece, [False] + [True] * (len(piece) - 1)))
    return windows


def bits_per_byte(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int
) -> float:
    """Bits that the model needs for a byte of these documents (UTF-8), the end of each document included.

    Comparable between tokenizers, and with a compressor's output.
    """
    encoded: Any = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    windows = [window for ids in encoded for window in text_windows([bos, *ids, eos], max_length)]
    nats = -sum(total for total, _ in log_likelihoods(model, windows))
    return nats / math.log(2) / sum(len(text.encode()) for text in texts)


def gzip_bits_per_byte(texts: Iterable[str]) -> float:
    """Bits that `gzip -9` needs for a byte of these documents, compressed together as one file."""
    data = "\n".join(texts).encode()
    return 8 * len(gzip.compress(data, 9)) / len(data)


def conversation_tokens(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], max_length: int) -> Scored:
    """A conversation through the chat template, with the assistant's tokens counted; cut on the right at
    `max_length`.
    """
    encoded: Any = tokenizer.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    return Scored(encoded["input_ids"][:max_length], [bool(m) for m in encoded["assistant_masks"][:max_length]])


def answer_loss(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[list[dict[str, Any]]],
    max_length: int = 2048,
) -> float:
    """Mean loss (nats) over the assistant's tokens of these conversations."""
    scored = log_likelihoods(
        model, [conversation_tokens(tokenizer, messages, max_length) for messages in conversations]
    )
    return -sum(total for total, _ in scored) / max(1, sum(count for _, count in scored))


@dataclass(frozen=True)
class PreferenceScores:
    """Log-probabilities of the two answers of N pairs.

    Args:
        totals: Log-probability (nats) of each answer given its prompt, [N, 2]: chosen, rejected.
        tokens: Tokens of each answer, [N, 2].
    """

    totals: Tensor
    tokens: Tensor

    @property
    def log_ratios(self) -> Tensor:
        """log p(chosen | prompt) - log p(rejected | prompt), [N]; its change under training is DPO's margin over
        beta.
        """
        return self.totals[:, 0] - self.totals[:, 1]

    @property
    def prefers_chosen(self) -> list[bool]:
        """Whether the chosen answer is the likelier one a token, which does not favor the shorter answer."""
        means = self.totals / self.tokens.clamp(min=1)
        return (means[:, 0] > means[:, 1]).tolist()

    @property
    def chosen_loss(self) -> float:
        """Mean loss (nats) over the tokens of the chosen answers."""
        return -(self.totals[:, 0].sum() / self.tokens[:, 0].sum().clamp(min=1)).item()


def preference_scores(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[dict[str, Any]], max_length: int = 1024
) -> PreferenceScores:
    """Score both answers of each pair (`prompt`, `chosen`, `rejected`: lists of messages)."""
    sequences = [
        conversation_tokens(tokenizer, [*pair["prompt"], *pair[side]], max_length)
        for pair in pairs
        for side in ("chosen", "rejected")
    ]
    scored = torch.tensor(log_likelihoods(model, sequences), dtype=torch.float64).view(-1, 2, 2)
    return PreferenceScores(totals=scored[:, :, 0], tokens=scored[:, :, 1])
