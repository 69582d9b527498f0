"""The token step in plain torch: the definition that the kernels are held to, and what runs on a CPU. And `read`, which
takes whole prompts into empty rows, on either.

Shapes: n rows at work, T tokens of a prompt, d width, H query heads, G scores (cache heads), K key/value heads,
R = H / G, D head size, S slots looked at, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.activations import ACT2FN

from small_doge.inference.gpu_state import SlotState
from small_doge.inference.gpu_weights import DecodeWeights, LayerWeights
from small_doge.ops.dynamic_mask_attention import dynamic_mask_attention, round_score
from small_doge.ops.rotary_heads import rotate

Rows = Tensor | slice


def feed(weights: DecodeWeights, state: SlotState, rows: Rows, filled: int) -> Tensor:
    """Append each active row's drawn token to its cache, and return the next logits [n, V] in fp32.

    Args:
        rows: [n] indices, or a slice where they follow one another (then no cache is gathered).
        filled: No row has more than this many tokens after the step, or the number of slots.

    `state.length` is not moved on: `record` does that, once the step is over.
    """
    x = F.embedding(state.token[rows].long(), weights.embedding)
    rotary = [t[:, None] for t in cos_and_sin(weights, state.length[rows], x.dtype)]
    for index, layer in enumerate(weights.layers):
        query, key, value, score = project(weights, layer, x, rotary, state.heads)
        insert(state, index, rows, key, value, score)
        x = transform(weights, layer, x, attend(state, index, rows, query, filled))
    return head_logits(rms_norm(x, weights.norm, weights.config.rms_norm_eps), weights.head)


def read(weights: DecodeWeights, state: SlotState, rows: Tensor, ids_nT: Tensor, lengths_n: Tensor) -> Tensor:
    """Take prompts into empty rows, and return the logits [n, V] of each one's last token in fp32.

    Args:
        ids_nT: Padded on the right; T is not above the number of slots, so that nothing is evicted.
        lengths_n: Real tokens of each. What lies behind them in the cache is overwritten before it is looked at.
    """
    x = F.embedding(ids_nT, weights.embedding)
    batch, length, _ = x.shape
    positions = torch.arange(length, device=x.device)
    rotary = [t[:, None] for t in cos_and_sin(weights, positions, x.dtype)]
    for index, layer in enumerate(weights.layers):
        query, key, value, score = (t.transpose(1, 2) for t in project(weights, layer, x, rotary, state.heads))
        caches = (state.keys, state.values, state.scores)
        for cache, new in zip(caches, (key, value, score), strict=True):
            cache[index, rows, :, :length] = new.to(cache.dtype)
        out = dynamic_mask_attention(query, key, value, score, keep_window=state.slots)
        x = transform(weights, layer, x, out.transpose(1, 2).flatten(2))
    state.positions[:, rows, :, :length] = positions.to(torch.int32)
    state.length[rows] = lengths_n.to(torch.int32)
    if length == state.slots:
        state.victims[:, :, rows] = state.lowest(rows)
    last = x[torch.arange(batch, device=x.device), lengths_n - 1]
    return head_logits(rms_norm(last, weights.norm, weights.config.rms_norm_eps), weights.head)


def cos_and_sin(weights: DecodeWeights, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The rotary embedding's factors, [..., D] for positions [...]."""
    angles = positions[..., None].float() * weights.inv_freq
    angles = torch.cat((angles, angles), -1)
    return (angles.cos() * weights.rope_scaling).to(dtype), (angles.sin() * weights.rope_scaling).to(dtype)


def project(
    weights: DecodeWeights, layer: LayerWeights, x: Tensor, rotary: list[Tensor], scores: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries [..., H, D], keys and values [..., G, D] and scores [..., G] of tokens [..., d]."""
    config = weights.config
    heads, kv_heads, size = config.num_attention_heads, config.num_key_value_heads, config.head_size
    assert kv_heads is not None
    normed = rms_norm(x, layer.input_norm, config.rms_norm_eps)
    qkv = F.linear(normed, layer.qkv, layer.qkv_bias)
    query, key, value = qkv.split((heads * size, kv_heads * size, kv_heads * size), -1)
    score = torch.exp(layer.A * F.softplus(F.linear(value, layer.dt, layer.dt_bias).float()))
    query = rotate(rms_norm(query.unflatten(-1, (heads, size)), layer.q_norm, config.rms_norm_eps), *rotary)
    key = rotate(rms_norm(key.unflatten(-1, (kv_heads, size)), layer.k_norm, config.rms_norm_eps), *rotary)
    value = value.unflatten(-1, (kv_heads, size))
    if scores > kv_heads:
        key, value = (t.repeat_interleave(scores // kv_heads, -2) for t in (key, value))
    return query, key, value, score


def transform(weights: DecodeWeights, layer: LayerWeights, x: Tensor, attended: Tensor) -> Tensor:
    """The rest of the layer: output projection, residuals and MLP."""
    config = weights.config
    x = layer.input_residual * x + F.linear(attended, layer.output, layer.output_bias)
    normed = rms_norm(x, layer.mlp_norm, config.rms_norm_eps)
    if layer.mixture is not None:
        tokens = normed.view(1, -1, normed.shape[-1])
        return layer.mlp_residual * x + layer.mixture(tokens)[0].view_as(x)
    gate, up = F.linear(normed, layer.gate_up, layer.gate_up_bias).chunk(2, -1)
    return layer.mlp_residual * x + F.linear(ACT2FN[config.hidden_act](gate) * up, layer.down, layer.down_bias)


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """RMSNorm over the last dimension; the identity where there is no weight."""
    return x if weight is None else F.rms_norm(x, weight.shape, weight, eps)


def head_logits(hidden_nd: Tensor, head_Vd: Tensor) -> Tensor:
    """Logits in fp32, where the device can without rounding them to half precision first."""
    if hidden_nd.is_cuda and hidden_nd.dtype != torch.float32:
        return torch.mm(hidden_nd, head_Vd.t(), out_dtype=torch.float32)
    return F.linear(hidden_nd, head_Vd).float()


def attend(state: SlotState, index: int, rows: Rows, query_nHD: Tensor, filled: int) -> Tensor:
    """Attention of one query a row to what layer `index` of the cache keeps: [n, H D]."""
    looked_at = min(filled, state.slots)
    keys, values, scores = (t[index, rows, :, :looked_at] for t in (state.keys, state.values, state.scores))
    scale = query_nHD.shape[-1] ** -0.5
    logits = (query_nHD.unflatten(1, (state.heads, -1)) @ keys.transpose(-1, -2)).float() * scale + scores[:, :, None]
    slot = torch.arange(looked_at, device=logits.device)
    logits = logits.masked_fill(slot > state.length[rows][:, None, None, None], float("-inf"))
    return (logits.softmax(-1).to(values.dtype) @ values).flatten(1)


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
