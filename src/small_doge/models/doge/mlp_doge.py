"""The state transformation of a decoder layer: a dense MLP, or the same with a mixture of tiny experts beside it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from small_doge.models.doge.configuration_doge import DogeConfig
from small_doge.models.doge.joint_linear import joint_linear, joint_product
from small_doge.ops.expert_retrieval import balance_loss, expert_dots, expert_sum, prefers_dense, search_experts
from small_doge.ops.swiglu import swiglu


class DogeMLP(nn.Module):
    """down(silu(gate x) * up x) (arXiv 2002.05202)."""

    def __init__(self, config: DogeConfig) -> None:
        super().__init__()
        width, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = nn.Linear(width, inner, bias=bias)
        self.up_proj = nn.Linear(width, inner, bias=bias)
        self.down_proj = nn.Linear(inner, width, bias=bias)
        self.act_fn = ACT2FN[config.hidden_act]
        self.gated_by_silu = config.hidden_act in ("silu", "swish")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The output, and the router's scores, of which a dense MLP has none."""
        joint = joint_product(x, self.gate_proj, self.up_proj) if self.gated_by_silu else None
        if joint is not None:
            return self.down_proj(swiglu(joint)), None
        gate, up = joint_linear(x, self.gate_proj, self.up_proj)
        return self.down_proj(self.act_fn(gate) * up), None


class DogeCDMoE(DogeMLP):
    """Cross domain mixture of experts (arXiv 2412.11834): the dense MLP plus sum_k w_k * silu(x . down_k) * up_k.

    An expert is one row of `down_embed` and one of `up_embed`; the k of a token are those of highest router score
    (`search_experts`), and w is the softmax of their scores.
    """

    def __init__(self, config: DogeConfig) -> None:
        super().__init__(config)
        self.top_k = config.num_experts_per_tok
        self.legacy_routing = config.legacy_routing
        self.router_gate = nn.Linear(config.hidden_size, 2 * math.isqrt(config.num_experts), bias=False)
        self.down_embed = nn.Embedding(config.num_experts, config.hidden_size)
        self.up_embed = nn.Embedding(config.num_experts, config.hidden_size)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The output [B, T, d], and the router's scores [2, B * T, n] for the experts' first and second keys."""
        tokens_Nd = x.flatten(0, 1)
        if prefers_dense(self.down_embed.weight, tokens_Nd.shape[0], self.top_k):
            gate, up, dots_NE = joint_linear(tokens_Nd, self.gate_proj, self.up_proj, self.down_embed)
        else:
            gate, up = joint_linear(tokens_Nd, self.gate_proj, self.up_proj)
            dots_NE = None
        dense_Nd = self.down_proj(self.act_fn(gate) * up)
        # By itself: with its few columns the product above would have a width that GPUs are slow at.
        scores_2Nn = self._split(self.router_gate(tokens_Nd))
        scores_Nk, index_Nk = search_experts(scores_2Nn.float(), self.top_k)
        if dots_NE is None:
            hidden_Nk = self.act_fn(expert_dots(tokens_Nd, self.down_embed.weight, index_Nk))
        else:
            hidden_Nk = self.act_fn(dots_NE.gather(1, index_Nk))
        weight_Nk = scores_Nk.softmax(-1).to(hidden_Nk.dtype) * hidden_Nk
        sparse_Nd = expert_sum(weight_Nk, self.up_embed.weight, index_Nk)
        return (dense_Nd + sparse_Nd.to(dense_Nd.dtype)).view_as(x), scores_2Nn

    def _split(self, logits_N2n: Tensor) -> Tensor:
        tokens = logits_N2n.shape[0]
        if self.legacy_routing:
            # transformers views the whole batch's scores as two halves, so a token's keys come from other tokens.
            return logits_N2n.view(2, tokens, -1)
        return logits_N2n.view(tokens, 2, -1).transpose(0, 1)


def router_loss(router_logits: tuple[Tensor, ...], top_k: int, attention_mask: Tensor | None) -> Tensor:
    """The mean over the layers of `balance_loss`, padding left out; an expert is balanced within its own layer."""
    valid = None if attention_mask is None else attention_mask.bool().flatten()
    losses = [balance_loss(scores_2Nn, top_k, valid) for scores_2Nn in router_logits]
    return torch.stack(losses).mean()
