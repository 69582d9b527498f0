"""The state transformation of a decoder layer: a dense MLP, or the same with a mixture of tiny experts beside it."""

from __future__ import annotations

import math

from torch import Tensor, nn
from transformers.activations import ACT2FN

from small_doge.models.doge.configuration_doge import DogeConfig
from small_doge.models.doge.joint_linear import joint_linear, joint_product, plain_linear, summed_linear
from small_doge.ops.expert_retrieval import (
    balance_loss,
    expert_dots,
    expert_sum,
    mixture_hidden,
    prefers_dense,
    search_experts,
)
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

    def forward(
        self, x: Tensor, balanced: bool = False, valid_BT: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The output, and in place of what a mixture gives beside it, None."""
        return self._dense(x), None, None

    def _dense(self, x: Tensor) -> Tensor:
        joint = joint_product(x, self.gate_proj, self.up_proj) if self.gated_by_silu else None
        if joint is not None:
            return plain_linear(swiglu(joint), self.down_proj)
        gate, up = joint_linear(x, self.gate_proj, self.up_proj)
        return self.down_proj(self.act_fn(gate) * up)


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

    def forward(
        self, x: Tensor, balanced: bool = False, valid_BT: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The output [B, T, d], the router's scores and, if it is to be `balanced`, its balance loss.

        The scores are [2, B * T, n], for the experts' first and second keys. For the loss only `valid_BT` tokens count.
        """
        tokens_Nd = x.flatten(0, 1)
        # By itself: with its few columns the wide product below would have a width that GPUs are slow at.
        scores_2Nn = self._split(self.router_gate(tokens_Nd))
        scores_Nk, index_Nk = search_experts(scores_2Nn.float(), self.top_k)
        balance = None
        if balanced:
            balance = balance_loss(scores_2Nn, index_Nk, None if valid_BT is None else valid_BT.flatten())
        return self._transform(tokens_Nd, scores_Nk, index_Nk).view_as(x), scores_2Nn, balance

    def _transform(self, x_Nd: Tensor, scores_Nk: Tensor, index_Nk: Tensor) -> Tensor:
        if self.gated_by_silu and prefers_dense(self.down_embed.weight, *index_Nk.shape):
            joint_NF = joint_product(x_Nd, self.gate_proj, self.up_proj, self.down_embed)
            if joint_NF is not None:
                hidden_NF = mixture_hidden(joint_NF, scores_Nk, index_Nk, self.down_embed.num_embeddings)
                return summed_linear(hidden_NF, self.down_proj, self.up_embed)
        hidden_Nk = self.act_fn(expert_dots(x_Nd, self.down_embed.weight, index_Nk))
        weight_Nk = scores_Nk.softmax(-1).to(hidden_Nk.dtype) * hidden_Nk
        sparse_Nd = expert_sum(weight_Nk, self.up_embed.weight, index_Nk)
        dense_Nd = self._dense(x_Nd)
        return dense_Nd + sparse_Nd.to(dense_Nd.dtype)

    def _split(self, logits_N2n: Tensor) -> Tensor:
        tokens = logits_N2n.shape[0]
        if self.legacy_routing:
            # transformers views the whole batch's scores as two halves, so a token's keys come from other tokens.
            return logits_N2n.view(2, tokens, -1)
        return logits_N2n.view(tokens, 2, -1).transpose(0, 1)
