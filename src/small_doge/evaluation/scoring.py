"""Log-probabilities of many continuations, each after its own context, with little computed twice.

Beside a loop over padded batches it saves three things: shared prefixes are computed once (`prefix_rows`), rows of
like length go together, and the output head runs only where something is to be predicted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from small_doge.evaluation.prefix_rows import NEVER, Row, batch_rows, build_rows
from small_doge.models.doge.modeling_doge import DogeForCausalLM

HEAD_ROWS = {"cpu": 256}
"""Positions whose logits exist at one time, by kind of device (8,192 elsewhere): few on a CPU, for its cache."""


class Continuation(NamedTuple):
    """Token ids to score, and those that they follow (at least one)."""

    context: list[int]
    tokens: list[int]


class Score(NamedTuple):
    """Sum of the natural log-probabilities of a continuation's tokens, and whether each was the likeliest."""

    log_probability: float
    greedy: bool


@torch.inference_mode()
def score_continuations(
    model: PreTrainedModel, continuations: Sequence[Continuation], max_length: int, batch_tokens: int = 16384
) -> list[Score]:
    """The score of each continuation, in the order given.

    Args:
        model: A causal language model in evaluation mode. A Doge shares prefixes; any other computes each sequence by
            itself.
        continuations: What to score.
        max_length: Most tokens that the model is to see at once; a longer context loses its beginning.
        batch_tokens: Padded tokens of one forward.

    Raises:
        ValueError: an empty context or continuation, or a continuation longer than `max_length`.
    """
    if not continuations:
        return []
    sequences, asked = [], []
    for context, tokens in continuations:
        if not context or not 0 < len(tokens) <= max_length:
            raise ValueError(
                f"a continuation of {len(tokens)} tokens after {len(context)}: both need at least 1, and the "
                f"continuation at most max_length = {max_length}; cut it."
            )
        sequences.append([*context, *tokens][-(max_length + 1) : -1])
        asked.append(len(tokens))
    window = getattr(model.config, "keep_window_size", max_length)
    rows = build_rows(sequences, asked, window if can_share(model) else 0, token_cost(model))
    found: list[tuple[Tensor, Tensor]] = []
    owners: list[np.ndarray] = []
    for batch in batch_rows(rows, batch_tokens, window):
        wanted = np.array(
            [
                (number * len(batch[0]) + node, token, index)
                for number, row in enumerate(batch)
                for index, nodes in row.asked.items()
                for node, token in zip(nodes, continuations[index].tokens, strict=True)
            ]
        )
        wanted = wanted[wanted[:, 0].argsort(kind="stable")]
        found.append(score_tokens(model, hidden_states(model, batch).flatten(0, 1), wanted[:, 0], wanted[:, 1]))
        owners.append(wanted[:, 2])
    # Only now is anything waited for: until here a GPU has work queued.
    log_probability, likeliest = (torch.cat(x).cpu().double().numpy() for x in zip(*found, strict=True))
    owner = np.concatenate(owners)
    sums = np.bincount(owner, log_probability, len(continuations))
    misses = np.bincount(owner, 1 - likeliest, len(continuations))
    return [Score(total, miss == 0) for total, miss in zip(sums.tolist(), misses.tolist(), strict=True)]


def can_share(model: PreTrainedModel) -> bool:
    """Whether rows may branch: the attention must take limits, and a token must depend on nothing but its prefix."""
    return isinstance(model, DogeForCausalLM) and not (model.config.is_moe and model.config.legacy_routing)


def token_cost(model: PreTrainedModel) -> float:
    """FLOPs of one token in the layers' matrices, in units of one query meeting one key in every layer."""
    if not can_share(model):
        return 0.0
    parameters = sum(p.numel() for layer in model.model.layers for p in layer.parameters())
    return parameters / (2 * model.config.hidden_size * model.config.num_hidden_layers)


def hidden_states(model: PreTrainedModel, batch: Sequence[Row]) -> Tensor:
    """The decoder's output [B, T, d] for rows in order of length, padded on the right, where no real token looks."""
    longest, device = len(batch[0]), model.device

    def padded(lists: Sequence[list[int]], fill: int) -> Tensor:
        return torch.tensor([x + [fill] * (longest - len(x)) for x in lists]).to(device, non_blocking=True)

    ids_BT = padded([row.ids for row in batch], 0)
    if all(limit == NEVER for row in batch for limit in row.limit):
        return model.get_decoder()(input_ids=ids_BT, use_cache=False).last_hidden_state
    limits = [[longest if limit == NEVER else limit for limit in row.limit] for row in batch]
    limit_BT = padded(limits, longest)
    # The decoder reads limits from restarting positions, and has no word for a tree: its layers do.
    decoder = model.model
    hidden_BTd = decoder.embed_tokens(ids_BT)
    rotary = decoder.rotary_emb(hidden_BTd, padded([row.depth for row in batch], 0))
    for layer in decoder.layers:
        hidden_BTd = layer(hidden_BTd, position_embeddings=rotary, limit=limit_BT)[0]
    return decoder.norm(hidden_BTd)


def score_tokens(
    model: PreTrainedModel, hidden_Nd: Tensor, places: np.ndarray, targets: np.ndarray
) -> tuple[Tensor, Tensor]:
    """Log-probability in fp32 of each target after the hidden state at its place, and whether it is the likeliest.

    Places come in ascending order; one that is asked for several targets goes through the head once.
    """
    device = hidden_Nd.device
    head = model.get_output_embeddings()
    unique, row_of = np.unique(places, return_inverse=True)
    chunk_size = HEAD_ROWS.get(device.type, 8192)
    starts = np.arange(0, len(unique), chunk_size)
    bounds = [*np.searchsorted(row_of, starts).tolist(), len(targets)]
    unique_U, row_N, target_N = (torch.from_numpy(x).to(device, non_blocking=True) for x in (unique, row_of, targets))
    log_probability, likeliest = [], []
    for number, start in enumerate(starts.tolist()):
        here = slice(bounds[number], bounds[number + 1])
        logits_CV = head(hidden_Nd[unique_U[start : start + chunk_size]]).float()
        row, target = row_N[here] - start, target_N[here]
        target_logit = logits_CV[row, target]
        top_C, top_id_C = logits_CV.max(-1)
        normalizer_C = top_C + logits_CV.sub_(top_C[:, None]).exp_().sum(-1).log()
        log_probability.append(target_logit - normalizer_C[row])
        likeliest.append(top_id_C[row] == target)
    return torch.cat(log_probability), torch.cat(likeliest)
