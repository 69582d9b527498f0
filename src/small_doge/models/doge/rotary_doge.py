"""The rotary embedding of both generations: positions as angles by which queries and keys are turned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, dynamic_rope_update

STATIC_ROPES = ("default", "linear", "llama3", "yarn")
"""Those whose inverse frequencies do not depend on how long the sequence is."""


class DogeRotaryEmbedding(nn.Module):
    """cos and sin [B, T, D] of the rotary embedding (arXiv 2104.09864), with transformers' scalings."""

    inv_freq: Tensor

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.max_seq_len_cached = self.original_max_seq_len = config.max_position_embeddings
        parameters: Any = config.rope_parameters
        self.rope_type = parameters["rope_type"]
        initialize: Callable = (
            self.compute_default_rope_parameters if self.rope_type == "default" else ROPE_INIT_FUNCTIONS[self.rope_type]
        )
        inv_freq, self.attention_scaling = initialize(config)
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        self.register_buffer("original_inv_freq", inv_freq.clone(), persistent=False)

    @staticmethod
    def compute_default_rope_parameters(config: Any, **kwargs: Any) -> tuple[Tensor, float]:
        """Inverse frequencies theta^(-2i/D) for i in [0, D/2), and the factor 1 on cos and sin."""
        parameters: Any = config.rope_parameters
        exponents = torch.arange(0, config.head_size, 2, dtype=torch.float32) / config.head_size
        return 1.0 / parameters["rope_theta"] ** exponents, 1.0

    @torch.no_grad()
    @dynamic_rope_update
    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        angles = position_ids[..., None].float() * self.inv_freq.float()
        angles = torch.cat((angles, angles), -1)
        return (angles.cos() * self.attention_scaling).to(x.dtype), (angles.sin() * self.attention_scaling).to(x.dtype)
