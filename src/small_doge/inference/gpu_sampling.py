"""Drawing the next token of each row, in plain torch: the definition that the kernels are held to.

A draw is argmax(logit / temperature + Gumbel noise), which is a sample of the softmax (Maddison et al., arXiv
1411.0030), and the noise is a hash of the row's seed, the position and the token: a row draws the same tokens whatever
stands beside it in the batch. The filters act in the order of transformers' logits processors: repetition penalty,
temperature, top-k, top-p, min-p. Each comes down to one threshold on the logits a row; equal logits stay together.
"""

from __future__ import annotations

import torch
from torch import Tensor

from small_doge.inference.gpu_state import SlotState

MASK = 0xFFFFFFFF


def mix(x: Tensor) -> Tensor:
    """A bijection of 32-bit integers (in int64) that scatters neighbours: the finalizer of MurmurHash3."""
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & MASK
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & MASK
    return x ^ (x >> 16)


def gumbel(seed_n: Tensor, position_n: Tensor, vocab: int) -> Tensor:
    """Gumbel noise [n, vocab] in fp32, from the seed and position of each row and the token's id."""
    token = torch.arange(vocab, device=seed_n.device)
    of_row = mix(mix(seed_n.long() & MASK) ^ (position_n.long() & MASK))
    hashed = mix((of_row[:, None] + token * 0x9E3779B9) & MASK)
    u = (hashed.float() + 0.5) * 2.0**-32
    return -torch.log(torch.where(u < 1e-3, u * (1 + 0.5 * u), -torch.log(1 - u)))


def adjusted_logits(state: SlotState, rows: Tensor | slice, logits_nV: Tensor) -> Tensor:
    """Logits after the repetition penalty and the temperature (1 for a greedy row)."""
    penalty, temperature = state.penalty[rows][:, None], state.temperature[rows][:, None]
    penalized = torch.where(logits_nV > 0, logits_nV / penalty, logits_nV * penalty)
    logits_nV = torch.where(state.seen[rows].bool(), penalized, logits_nV)
    return logits_nV / torch.where(temperature > 0, temperature, 1.0)


def threshold(state: SlotState, rows: Tensor | slice, adjusted_nV: Tensor) -> Tensor:
    """The lowest adjusted logit [n] that the row's top-k, top-p and min-p let through."""
    ordered = adjusted_nV.sort(-1, descending=True).values
    vocab = ordered.shape[-1]
    top_k = state.top_k[rows].long()
    kth = torch.where(top_k > 0, top_k, vocab).clamp(max=vocab) - 1
    lowest = ordered.gather(-1, kth[:, None])
    probabilities = torch.softmax(ordered.masked_fill(ordered < lowest, float("-inf")), -1)
    before = probabilities.cumsum(-1) - probabilities
    inside = (before < state.top_p[rows][:, None]) & (ordered >= lowest)
    inside[:, 0] = True  # a share that fp32 rounds to 0 leaves the likeliest
    lowest = ordered.masked_fill(~inside, float("inf")).amin(-1)
    # min_p 0 gives -inf, which lets everything through.
    return torch.maximum(lowest, ordered[:, 0] + torch.log(state.min_p[rows]))


def choose(state: SlotState, rows: Tensor | slice, logits_nV: Tensor, positions_n: Tensor, filtered: bool) -> Tensor:
    """The next token [n] of each row.

    Args:
        positions_n: The position that the token will stand at.
        filtered: Whether any row has a penalty or a filter; False saves looking.
    """
    temperature = state.temperature[rows][:, None]
    if filtered:
        logits_nV = adjusted_logits(state, rows, logits_nV)
        logits_nV = logits_nV.masked_fill(logits_nV < threshold(state, rows, logits_nV)[:, None], float("-inf"))
    else:
        logits_nV = logits_nV / torch.where(temperature > 0, temperature, 1.0)
    noise = gumbel(state.seed[rows], positions_n, logits_nV.shape[-1])
    return torch.where(temperature > 0, logits_nV + noise, logits_nV).argmax(-1)


def record(state: SlotState, rows: Tensor | slice, token_n: Tensor, logits_nV: Tensor, fed: bool) -> None:
    """Write each active row's token and its log-probability under the model down, and end rows that are through.

    Args:
        logits_nV: The model's own, before penalty and temperature.
        fed: Whether the logits come from a token that this step appended.
    """
    token_n = token_n.to(torch.int32)
    active = state.active[rows] == 1
    log_prob = logits_nV.gather(-1, token_n.long()[:, None])[:, 0] - logits_nV.logsumexp(-1)
    at = torch.arange(state.rows, device=token_n.device)[rows]
    count = state.count[rows]
    where = (at, count.long().clamp(max=state.tokens.shape[1] - 1))
    state.tokens[where] = torch.where(active, token_n, state.tokens[where])
    state.log_probs[where] = torch.where(active, log_prob, state.log_probs[where])
    state.token[rows] = torch.where(active, token_n, state.token[rows])
    state.seen[at, token_n.long()] |= active.to(torch.uint8)
    stop = active & (state.stops[rows] == token_n[:, None]).any(-1)
    state.count[rows] = count + active
    state.stopped[rows] = torch.where(stop, 1, state.stopped[rows])
    state.length[rows] += (active & fed).int()
    state.active[rows] = (active & ~stop & (state.count[rows] < state.budget[rows])).int()
