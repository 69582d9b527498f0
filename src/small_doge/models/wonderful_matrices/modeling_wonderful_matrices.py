"""The first generation, top to bottom: inner function attention and a cross domain mixture of experts in every layer.

Source: Wonderful Matrices (arXiv 2407.16958). Module names are those of its code. Two things differ from that code, on
purpose: keys get their rotary embedding as the paper says (the code lost it), and the learnt "dynamic mask" parameter
is left out (it multiplied a mask of zeros and infinities, where no value of it changes anything).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GenericForSequenceClassification, GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.models.llama.modeling_llama import eager_attention_forward
from transformers.utils import can_return_tuple

from small_doge.models.doge.cache_doge import refuse_cache_while_checkpointing
from small_doge.models.doge.fused_loss import fused_causal_loss
from small_doge.models.doge.masks_doge import document_limits
from small_doge.models.doge.norm_doge import DogeRMSNorm
from small_doge.models.doge.rotary_doge import DogeRotaryEmbedding
from small_doge.models.wonderful_matrices.configuration_wonderful_matrices import WonderfulMatricesConfig
from small_doge.ops.expert_retrieval import expert_dots, expert_sum, search_experts
from small_doge.ops.rotary_heads import rotate


class InnerFunctionAttention(nn.Module):
    """Attention whose values are the input times a row of `v_embed`, picked for each token by a routed query.

    v = x * v_embed[j], j the key in `v_keys` nearest to W x. The choice has no gradient, so, going backwards only, the
    value counts as multiplied by the choice's probability.
    """

    def __init__(self, config: WonderfulMatricesConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_size
        self.scaling = self.head_dim**-0.5
        # What transformers' attention functions ask for.
        self.num_key_value_groups = 1
        self.is_causal = True
        width, bias = config.hidden_size, config.hidden_bias
        self.q_proj = nn.Linear(width, width, bias=bias)
        self.k_proj = nn.Linear(width, width, bias=bias)
        self.v_queries = nn.Linear(width, self.head_dim, bias=bias)
        self.v_keys = nn.Parameter(torch.zeros(config.num_inner_values, self.head_dim))
        self.v_embed = nn.Embedding(config.num_inner_values, width)
        self.o_proj = nn.Linear(width, width, bias=bias)

    def inner_function(self, x: Tensor) -> Tensor:
        """The value of each token: [B, T, d]."""
        probability = (self.v_queries(x) @ self.v_keys.T).softmax(-1)
        chosen, index = probability.max(-1, keepdim=True)
        straight_through = 1.0 + (chosen - chosen.detach())
        return x * self.v_embed(index.squeeze(-1)) * straight_through

    def forward(
        self,
        x: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Any = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        batch, length, _ = x.shape
        heads = (batch, length, -1, self.head_dim)
        query = rotate(self.q_proj(x).view(heads).transpose(1, 2), *position_embeddings)
        key = rotate(self.k_proj(x).view(heads).transpose(1, 2), *position_embeddings)
        value = self.inner_function(x).view(heads).transpose(1, 2)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        output, weights = attend(self, query, key, value, attention_mask, scaling=self.scaling, dropout=0.0, **kwargs)
        return self.o_proj(output.reshape(batch, length, -1)), weights


class CrossDomainMixture(nn.Module):
    """y = h + sum_e w_e * silu(h . down_e) * up_e, where h = W_down silu(W_up x) is shared by all domains.

    Each head's query of h retrieves its own experts by product keys; w is the softmax within a head.
    """

    def __init__(self, config: WonderfulMatricesConfig) -> None:
        super().__init__()
        width, inner, bias = config.hidden_size, config.cross_domain_intermediate_size, config.hidden_bias
        self.heads, self.top_k = config.num_cdmmoe_heads, config.num_cdmmoe_experts_per_head
        size, keys = config.private_expert_intermediate_size, math.isqrt(config.num_cdmmoe_experts)
        self.act_fn = ACT2FN[config.hidden_act]
        self.shared_up_proj = nn.Linear(width, inner, bias=bias)
        self.shared_down_proj = nn.Linear(inner, width, bias=bias)
        self.queries = nn.Linear(width, size * self.heads, bias=False)
        self.keys = nn.Parameter(torch.zeros(self.heads, keys, 2, size // 2))
        self.down_embed = nn.Embedding(config.num_cdmmoe_experts, width)
        self.up_embed = nn.Embedding(config.num_cdmmoe_experts, width)

    def forward(self, x: Tensor) -> Tensor:
        shared = self.shared_down_proj(self.act_fn(self.shared_up_proj(x)))
        h_Nd = shared.flatten(0, 1)
        tokens = h_Nd.shape[0]
        queries = self.queries(h_Nd).view(tokens, 2, self.heads, -1)
        similarity = torch.einsum("nphs,hkps->pnhk", queries, self.keys)
        # One retrieval for each token and head.
        scores, index = search_experts(similarity.flatten(1, 2).float(), self.top_k)
        weight_Nk = scores.softmax(-1).view(tokens, -1)
        index_Nk = index.view(tokens, -1)
        hidden_Nk = self.act_fn(expert_dots(h_Nd, self.down_embed.weight, index_Nk))
        private = expert_sum(weight_Nk.to(hidden_Nk.dtype) * hidden_Nk, self.up_embed.weight, index_Nk)
        return shared + private.view_as(shared).to(shared.dtype)


class WonderfulMatricesDecoderLayer(GradientCheckpointingLayer):
    def __init__(self, config: WonderfulMatricesConfig, layer_idx: int) -> None:
        super().__init__()
        self.hidden_dropout = config.hidden_dropout
        self.in_attn_layernorm = DogeRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attn = InnerFunctionAttention(config, layer_idx)
        self.in_ff_layernorm = DogeRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.feed_forward = CrossDomainMixture(config)

    def forward(self, hidden_states: Tensor, **attention: Any) -> tuple[Tensor, Tensor | None]:
        attended, weights = self.attn(self.in_attn_layernorm(hidden_states), **attention)
        hidden_states = hidden_states + self._drop(attended)
        return hidden_states + self._drop(self.feed_forward(self.in_ff_layernorm(hidden_states))), weights

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.hidden_dropout, self.training) if self.hidden_dropout else x


class WonderfulMatricesPreTrainedModel(PreTrainedModel):
    config: WonderfulMatricesConfig
    config_class = WonderfulMatricesConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["WonderfulMatricesDecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _input_embed_layer = "word_embed"

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        # Zero, as published: all experts and values start equal, and the first steps tell them apart.
        if isinstance(module, InnerFunctionAttention):
            init.zeros_(module.v_keys)
        elif isinstance(module, CrossDomainMixture):
            init.zeros_(module.keys)


class WonderfulMatricesModel(WonderfulMatricesPreTrainedModel):
    """The decoder without its head: token ids to hidden states."""

    def __init__(self, config: WonderfulMatricesConfig) -> None:
        super().__init__(config)
        self.word_embed = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.rotary_emb = DogeRotaryEmbedding(config)
        self.layers = nn.ModuleList(
            WonderfulMatricesDecoderLayer(config, index) for index in range(config.num_hidden_layers)
        )
        self.final_layernorm = DogeRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden states of a batch of sequences.

        Args:
            input_ids: [B, T] token ids; or `inputs_embeds` [B, T, d].
            attention_mask: [B, past + T], 0 for padding.
            position_ids: [B, T]. Given without `attention_mask` and without a cache, each restart begins a new
                document, and the documents of a row do not see one another (packing).
            past_key_values: any cache of transformers; a `DynamicCache` is made when `use_cache` asks for one.

        Raises:
            ValueError: neither or both of the inputs, or a cache under gradient checkpointing.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds, and not both.")
        hidden_states = self.word_embed(input_ids) if inputs_embeds is None else inputs_embeds
        batch, length, _ = hidden_states.shape
        if use_cache is None:
            packed = position_ids is not None and attention_mask is None and document_limits(position_ids, batch)
            use_cache = self.config.use_cache and not self.training and not isinstance(packed, Tensor)
        refuse_cache_while_checkpointing(self, use_cache or past_key_values is not None)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        # With the positions as they were given: in those of its own making it would look for documents, on the device.
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=hidden_states,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        if position_ids is None:
            position_ids = torch.arange(past, past + length, device=hidden_states.device)[None]
        position_embeddings = tuple(x[:, None] for x in self.rotary_emb(hidden_states, position_ids))

        all_hidden_states: list[Tensor] = [hidden_states]
        all_weights: list[Tensor | None] = []
        for layer in self.layers:
            hidden_states, weights = layer(
                hidden_states,
                position_embeddings=position_embeddings,
                attention_mask=mask,
                past_key_values=past_key_values,
            )
            all_hidden_states.append(hidden_states)
            all_weights.append(weights)
        hidden_states = self.final_layernorm(hidden_states)
        all_hidden_states[-1] = hidden_states

        # transformers' annotations say tuples of one tensor, and mean one a layer.
        states: Any = tuple(all_hidden_states) if output_hidden_states else None
        attentions: Any = tuple(all_weights) if output_attentions else None
        return BaseModelOutputWithPast(
            last_hidden_state=hidden_states,
            past_key_values=past_key_values,
            hidden_states=states,
            attentions=attentions,
        )


class WonderfulMatricesForCausalLM(WonderfulMatricesPreTrainedModel, GenerationMixin):
    """The first generation with its language model head."""

    _tied_weights_keys = {"lm_head.weight": "model.word_embed.weight"}

    def __init__(self, config: WonderfulMatricesConfig) -> None:
        super().__init__(config)
        self.model = WonderfulMatricesModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        loss_only: bool = False,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Next-token logits, and the loss where `labels` [B, T] are given (-100: not to be predicted; shifted inside).

        The other arguments are `WonderfulMatricesModel.forward`'s; `logits_to_keep` is the number of last positions to
        compute logits for, or their indices, 0 for all. With `loss_only` the loss comes without logits, which are None.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=False if use_cache is None and labels is not None else use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        hidden_states = outputs.last_hidden_state
        assert hidden_states is not None
        logits = loss = None
        if loss_only:
            loss = fused_causal_loss(hidden_states, self.lm_head.weight, labels, kwargs.get("num_items_in_batch"))
        else:
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.lm_head(hidden_states[:, kept, :])
            if labels is not None:
                loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class WonderfulMatricesForSequenceClassification(GenericForSequenceClassification, WonderfulMatricesPreTrainedModel):
    """The first generation with a classification head on the last token."""


__all__ = [
    "WonderfulMatricesForCausalLM",
    "WonderfulMatricesForSequenceClassification",
    "WonderfulMatricesModel",
    "WonderfulMatricesPreTrainedModel",
]
