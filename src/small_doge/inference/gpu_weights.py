"""The weights of the token step, fused: one matrix for q, k and v, one for gate and up.

They are a copy in the engine's dtype, made once; `refresh` copies the model's parameters in again, in place, so that
captured CUDA graphs go on with new weights after an optimizer step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from small_doge.models.doge.mlp_doge import DogeCDMoE, DogeMLP
from small_doge.models.doge.modeling_doge import DogeDecoderLayer, DogeForCausalLM
from small_doge.models.doge.rotary_doge import STATIC_ROPES


@dataclass(frozen=True)
class LayerWeights:
    """One decoder layer; a bias or norm that the configuration leaves out is None.

    Shapes: d width, H query heads, K key/value heads, G scores, D head size, I inner width of the MLP.
    """

    input_norm: Tensor  # [d]
    qkv: Tensor  # [(H + 2K) D, d]
    qkv_bias: Tensor | None
    q_norm: Tensor | None  # [D]
    k_norm: Tensor | None
    A: Tensor  # [G] fp32
    dt: Tensor  # [G, K D]
    dt_bias: Tensor | None
    output: Tensor  # [d, H D]
    output_bias: Tensor | None
    input_residual: Tensor  # [d]
    mlp_norm: Tensor  # [d]
    gate_up: Tensor  # [2I, d]
    gate_up_bias: Tensor | None
    down: Tensor  # [d, I]
    down_bias: Tensor | None
    mlp_residual: Tensor  # [d]
    mixture: DogeCDMoE | None  # the model's own module: its experts are too many to copy


class DecodeWeights:
    """The fused weights of a Doge model, and `refresh` to follow the model as it trains.

    Args:
        model: A `DogeForCausalLM`. Its parameters are read, never written.
        dtype: Of the copies; scores, rotary frequencies and A stay in fp32.

    Raises:
        ValueError: rotary scalings that change with the length, or a mixture in another dtype or routed across tokens.
    """

    def __init__(self, model: DogeForCausalLM, dtype: torch.dtype) -> None:
        self.config = model.config
        self.dtype = dtype
        self._model = model
        decoder = model.model
        if decoder.rotary_emb.rope_type not in STATIC_ROPES:
            raise ValueError(
                f"rope_type {decoder.rotary_emb.rope_type!r} changes with the length: the token step serves "
                f"{', '.join(STATIC_ROPES)}."
            )
        if self.config.is_moe and (self.config.legacy_routing or model.dtype != dtype):
            raise ValueError(
                "the token step serves mixtures that route each token by itself (legacy_routing=False), "
                f"in the model's own dtype: ask for {model.dtype}."
            )
        self.embedding = self._copy(decoder.embed_tokens.weight)
        tied = model.lm_head.weight is decoder.embed_tokens.weight
        self.head = self.embedding if tied else self._copy(model.lm_head.weight)
        self.norm = self._copy(decoder.norm.weight)
        self.inv_freq = decoder.rotary_emb.inv_freq.float()
        self.rope_scaling = decoder.rotary_emb.attention_scaling
        self.layers = [self._fuse(layer) for layer in decoder.layers]

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the model's parameters in again, in place."""
        fresh = DecodeWeights(self._model, self.dtype)
        for old, new in zip(self._tensors(), fresh._tensors(), strict=True):
            old.copy_(new)

    def nbytes(self) -> int:
        """Bytes of the copies."""
        return sum(t.numel() * t.element_size() for t in self._tensors())

    def _tensors(self) -> list[Tensor]:
        found = [self.embedding, self.norm, self.inv_freq]
        found += [self.head] if self.head is not self.embedding else []
        return found + [t for layer in self.layers for t in vars(layer).values() if isinstance(t, Tensor)]

    def _copy(self, *parameters: Tensor) -> Tensor:
        return torch.cat([p.detach().to(self.dtype) for p in parameters]).contiguous()

    def _optional(self, *parameters: Tensor | None) -> Tensor | None:
        given = [p for p in parameters if p is not None]
        return self._copy(*given) if given else None

    def _fuse(self, layer: DogeDecoderLayer) -> LayerWeights:
        attention, mlp = layer.self_attn, layer.mlp
        assert isinstance(mlp, DogeMLP)
        q, k, v = attention.q_proj, attention.k_proj, attention.v_proj
        return LayerWeights(
            input_norm=self._copy(layer.input_layernorm.weight),
            qkv=self._copy(q.weight, k.weight, v.weight),
            qkv_bias=self._optional(q.bias, k.bias, v.bias),
            q_norm=self._optional(getattr(attention.q_norm, "weight", None)),
            k_norm=self._optional(getattr(attention.k_norm, "weight", None)),
            A=attention.A.detach().float().clone(),
            dt=self._copy(attention.dt_proj.weight),
            dt_bias=self._optional(attention.dt_proj.bias),
            output=self._copy(attention.o_proj.weight),
            output_bias=self._optional(attention.o_proj.bias),
            input_residual=self._copy(layer.input_residual),
            mlp_norm=self._copy(layer.post_attention_layernorm.weight),
            gate_up=self._copy(mlp.gate_proj.weight, mlp.up_proj.weight),
            gate_up_bias=self._optional(mlp.gate_proj.bias, mlp.up_proj.bias),
            down=self._copy(mlp.down_proj.weight),
            down_bias=self._optional(mlp.down_proj.bias),
            mlp_residual=self._copy(layer.post_attention_residual),
            mixture=mlp if isinstance(mlp, DogeCDMoE) else None,
        )
