"""Configuration of the Doge family, and the table of its sizes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_rope_utils import RopeParameters
from transformers.utils import logging

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class DogeSize:
    """One row of the family's table; `experts` and `experts_per_token` are 0 for a dense model."""

    layers: int
    width: int
    intermediate: int
    heads: int
    key_value_heads: int
    experts: int = 0
    experts_per_token: int = 0


SIZES = {
    "20M": DogeSize(8, 256, 512, 2, 1),
    "60M": DogeSize(16, 512, 1024, 4, 2),
    "160M": DogeSize(24, 768, 1536, 6, 3),
    "320M": DogeSize(32, 1024, 2048, 8, 4),
    "20M-MoE": DogeSize(8, 256, 512, 2, 1, 1024, 16),
    "120M-MoE": DogeSize(16, 512, 1024, 4, 2, 4096, 32),
    "480M-MoE": DogeSize(24, 768, 1536, 6, 3, 9216, 48),
    "1.4B-MoE": DogeSize(32, 1024, 2048, 8, 4, 16384, 64),
}


@strict
class DogeConfig(PreTrainedConfig):
    r"""Configuration of a Doge model. Fields and defaults are transformers' own, so either library reads the
    other's files; `qk_norm`, `score_per_query_head` and `legacy_routing` are ours, written only where they matter.

    Args:
        vocab_size: Number of tokens.
        hidden_size: Width of the residual stream.
        intermediate_size: Width of the dense MLP.
        num_hidden_layers: Number of decoder layers.
        hidden_dropout: Dropout probability on the output of each sublayer.
        hidden_act: Activation of the MLP and of the experts.
        initializer_range: Standard deviation of the initial weights.
        rms_norm_eps: Epsilon of RMSNorm.
        use_cache: Whether generation keeps a cache by default.
        tie_word_embeddings: Whether the output head is the embedding. Every named size ties.
        max_position_embeddings: Longest sequence that the rotary embedding is made for.
        rope_parameters: Rotary embedding as in transformers (`rope_type`, `rope_theta`, `factor`, ...).
        num_attention_heads: Number of query heads.
        num_key_value_heads: Number of key/value heads; all query heads if not given.
        attention_bias: Whether the attention projections carry a bias.
        attention_dropout: Must be 0: each backend, and its backward pass again, would have to drop the same weights.
        mlp_bias: Whether the MLP projections carry a bias.
        keep_window_size: Number of keys that a query sees for each key/value head (the w of dynamic mask attention).
        is_moe: Whether the MLP is a cross domain mixture of experts.
        num_experts: Number of experts; a perfect square.
        num_experts_per_tok: Number of experts a token is sent to.
        norm_topk_prob: Kept for old files; the weights already sum to one.
        output_router_logits: Whether the forward returns router logits and adds the balance loss.
        router_aux_loss_coef: Weight of the balance loss.
        qk_norm: Whether queries and keys pass an RMSNorm before the rotary embedding. False for a model grown out of a
            Llama, and for the oldest Doge checkpoints.
        score_per_query_head: Whether each query head, and not each key/value head, scores and keeps its own keys, as
            the oldest Doge checkpoints do. The cache then holds w keys for every query head.
        legacy_routing: Route as transformers does, where the tokens of a batch mix and a prefix depends on what
            follows. A mixture's file without this key was made that way and is read so, with a warning.
    """

    model_type = "doge"
    keys_to_ignore_at_inference = ["past_key_values"]
    # Attention and experts stay whole on every device: a score needs all values, and the tables are small.
    base_model_tp_plan = {
        "layers.*.mlp.gate_proj": "colwise",
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
    }

    vocab_size: int = 32768
    hidden_size: int = 1024
    intermediate_size: int = 2048
    num_hidden_layers: int = 32
    hidden_dropout: float | int = 0.0
    hidden_act: str = "silu"
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-06
    use_cache: bool = True
    tie_word_embeddings: bool = False
    max_position_embeddings: int = 2048
    rope_parameters: RopeParameters | dict | None = None
    num_attention_heads: int = 8
    num_key_value_heads: int | None = None
    attention_bias: bool = False
    attention_dropout: float | int | None = 0.0
    mlp_bias: bool = False
    sliding_window: int | None = None
    keep_window_size: int = 2048
    is_moe: bool = False
    num_experts: int = 16384
    num_experts_per_tok: int = 64
    norm_topk_prob: bool = False
    output_router_logits: bool = False
    router_aux_loss_coef: float = 0.001
    qk_norm: bool = True
    score_per_query_head: bool = False
    legacy_routing: bool = False
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        super().__post_init__(**kwargs)
        self._refuse_impossible()

        # The Auto classes look a model up by its configuration's class. Importing the models when a configuration is
        # made, and not with the package, keeps `import small_doge` light.
        import small_doge.models.doge.registration  # noqa: F401

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> DogeConfig:
        """The configuration of a saved dictionary; a mixture that does not name `legacy_routing` is read as legacy."""
        if config_dict.get("is_moe") and "legacy_routing" not in config_dict | kwargs:
            logger.warning(
                "This mixture's configuration does not name legacy_routing, so it routes as transformers does, "
                "which is not causal: tokens of a batch mix, and a prefix depends on what follows. If it was trained "
                "with per-token routing, pass legacy_routing=False."
            )
            config_dict = config_dict | {"legacy_routing": True}
        return super().from_dict(config_dict, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Every field, less those of ours that say nothing beyond transformers' Doge."""
        fields = super().to_dict()
        ours = {"qk_norm": self.qk_norm, "score_per_query_head": not self.score_per_query_head}
        ours["legacy_routing"] = not self.is_moe
        return {name: value for name, value in fields.items() if not ours.get(name, False)}

    def _refuse_impossible(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}: "
                "change one."
            )
        assert self.num_key_value_heads is not None
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of num_key_value_heads "
                f"{self.num_key_value_heads}: change one."
            )
        if self.head_size % 2:
            raise ValueError(
                f"the head size {self.head_size} is odd, but the rotary embedding turns pairs: make it even."
            )
        if self.keep_window_size < 1:
            raise ValueError(f"keep_window_size is {self.keep_window_size}: a query must see at least 1 key.")
        if self.attention_dropout:
            raise ValueError(
                f"attention_dropout is {self.attention_dropout}: no backend drops attention weights (all would have to "
                "drop the same ones), so set it to 0."
            )
        if self.sliding_window is not None:
            raise ValueError(
                "sliding_window is set: Doge bounds its window with keep_window_size, remove sliding_window."
            )
        if self.is_moe:
            side = math.isqrt(self.num_experts)
            if side * side != self.num_experts:
                raise ValueError(
                    f"num_experts {self.num_experts} is not a perfect square: "
                    f"the nearest are {side**2} and {(side + 1) ** 2}."
                )
            if self.num_experts_per_tok > self.num_experts:
                raise ValueError(
                    f"num_experts_per_tok {self.num_experts_per_tok} is more than num_experts {self.num_experts}: "
                    "lower it."
                )

    @property
    def head_size(self) -> int:
        """Size D of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @classmethod
    def from_size(cls, size: str, **overrides: Any) -> DogeConfig:
        """The configuration of a named size ("20M" to "320M", or a mixture such as "20M-MoE"); `overrides` win.

        A leading "Doge-" is accepted. Special tokens are those of the project's tokenizer (bos 0, eos 1, pad 2).

        Raises:
            ValueError: the name is not in the table.
        """
        row = SIZES.get(size.removeprefix("Doge-"))
        if row is None:
            raise ValueError(f"there is no size {size!r}: choose one of {', '.join(SIZES)}.")
        fields: dict[str, Any] = {
            "hidden_size": row.width,
            "intermediate_size": row.intermediate,
            "num_hidden_layers": row.layers,
            "num_attention_heads": row.heads,
            "num_key_value_heads": row.key_value_heads,
            "tie_word_embeddings": True,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": 2,
        }
        if row.experts:
            fields |= {"is_moe": True, "num_experts": row.experts, "num_experts_per_tok": row.experts_per_token}
        return cls(**(fields | overrides))


__all__ = ["SIZES", "DogeConfig", "DogeSize"]
