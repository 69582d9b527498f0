"""Memory that training takes, derived from a configuration: what a card of a given size can hold.

The activations are what autograd keeps for the backward pass of the uncompiled model with the fused head, counted
tensor by tensor; a test holds the formula to autograd's own list. Of that a compiled model keeps about half on a GPU,
which was measured.
"""

from __future__ import annotations

from typing import Any

from small_doge.models.doge.accounting_doge import count_parameters
from small_doge.models.doge.configuration_doge import DogeConfig

# CUDA's context, the head's chunk of logits, what one layer's backward pass makes for itself, fragmentation: kept free
# on every card, and a tenth of it besides. Attention's fused backward keeps B * H * T * T bytes in half precision, at
# most `triton_attention.MOST_KEPT`, once the head's logits are gone; a test holds it to this room.
RESERVE_BYTES = 2**30
USABLE_SHARE = 0.9

COMPILED_SHARE = 0.55
"""Of these activations, what a model with compiled layers takes on a GPU in half precision: on an H100 the peak grew by
0.49 of them with each row of 2,048 tokens for the 160M and by 0.50 for the 20M (2026-11-27); all nine peaks that are
known, of four sizes, are below what this gives with the rest."""


def state_bytes(config: DogeConfig, optimizer: str = "adamw", autocast: bool = True) -> int:
    """Bytes that do not depend on the batch: fp32 weights, gradients and moments, and the half copies of autocast.

    4 + 4 + 8 + 2 bytes a parameter under AdamW; Muon keeps one moment for the layers' matrices instead of two.
    """
    count = count_parameters(config)
    moments = 8 * count.total - (4 * (count.total - count.embedding) if optimizer == "muon" else 0)
    return (10 if autocast else 8) * count.total + moments


def activation_bytes_per_token(config: DogeConfig, checkpointing: bool = False, autocast: bool = True) -> int:
    """Bytes kept for the backward pass for one token of a dense model.

    A layer keeps 38 d + 14 g D + 8 f + 16 h + 20 g (width d, key/value heads g of size D, MLP f, heads h) and the rest
    10 d under autocast to bf16 or fp16; in fp32 44 d + 20 g D + 16 f + 16 h + 20 g and 12 d. With gradient
    checkpointing each layer keeps its input, 4 d, and one at a time is recomputed.
    """
    d, heads, kv = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
    assert kv is not None
    by_width, by_values, by_mlp, rest = (38, 14, 8, 10) if autocast else (44, 20, 16, 12)
    layer = by_width * d + by_values * kv * config.head_size + by_mlp * config.intermediate_size + 16 * heads + 20 * kv
    if checkpointing:
        return config.num_hidden_layers * 4 * d + layer + rest * d
    return config.num_hidden_layers * layer + rest * d


def training_bytes(
    config: DogeConfig,
    rows: int,
    length: int = 2048,
    optimizer: str = "adamw",
    checkpointing: bool = False,
    autocast: bool = True,
    compiled: bool = False,
) -> float:
    """State and activations of a micro-batch.

    ``compiled`` counts with `COMPILED_SHARE`, and with the second gradients of a captured micro-batch; it changes
    nothing in fp32 and with gradient checkpointing, which were not measured.
    """
    kept = rows * length * activation_bytes_per_token(config, checkpointing, autocast)
    state = state_bytes(config, optimizer, autocast)
    if compiled and autocast and not checkpointing:
        return state + 4 * count_parameters(config).total + COMPILED_SHARE * kept
    return state + kept


def largest_micro_batch(config: DogeConfig, gibibytes: float, *args: Any, **kwargs: Any) -> int:
    """Rows that fit a card by `training_bytes`, whose arguments the others are; 0 if none does."""
    free = USABLE_SHARE * gibibytes * 2**30 - RESERVE_BYTES
    none, one = (training_bytes(config, rows, *args, **kwargs) for rows in (0, 1))
    return max(0, int((free - none) // (one - none)))


def largest_divisor(rows: int, most: int) -> int:
    """The largest micro-batch of at most `most` rows (from 1) that divides `rows` into equal parts."""
    return max(n for n in range(1, min(most, rows) + 1) if rows % n == 0)
