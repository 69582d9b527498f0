"""The token step in plain torch: the definition that the kernels are held to, and what runs on a CPU.

Shapes: n rows at work, d width, H query heads, G scores (cache heads), K key/value heads, R = H / G, D head size,
S slots looked at, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.activations import ACT2FN

from small_doge.inference.gpu_state import SlotState
from small_doge.inference.gpu_weights import DecodeWeights, LayerWeights
from small_doge.ops.dynamic_mask_attention import round_score

Rows = Tensor | slice


def feed(weights: DecodeWeights, state: SlotState, rows: Rows, filled: int) -> Tensor:
    """Append each active row's drawn token to its cache, and return the next logits [n, V] in fp32.

    Args:
        rows: [n] indices, or a slice where they follow one another (then no cache is gathered).
        filled: No row has more than this many tokens after the step, or the number of slots.

    `state.length` is not moved on: `record` does that, once the step is over.
    """
    config = weights.config
    x = F.embedding(state.token[rows].long(), weights.embedding)
    angles = state.length[rows][:, None].float() * weights.inv_freq
    cos, sin = (torch.cat((f(angles),) * 2, -1) * weights.rope_scaling for f in (torch.cos, torch.sin))
    rotary = cos.to(x.dtype)[:, None], sin.to(x.dtype)[:, None]
    activation = ACT2FN[config.hidden_act]
    for index, layer in enumerate(weights.layers):
        normed = rms_norm(x, layer.input_norm, config.rms_norm_eps)
        attended = attend(weights, layer, state, index, rows, normed, rotary, filled)
        x = layer.input_residual * x + F.linear(attended, layer.output, layer.output_bias)
        normed = rms_norm(x, layer.mlp_norm, config.rms_norm_eps)
        if layer.mixture is not None:
            transformed = layer.mixture(normed[None])[0][0]
        else:
            gate, up = F.linear(normed, layer.gate_up, layer.gate_up_bias).chunk(2, -1)
            transformed = F.linear(activation(gate) * up, layer.down, layer.down_bias)
        x = layer.mlp_residual * x + transformed
    return head_logits(rms_norm(x, weights.norm, config.rms_norm_eps), weights.head)


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """RMSNorm over the last dimension; the identity where there is no weight."""
    return x if weight is None else F.rms_norm(x, weight.shape, weight, eps)


def head_logits(hidden_nd: Tensor, head_Vd: Tensor) -> Tensor:
    """Logits in fp32, where the device can without rounding them to half precision first."""
    if hidden_nd.is_cuda and hidden_nd.dtype != torch.float32:
        return torch.mm(hidden_nd, head_Vd.t(), out_dtype=torch.float32)
    return F.linear(hidden_nd, head_Vd).float()


def attend(
    weights: DecodeWeights,
    layer: LayerWeights,
    state: SlotState,
    index: int,
    rows: Rows,
    normed_nd: Tensor,
    rotary: tuple[Tensor, Tensor],
    filled: int,
) -> Tensor:
    """Put one token a row into layer `index` of the cache, and attend to what is kept: [n, H D]."""
    config = weights.config
    heads, kv_heads, size = config.num_attention_heads, config.num_key_value_heads, config.head_size
    assert kv_heads is not None
    qkv = F.linear(normed_nd, layer.qkv, layer.qkv_bias)
    query, key, value = qkv.split((heads * size, kv_heads * size, kv_heads * size), -1)
    score = torch.exp(layer.A * F.softplus(F.linear(value, layer.dt, layer.dt_bias).float()))
    query = rotate(rms_norm(query.unflatten(-1, (heads, size)), layer.q_norm, config.rms_norm_eps), *rotary)
    key = rotate(rms_norm(key.unflatten(-1, (kv_heads, size)), layer.k_norm, config.rms_norm_eps), *rotary)
    value = value.unflatten(-1, (kv_heads, size))
    if state.heads > kv_heads:
        key, value = (x.repeat_interleave(state.heads // kv_heads, 1) for x in (key, value))
    insert(state, index, rows, key, value, score)

    looked_at = min(filled, state.slots)
    keys, values, scores = (t[index, rows, :, :looked_at] for t in (state.keys, state.values, state.scores))
    logits = (query.unflatten(1, (state.heads, -1)) @ keys.transpose(-1, -2)).float() * size**-0.5 + scores[:, :, None]
    slot = torch.arange(looked_at, device=logits.device)
    logits = logits.masked_fill(slot > state.length[rows][:, None, None, None], float("-inf"))
    return (logits.softmax(-1).to(values.dtype) @ values).flatten(1)


def rotate(x_nhD: Tensor, cos_n1D: Tensor, sin_n1D: Tensor) -> Tensor:
    """Turn each pair (x_i, x_{i + D/2}) by its position's angle."""
    first, second = x_nhD.chunk(2, -1)
    return x_nhD * cos_n1D + torch.cat((-second, first), -1) * sin_n1D


def insert(state: SlotState, index: int, rows: Rows, key_nGD: Tensor, value_nGD: Tensor, score_nG: Tensor) -> None:
    """Write one key a head into its slot: the next empty one, then the lowest's; a key lower than all stays out."""
    at = torch.arange(state.rows, device=score_nG.device)[rows]
    length = state.length[rows][:, None].expand_as(score_nG)
    full = length >= state.slots
    empty = torch.arange(state.slots, device=score_nG.device) >= length[..., None]
    comparable = round_score(state.scores[index, rows]).masked_fill(empty, float("inf"))
    lowest = comparable.amin(-1)
    positions = state.positions[index, rows]
    oldest = positions.masked_fill(comparable != lowest[..., None], torch.iinfo(torch.int32).max).argmin(-1)
    slot = torch.where(full, oldest, length.long())
    stays_out = (full & (round_score(score_nG) < lowest)) | (state.active[rows] == 0)[:, None]
    where = (
        torch.full_like(slot, index),
        at[:, None].expand_as(slot),
        torch.arange(state.heads, device=at.device),
        slot,
    )
    for cache, new in ((state.keys, key_nGD), (state.values, value_nGD), (state.scores, score_nG)):
        out = stays_out.view(*stays_out.shape, *[1] * (new.dim() - 2))
        cache[where] = torch.where(out, cache[where], new.to(cache.dtype))
    state.positions[where] = torch.where(stays_out, state.positions[where], length)
