"""Dynamic mask attention: a query sees, of the keys up to its own, the w of highest score.

logit_ij = scale * q_i.k_j + score_j for the visible keys j of query i, then a softmax over them. `naive` is the
definition. A key, once dropped, never returns, so each key needs one integer, its *horizon* (`retention_horizon`):
j is visible to the queries i with j <= i < horizon_j. The fast backends work from that.

| backend  | serves | device |
|----------|--------|--------|
| `naive`  | everything, in O(T * S) memory: the definition | any |
| `sdpa`   | S <= w: the score folded into the head size, torch's fused kernels; limits as a mask | any |
| `dense`  | S <= w: products and a softmax, the weights kept for backward, O(T * S) memory | CPU |
| `blocked`| everything, in O(T * w) work and O(T) memory, by blocks of queries | any |
| `triton_causal` | everything, in O(T * S) work and O(T) memory, beside a bounded scratch in backward | CUDA, Triton |
| `triton_sparse` | everything, in O(T * w) work and O(T) memory, by lists of keys | CUDA, Triton |
| `flex`   | everything, by FlexAttention: a second opinion | CUDA |

Half precision is multiplied as it is, with fp32 sums, by `triton_*` and `flex`; the others compute it in fp32. fp64 and
heads larger than 256 are for `naive`, `sdpa`, `dense` and `blocked`. Dropout of the weights does not exist here: it
would have to be drawn alike by every backend and drawn again in backward, and the models this serves train without it.
"""

import torch
from torch import Tensor

from small_doge.ops.dynamic_mask_attention.blocked import blocked_attention
from small_doge.ops.dynamic_mask_attention.dense import dense_attention
from small_doge.ops.dynamic_mask_attention.naive import attention_weights, naive_attention, naive_mask
from small_doge.ops.dynamic_mask_attention.retention import retention_horizon
from small_doge.ops.dynamic_mask_attention.scores import round_score
from small_doge.ops.dynamic_mask_attention.sdpa import sdpa_attention
from small_doge.ops.support import has_triton

BACKENDS = ("naive", "sdpa", "dense", "blocked", "triton_causal", "triton_sparse", "flex")
LARGEST_HEAD = 256
"""Largest head size of the GPU's backends."""
DENSE_KEYS = 1024
"""Most keys for which, on a CPU, the weights are kept rather than computed again."""

__all__ = [
    "BACKENDS",
    "attention_weights",
    "choose_backend",
    "dynamic_mask_attention",
    "naive_mask",
    "retention_horizon",
    "round_score",
]


def dynamic_mask_attention(
    query_BHTD: Tensor,
    key_BGSD: Tensor,
    value_BGSD: Tensor,
    score_BGS: Tensor,
    *,
    keep_window: int,
    limit_BS: Tensor | None = None,
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Attention of the last T of S positions, each over the w keys of highest score up to its own.

    Args:
        query_BHTD: B rows, H heads, T queries, head size D; the queries stand at positions S - T .. S - 1.
        key_BGSD: keys in order of position for G key/value heads, H a multiple of G.
        value_BGSD: like the keys.
        score_BGS: the score of each key, fp32 (fp64 in tests); added to the logits, and what the mask compares,
            rounded (`round_score`), ties to the newer key. Its gradient comes through the logits, not the mask.
        keep_window: w, how many keys a query sees at most.
        limit_BS: integer, the position after the last query that may see the key: the end of its packed document, or
            0 for padding. Documents are contiguous runs, each with its own w keys. S everywhere if left out.
        scale: of the logits; D ** -0.5 if left out.
        backend: one of `BACKENDS`, or "auto" for the rule of `choose_backend`.

    Returns:
        [B, H, T, D] in the dtype of the queries; 0 for a query that sees no key.

    Raises:
        ValueError: shapes that do not fit, or a backend that does not exist or cannot do this.
    """
    if backend not in ("auto", *BACKENDS):
        raise ValueError(f"backend {backend!r} does not exist: choose 'auto' or one of {', '.join(BACKENDS)}")
    _check(query_BHTD, key_BGSD, value_BGSD, score_BGS, keep_window, limit_BS)
    keys = key_BGSD.shape[2]
    scale = query_BHTD.shape[3] ** -0.5 if scale is None else scale
    if backend == "auto":
        backend = choose_backend(query_BHTD, keys, keep_window, limited=limit_BS is not None)
    elif not _serves(backend, query_BHTD):
        raise ValueError(
            f"backend {backend!r} does not serve {query_BHTD.dtype} heads of size {query_BHTD.shape[3]} on "
            f"{query_BHTD.device.type}: choose 'auto', or see the table in small_doge.ops.dynamic_mask_attention"
        )
    tensors = (query_BHTD, key_BGSD, value_BGSD, score_BGS)
    if backend == "naive":
        return naive_attention(*tensors, keep_window=keep_window, limit_BS=limit_BS, scale=scale)
    if backend in ("sdpa", "dense"):
        if keys > keep_window:
            raise ValueError(
                f"backend {backend!r} keeps every key: use 'auto' where there are more keys than keep_window"
            )
        attention = sdpa_attention if backend == "sdpa" else dense_attention
        return attention(*tensors, limit_BS=limit_BS, scale=scale)
    if backend == "triton_causal" and keys <= keep_window and limit_BS is None:
        from small_doge.ops.dynamic_mask_attention.triton_attention import triton_causal_attention

        return triton_causal_attention(*tensors, None, scale=scale)
    horizon_BGS = retention_horizon(score_BGS, keep_window, limit_BS)
    if backend == "blocked":
        return blocked_attention(*tensors, horizon_BGS, keep_window=keep_window, scale=scale)
    if backend == "triton_causal":
        from small_doge.ops.dynamic_mask_attention.triton_attention import triton_causal_attention

        return triton_causal_attention(*tensors, horizon_BGS, scale=scale)
    if backend == "triton_sparse":
        from small_doge.ops.dynamic_mask_attention.triton_attention import triton_sparse_attention

        return triton_sparse_attention(*tensors, horizon_BGS, keep_window=keep_window, scale=scale)
    from small_doge.ops.dynamic_mask_attention.flex import flex_backend

    return flex_backend(*tensors, horizon_BGS, scale=scale)


def choose_backend(query_BHTD: Tensor, keys: int, keep_window: int, *, limited: bool) -> str:
    """The rule behind ``backend="auto"``.

    On a GPU with Triton, for fp32, bf16 and fp16 and heads of up to 256:

    - one query that sees every key (decoding): `sdpa`;
    - S <= 2w: `triton_causal`, for below that the lists would hold nearly everything;
    - beyond: `triton_sparse`.

    On a CPU: `dense` for several queries while S <= w and S <= 1024. Forward and backward of rows of 128, 256, 512 and
    1,024 take 0.88, 0.61, 0.54 and 0.72 of `sdpa`'s time (four heads of 64, one core of an AMD EPYC, n = 9).

    Elsewhere: `sdpa` while S <= w, where no key is ever beaten out; else `blocked`.
    """
    unmasked = keys <= keep_window and not limited
    if _serves("triton_causal", query_BHTD):
        if unmasked and query_BHTD.shape[2] == 1:
            return "sdpa"
        return "triton_causal" if keys <= 2 * keep_window else "triton_sparse"
    if keys > keep_window:
        return "blocked"
    short = query_BHTD.shape[2] > 1 and keys <= DENSE_KEYS
    return "dense" if short and _serves("dense", query_BHTD) else "sdpa"


def _serves(backend: str, query_BHTD: Tensor) -> bool:
    """Whether a backend's device, head size and dtype are these; the rows of this module's table."""
    if backend in ("naive", "sdpa", "blocked"):
        return True
    if backend == "dense":
        return query_BHTD.device.type == "cpu"
    there = query_BHTD.is_cuda if backend == "flex" else has_triton(query_BHTD)
    return there and query_BHTD.dtype != torch.float64 and query_BHTD.shape[3] <= LARGEST_HEAD


def _check(query: Tensor, key: Tensor, value: Tensor, score: Tensor, keep_window: int, limit: Tensor | None) -> None:
    if query.dim() != 4 or key.dim() != 4:
        raise ValueError(f"query and key must be [batch, heads, length, head size], not {query.shape} and {key.shape}")
    batch, heads, queries, head_size = query.shape
    _, groups, keys, _ = key.shape
    if key.shape != (batch, groups, keys, head_size) or value.shape != key.shape:
        raise ValueError(
            f"key {key.shape} and value {value.shape} must agree with each other and with query {query.shape}"
        )
    if heads % groups:
        raise ValueError(f"the number of query heads ({heads}) must be a multiple of the key/value heads ({groups})")
    if queries > keys:
        raise ValueError(f"there are {queries} queries but only {keys} keys: pass the cached keys with the new ones")
    if score.shape != (batch, groups, keys):
        raise ValueError(f"score must be [batch, key/value heads, keys] = {(batch, groups, keys)}, not {score.shape}")
    if limit is not None and limit.shape != (batch, keys):
        raise ValueError(f"limit must be [batch, keys] = {(batch, keys)}, not {limit.shape}")
    if keep_window < 1:
        raise ValueError(f"keep_window must be at least 1, not {keep_window}")
