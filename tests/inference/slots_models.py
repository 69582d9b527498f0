"""Small models for the tests of sessions: a window of 8 that evicts soon, weights that matter."""

from __future__ import annotations

import torch

from small_doge import DogeConfig, DogeForCausalLM

KINDS = {
    "dense": {},
    "a mixture": {"is_moe": True, "num_experts": 16, "num_experts_per_tok": 3},
    "scores per query head": {"score_per_query_head": True, "qk_norm": False},
}
PROMPTS = [[0, 5, 9, 3, 8, 11], [0, 7], [0, *range(10, 31)], [0, 3, 3, 3, 3, 8]]


@torch.no_grad()
def small_model(kind: str = "dense", **fields: object) -> DogeForCausalLM:
    shape = {
        "vocab_size": 60,
        "hidden_size": 64,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "keep_window_size": 8,
        "tie_word_embeddings": True,
    }
    torch.manual_seed(0)
    model = DogeForCausalLM(DogeConfig(**(shape | KINDS[kind] | fields))).eval()
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape)
        if "norm" in name or "residual" in name:
            parameter.copy_(1 + 0.1 * noise)
        elif name.endswith(".A"):
            parameter.copy_(noise)
        else:
            parameter.copy_(noise * (2.4 if "embed_tokens" in name else 1.0) * parameter.shape[-1] ** -0.5)
    return model
