"""Counts of a Doge model: parameters, arithmetic and memory, from its configuration alone."""

from __future__ import annotations

from dataclasses import dataclass

from small_doge.models.doge.configuration_doge import DogeConfig


@dataclass(frozen=True)
class ParameterCount:
    """Exact numbers of parameters; `active` are those that one token uses (a mixture's other experts left out)."""

    total: int
    embedding: int
    active: int


def count_parameters(config: DogeConfig) -> ParameterCount:
    """Numbers of parameters of a causal language model of this configuration; a tied head counts once."""
    d, size = config.hidden_size, config.head_size
    heads, kv = config.num_attention_heads, config.num_key_value_heads
    assert kv is not None
    scores = heads if config.score_per_query_head else kv
    attention = 2 * d * heads * size + 2 * d * kv * size + kv * size * scores + scores
    if config.qk_norm:
        attention += 2 * size
    if config.attention_bias:
        attention += heads * size + 2 * kv * size + scores + d
    mlp = 3 * d * config.intermediate_size
    if config.mlp_bias:
        mlp += 2 * config.intermediate_size + d
    layer = attention + mlp + 4 * d
    active_layer = layer
    if config.is_moe:
        router = 2 * round(config.num_experts**0.5) * d
        layer += router + 2 * config.num_experts * d
        active_layer += router + 2 * config.num_experts_per_tok * d
    embedding = config.vocab_size * d * (1 if config.tie_word_embeddings else 2)
    rest = embedding + d
    return ParameterCount(
        total=rest + config.num_hidden_layers * layer,
        embedding=embedding,
        active=rest + config.num_hidden_layers * active_layer,
    )


def training_flops_per_token(config: DogeConfig, length: int) -> float:
    """FLOPs of forward and backward for one token of a sequence of `length`.

    6 for each weight that multiplies a token (the head counts, the embedding look-up does not), and 12 * H * D for
    each key that a query sees: on average half of the sequence while it fits the window, else up to w of them.
    """
    d = config.hidden_size
    count = count_parameters(config)
    weights = count.active - count.embedding + config.vocab_size * d
    window = min(length, config.keep_window_size)
    # Queries before the window is full see i + 1 keys, the others w.
    keys = (window * (window + 1) / 2 + (length - window) * window) / length
    return 6.0 * weights + 12.0 * config.num_hidden_layers * d * keys


def cache_bytes_per_sequence(config: DogeConfig, bytes_per_element: int = 2) -> int:
    """Bytes of one sequence's full decoding cache: w slots for every layer and head that scores its keys.

    A slot is a key, a value, an fp32 score and an int64 position; one byte a layer and slot says what is padding.
    """
    assert config.num_key_value_heads is not None
    heads = config.num_attention_heads if config.score_per_query_head else config.num_key_value_heads
    per_slot = heads * (2 * config.head_size * bytes_per_element + 4 + 8) + 1
    return config.num_hidden_layers * config.keep_window_size * per_slot
