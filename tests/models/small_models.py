"""Small Doge models with weights that matter: no parameter is left at a value that hides it."""

from __future__ import annotations

from typing import Any

import torch

from small_doge import DogeConfig, DogeForCausalLM

KINDS: dict[str, dict[str, Any]] = {
    "dense": {},
    "mixture": {"is_moe": True, "num_experts": 36, "num_experts_per_tok": 4},
    "scores_per_query_head": {"score_per_query_head": True, "qk_norm": False},
}
# Shorter than the window of 8, much shorter, longer, and with scores that tie.
PROMPTS = [[0, 5, 9, 3, 8, 11], [0, 7], [0, *range(10, 31)], [0, 3, 3, 3, 3, 8]]


def small_config(kind: str = "dense", **fields: Any) -> DogeConfig:
    """4 query heads on 2 key/value heads, w = 8, a vocabulary in which tokens repeat."""
    shape = {
        "vocab_size": 60,
        "hidden_size": 64,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "keep_window_size": 8,
        "tie_word_embeddings": True,
        "max_position_embeddings": 256,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
    }
    return DogeConfig(**(shape | KINDS[kind] | fields))


@torch.no_grad()
def randomize(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Scores, norms and residuals away from their neutral start, matrices large enough to make predictions differ."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator).to(parameter)
        if "norm" in name or "residual" in name:
            parameter.copy_(1 + 0.1 * noise)
        elif name.endswith(".A"):
            parameter.copy_(noise)
        else:
            parameter.copy_(noise * (2.4 if "embed" in name else 1.0) * parameter.shape[-1] ** -0.5)
    return model


def small_model(
    kind: str = "dense", *, seed: int = 0, dtype: torch.dtype = torch.float32, attn: str = "sdpa", **fields: Any
) -> DogeForCausalLM:
    """A small randomized model in evaluation mode."""
    torch.manual_seed(seed)
    model = randomize(DogeForCausalLM(small_config(kind, **fields)), seed).to(dtype).eval()
    model.set_attn_implementation(attn)
    return model
