"""Random models for the native core, and the definition it is held against: one query at a time, nothing evicted."""

import math

import torch
from torch.nn.functional import silu, softplus
from transformers import DogeConfig, DogeForCausalLM

from small_doge.models.doge.configuration_doge import SIZES as FAMILY

SIZES = {name: size for name, size in FAMILY.items() if not size.experts}


def random_model(seed: int = 0, **changes: object) -> DogeForCausalLM:
    """A float32 Doge with eager attention; by default two layers of width 64, four heads on two key/value heads."""
    torch.manual_seed(seed)
    fields = {
        "vocab_size": 509,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "keep_window_size": 2048,
        "tie_word_embeddings": True,
    }
    model = DogeForCausalLM(DogeConfig(**{**fields, **changes}, attn_implementation="eager")).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".A"):
                parameter.normal_(0, 1)
            elif "norm" in name or "residual" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif parameter.shape[-1] <= 96:
                parameter.mul_(4)  # at tiny widths the default spread would leave all logits near zero
    return model


def size_model(size: str) -> DogeForCausalLM:
    row = SIZES[size]
    return random_model(
        vocab_size=32768,
        hidden_size=row.width,
        intermediate_size=row.intermediate,
        num_hidden_layers=row.layers,
        num_attention_heads=row.heads,
        num_key_value_heads=row.key_value_heads,
    )


def rank(score: torch.Tensor) -> torch.Tensor:
    """Scores as they are compared: 15 bits of mantissa, as ordered integers."""
    return (score.float().view(torch.int32) + 0x80) & ~0xFF


def rotate(x_TD: torch.Tensor, inv_freq: torch.Tensor, scale: float) -> torch.Tensor:
    angle = torch.arange(x_TD.shape[0])[:, None].float() * inv_freq
    cos, sin = angle.cos() * scale, angle.sin() * scale
    a, b = x_TD.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def experts(mlp: torch.nn.Module, x_Td: torch.Tensor) -> torch.Tensor:
    """The mixture with per-token routing: all n * n sums, their top k, softmax over these."""
    scores = mlp.router_gate(x_Td)
    first, second = scores.chunk(2, -1)
    sums = (first[:, :, None] + second[:, None, :]).flatten(1)
    best, index = sums.topk(mlp.top_k, -1)
    a = silu((mlp.down_embed(index) * x_Td[:, None, :]).sum(-1)) * best.softmax(-1)
    return (a[..., None] * mlp.up_embed(index)).sum(1)


@torch.no_grad()
def logits(model: DogeForCausalLM, tokens: list[int], window: int) -> torch.Tensor:
    """float32 [T, vocab]: of each key/value head, query i sees the `window` keys j <= i of highest score."""
    config = model.config
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    dim, length = config.hidden_size // heads, len(tokens)
    rope = model.model.rotary_emb
    x = model.model.embed_tokens(torch.tensor(tokens))
    for layer in model.model.layers:
        attention = layer.self_attn
        h = layer.input_layernorm(x)
        q = attention.q_norm(attention.q_proj(h).view(length, heads, dim))
        k = attention.k_norm(attention.k_proj(h).view(length, kv_heads, dim))
        v = attention.v_proj(h)
        score = torch.exp(attention.A * softplus(attention.dt_proj(v)))  # [T, kv]
        v = v.view(length, kv_heads, dim)
        out = torch.zeros(length, heads, dim)
        for g in range(kv_heads):
            key = rotate(k[:, g], rope.inv_freq, rope.attention_scaling)
            order = rank(score[:, g])
            for i in range(length):
                kept = sorted(range(i + 1), key=lambda j: (int(order[j]), j), reverse=True)[:window]
                for head in range(g * heads // kv_heads, (g + 1) * heads // kv_heads):
                    query = rotate(q[:, head], rope.inv_freq, rope.attention_scaling)[i]
                    weight = (key[kept] @ query / math.sqrt(dim) + score[kept, g]).softmax(0)
                    out[i, head] = weight @ v[kept, g]
        x = layer.input_residual * x + attention.o_proj(out.flatten(1))
        h = layer.post_attention_layernorm(x)
        mlp = layer.mlp
        y = mlp.down_proj(silu(mlp.gate_proj(h)) * mlp.up_proj(h))
        if config.is_moe:
            y = y + experts(mlp, h)
        x = layer.post_attention_residual * x + y
    return model.lm_head(model.model.norm(x))
