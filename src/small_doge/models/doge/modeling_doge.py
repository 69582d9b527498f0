"""The Doge language model, top to bottom: dynamic mask attention, a dense or mixture MLP, learnable residuals.

Sources: Wonderful Matrices (arXiv 2412.11834), Trainable Dynamic Mask Sparse Attention (arXiv 2508.02124). Parameter
names are those of transformers' own Doge, so that checkpoints pass between the two unchanged. The MLPs are in
`mlp_doge`, norms in `norm_doge`, the rotary embedding in `rotary_doge`, the reading of attention masks in `masks_doge`.

Shape suffixes: B batch, T new tokens, S keys, d width, H query heads, G key/value heads, D head size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.generation import GenerationMixin
from transformers.modeling_layers import GenericForSequenceClassification, GradientCheckpointingLayer
from transformers.modeling_outputs import MoeCausalLMOutputWithPast, MoeModelOutputWithPast
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import can_return_tuple

from small_doge.models.doge.cache_doge import DogeCache, refuse_cache_while_checkpointing
from small_doge.models.doge.configuration_doge import DogeConfig
from small_doge.models.doge.fused_loss import fused_causal_loss
from small_doge.models.doge.joint_linear import joint_linear, joint_product, narrow_linear, plain_linear, reshapable
from small_doge.models.doge.masks_doge import document_limits, new_tokens_mask, padding_limits
from small_doge.models.doge.mlp_doge import DogeCDMoE, DogeMLP
from small_doge.models.doge.norm_doge import DogeRMSNorm, normed_and_carried
from small_doge.models.doge.rotary_doge import DogeRotaryEmbedding
from small_doge.ops.dynamic_mask_attention import BACKENDS, attention_weights, dynamic_mask_attention
from small_doge.ops.rotary_heads import normed_rotary_heads, rotate

# `attn_implementation` -> backend of the op. "sdpa", transformers' default, means that the op chooses.
BACKEND_OF = {"sdpa": "auto", "eager": "naive"} | {f"doge_{name}": name for name in BACKENDS}


class DogeAttention(nn.Module):
    """Dynamic mask attention: each key carries a score, made from its value, that biases and bounds who sees it."""

    def __init__(self, config: DogeConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_size
        self.scaling = self.head_dim**-0.5
        width, bias = config.hidden_size, config.attention_bias
        query_width = config.num_attention_heads * self.head_dim
        assert config.num_key_value_heads is not None
        key_width = config.num_key_value_heads * self.head_dim
        scores = config.num_attention_heads if config.score_per_query_head else config.num_key_value_heads

        self.q_proj = nn.Linear(width, query_width, bias=bias)
        self.k_proj = nn.Linear(width, key_width, bias=bias)
        self.v_proj = nn.Linear(width, key_width, bias=bias)
        self.A = nn.Parameter(torch.zeros(scores))
        self.dt_proj = nn.Linear(key_width, scores, bias=bias)
        self.o_proj = nn.Linear(query_width, width, bias=bias)
        self.q_norm = DogeRMSNorm(self.head_dim, config.rms_norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = DogeRMSNorm(self.head_dim, config.rms_norm_eps) if config.qk_norm else nn.Identity()

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        limit: Tensor | None = None,
        valid: Tensor | None = None,
        past_key_values: DogeCache | None = None,
        output_attentions: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        batch, length, _ = hidden_states.shape
        *heads, dots = self.heads(hidden_states, *position_embeddings)
        query, key, value = (x.transpose(1, 2) for x in heads)
        score = self.score(dots)
        if score.shape[1] > key.shape[1]:
            # One score for each query head: each keeps keys of its own.
            repeats = score.shape[1] // key.shape[1]
            key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)

        if past_key_values is not None:
            key, value, score, cached_valid = past_key_values.update(
                key, value, self.layer_idx, score=score, valid=valid
            )
            limit = None if cached_valid is None else cached_valid.long() * key.shape[2]

        options: dict[str, Any] = {
            "keep_window": self.config.keep_window_size,
            "limit_BS": limit,
            "scale": self.scaling,
        }
        weights = attention_weights(query, key, score, **options) if output_attentions else None
        backend = BACKEND_OF[self.config._attn_implementation]
        output = dynamic_mask_attention(query, key, value, score, **options, backend=backend)
        return plain_linear(output.transpose(1, 2).reshape(batch, length, -1), self.o_proj), weights

    def heads(self, x_BTd: Tensor, cos_BTD: Tensor, sin_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Queries [B, T, H, D] and keys [B, T, G, D], normed and rotated, values [B, T, G, D], and W_dt v.

        That is [B, T, G], or [B, T, H] where each query head has scores of its own.
        """
        maps = (self.q_proj, self.k_proj, self.v_proj)
        if self.config.qk_norm and reshapable(x_BTd, *maps, self.dt_proj):
            joint_BTF = joint_product(x_BTd, *maps)
            weights = (self.q_norm.weight, self.k_norm.weight, self.dt_proj.weight)
            heads, eps = self.config.num_attention_heads, self.config.rms_norm_eps
            return normed_rotary_heads(joint_BTF, *weights, cos_BTD, sin_BTD, heads=heads, eps=eps)
        query, key, value = (x.unflatten(-1, (-1, self.head_dim)) for x in joint_linear(x_BTd, *maps))
        cos, sin = cos_BTD[:, :, None], sin_BTD[:, :, None]
        dots = narrow_linear(value.flatten(2), self.dt_proj)
        return rotate(self.q_norm(query), cos, sin), rotate(self.k_norm(key), cos, sin), value, dots

    def score(self, dots_BTG: Tensor) -> Tensor:
        """exp(A * softplus(W_dt v)): one score per key and key/value head, [B, G, T], or as `heads` per query head."""
        # At least fp32: in half precision the exponential would move which keys are kept.
        dtype = torch.promote_types(dots_BTG.dtype, torch.float32)
        return torch.exp(self.A.to(dtype) * F.softplus(dots_BTG.to(dtype))).transpose(1, 2)


class DogeDecoderLayer(GradientCheckpointingLayer):
    """x <- r1 * x + Attn(norm x), then x <- r2 * x + MLP(norm x), with learnable r1 and r2 of width d."""

    def __init__(self, config: DogeConfig, layer_idx: int) -> None:
        super().__init__()
        self.hidden_dropout = config.hidden_dropout
        self.input_layernorm = DogeRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = DogeAttention(config, layer_idx)
        self.input_residual = nn.Parameter(torch.ones(config.hidden_size))
        self.post_attention_layernorm = DogeRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp: nn.Module = DogeCDMoE(config) if config.is_moe else DogeMLP(config)
        self.post_attention_residual = nn.Parameter(torch.ones(config.hidden_size))

    def forward(
        self, hidden_states: Tensor, balanced: bool = False, **attention: Any
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """The layer's output and, if asked for or if it is a mixture, its attention weights, router scores, balance."""
        normed, carried = normed_and_carried(hidden_states, self.input_layernorm, self.input_residual)
        attended, weights = self.self_attn(normed, **attention)
        hidden_states = carried + self._drop(attended)
        normed, carried = normed_and_carried(hidden_states, self.post_attention_layernorm, self.post_attention_residual)
        transformed, router_logits, balance = self.mlp(normed, balanced, attention.get("valid"))
        return carried + self._drop(transformed), weights, router_logits, balance

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.hidden_dropout, self.training) if self.hidden_dropout else x


@dataclass
class DogeModelOutput(MoeModelOutputWithPast):
    """`MoeModelOutputWithPast`, and the mean of the layers' balance losses where it was asked for."""

    balance: Tensor | None = None


class DogePreTrainedModel(PreTrainedModel):
    config: DogeConfig
    config_class = DogeConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["DogeDecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_attention_backend = True

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        # transformers looks for its own attention interface in the source; ours is the op's `backend`.
        return True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, DogeAttention):
            init.zeros_(module.A)
        elif isinstance(module, DogeDecoderLayer):
            init.ones_(module.input_residual)
            init.ones_(module.post_attention_residual)


class DogeModel(DogePreTrainedModel):
    """The decoder without its head: token ids to hidden states."""

    def __init__(self, config: DogeConfig) -> None:
        super().__init__(config)
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.layers = nn.ModuleList(DogeDecoderLayer(config, index) for index in range(config.num_hidden_layers))
        self.norm = DogeRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = DogeRotaryEmbedding(config)
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
        output_router_logits: bool | None = None,
        balanced: bool = False,
        **kwargs: Any,
    ) -> DogeModelOutput:
        """Hidden states of a batch of sequences.

        Args:
            input_ids: [B, T] token ids; or `inputs_embeds` [B, T, d].
            attention_mask: [B, T] or [B, past + T], 0 for padding, on either side or between.
            position_ids: [B, T]. Given without `attention_mask`, each restart begins a new document, and the documents
                of a row do not see one another (packing).
            past_key_values: A `DogeCache`; made when `use_cache` asks for one.
            use_cache: `config.use_cache` if not given, except in training and for packed rows, where nothing is cached.
            output_attentions: Return the attention weights [B, H, T, S] of each layer; needs
                `attn_implementation="eager"`.
            output_router_logits: Return the router's scores [2, B * T, n] of each layer of a mixture.
            balanced: Return the loss that balances a mixture's experts, each within its own layer, padding left out.

        Raises:
            ValueError: an attention mask that is not two-dimensional, packed rows for a cache, a cache of another
                kind, or one under gradient checkpointing.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds, and not both.")
        output_attentions = self.config.output_attentions if output_attentions is None else output_attentions
        output_hidden_states = (
            self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        )
        output_router_logits = (
            self.config.output_router_logits if output_router_logits is None else output_router_logits
        )
        if output_attentions and self.config._attn_implementation != "eager":
            raise ValueError(
                'output_attentions needs attn_implementation="eager": the fused kernels never form the weights.'
            )
        if past_key_values is not None and not isinstance(past_key_values, DogeCache):
            raise ValueError(
                f"past_key_values is a {type(past_key_values).__name__}: Doge keeps scores beside its keys, "
                "pass DogeCache(config)."
            )

        hidden_states = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        device = hidden_states.device.type
        if torch.is_autocast_enabled(device):
            # The residual stream in the dtype of the products: half the bytes of everything between them.
            hidden_states = hidden_states.to(torch.get_autocast_dtype(device))
        batch, length, _ = hidden_states.shape
        valid = new_tokens_mask(attention_mask, length)
        limit = None
        if position_ids is not None and attention_mask is None and length > 1:
            limit = document_limits(position_ids, batch)
        if limit is not None and (use_cache or past_key_values is not None):
            raise ValueError(
                "position_ids restart, so the rows are packed, and packed rows have no cache: pass use_cache=False."
            )
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training and limit is None
        refuse_cache_while_checkpointing(self, use_cache or past_key_values is not None)
        if use_cache and past_key_values is None:
            past_key_values = DogeCache(self.config)
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        if past_key_values is None and limit is None:
            limit = padding_limits(valid)
        if position_ids is None:
            position_ids = torch.arange(past, past + length, device=hidden_states.device)[None]
        position_embeddings = self.rotary_emb(hidden_states, position_ids)

        all_hidden_states: list[Tensor] = []
        all_weights: list[Tensor] = []
        all_router_logits: list[Tensor] = []
        balances: list[Tensor] = []
        for layer in self.layers:
            if output_hidden_states:
                all_hidden_states.append(hidden_states)
            hidden_states, weights, router_logits, balance = layer(
                hidden_states,
                balanced=balanced,
                position_embeddings=position_embeddings,
                limit=limit,
                valid=valid,
                past_key_values=past_key_values,
                output_attentions=output_attentions,
            )
            if weights is not None:
                all_weights.append(weights)
            if router_logits is not None:
                all_router_logits.append(router_logits)
            if balance is not None:
                balances.append(balance)
        hidden_states = self.norm(hidden_states)
        if output_hidden_states:
            all_hidden_states.append(hidden_states)

        # transformers' annotations say tuples of one tensor, and mean one a layer.
        router_logits_of_layers: Any = tuple(all_router_logits) if output_router_logits and all_router_logits else None

        return DogeModelOutput(
            last_hidden_state=hidden_states,
            past_key_values=past_key_values,
            hidden_states=tuple(all_hidden_states) if output_hidden_states else None,
            attentions=tuple(all_weights) if output_attentions else None,
            router_logits=router_logits_of_layers,
            balance=torch.stack(balances).mean() if balances else None,
        )


class DogeForCausalLM(DogePreTrainedModel, GenerationMixin):
    """Doge with its language model head."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}

    def __init__(self, config: DogeConfig) -> None:
        super().__init__(config)
        self.model = DogeModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def _prepare_cache_for_generation(  # type: ignore[override]
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        # The forward would make one too, but assisted generation wants it before.
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)  # type: ignore[misc]
        if generation_config.use_cache is not False and model_kwargs.get("past_key_values") is None:
            model_kwargs["past_key_values"] = DogeCache(self.config)

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
        output_router_logits: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        loss_only: bool = False,
        **kwargs: Any,
    ) -> MoeCausalLMOutputWithPast:
        """Next-token logits, and the loss where `labels` are given; the other arguments are `DogeModel.forward`'s.

        Args:
            labels: [B, T], -100 where a token is not to be predicted; shifted inside.
            output_router_logits: For a mixture, also compute the balance loss, and add it to the loss with the weight
                `config.router_aux_loss_coef`.
            logits_to_keep: Number of last positions to compute logits for, or their indices; 0 for all.
            loss_only: With labels, compute the loss without the logits, which are then None
                (`small_doge.ops.linear_cross_entropy`): less time, and no memory for them.
        """
        if output_router_logits is None:
            output_router_logits = self.config.output_router_logits
        if use_cache is None and labels is not None:
            use_cache = False
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            output_router_logits=output_router_logits,
            balanced=output_router_logits,
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
        if loss is not None and outputs.balance is not None:
            assert labels is not None
            # With num_items_in_batch the micro-batches of a step are summed, so each gives its share of the balance.
            items = kwargs.get("num_items_in_batch")
            share = 1.0 if items is None else (labels[:, 1:] != -100).sum() / items
            loss = loss + self.config.router_aux_loss_coef * share * outputs.balance
        return MoeCausalLMOutputWithPast(
            loss=loss,
            aux_loss=outputs.balance,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            router_logits=outputs.router_logits,
        )


class DogeForSequenceClassification(GenericForSequenceClassification, DogePreTrainedModel):
    """Doge with a classification head on the last token."""

    def __init__(self, config: DogeConfig) -> None:
        # Not by AutoModel: a checkpoint that brings this code would get transformers' own Doge from it.
        DogePreTrainedModel.__init__(self, config)
        assert config.num_labels is not None
        self.num_labels = config.num_labels
        self.model = DogeModel(config)
        self.score = nn.Linear(config.hidden_size, self.num_labels, bias=False)
        self.post_init()


__all__ = ["DogeForCausalLM", "DogeForSequenceClassification", "DogeModel", "DogePreTrainedModel"]
