"""Configuration of the first generation, with the keys of its YAML files, and the table of its sizes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_rope_utils import RopeParameters


@dataclass(frozen=True)
class WonderfulMatricesSize:
    """One row of the first generation's table."""

    layers: int
    width: int
    heads: int
    inner_values: int
    cross_domain: int
    expert: int
    experts: int
    expert_heads: int
    experts_per_head: int


# The published table gives the 80M 512 experts and the 200M 768, of which product keys reach only 484 and 729. These
# are the next squares above: no expert fewer than was promised, and all of them reachable.
SIZES = {
    "25M": WonderfulMatricesSize(8, 256, 2, 2, 1024, 256, 256, 1, 2),
    "80M": WonderfulMatricesSize(12, 512, 4, 4, 2048, 512, 529, 1, 2),
    "200M": WonderfulMatricesSize(16, 768, 6, 6, 3072, 768, 784, 2, 4),
    "450M": WonderfulMatricesSize(24, 1024, 8, 8, 4096, 1024, 1024, 2, 4),
}


@strict
class WonderfulMatricesConfig(PreTrainedConfig):
    r"""Configuration of a first generation model. The keys are those of its YAML files, misspellings included.

    Args:
        vocab_size: Number of tokens.
        hidden_size: Width of the residual stream.
        num_hidden_layers: Number of decoder layers.
        hidden_bias: Whether the projections carry a bias.
        hidden_dropout: Dropout probability on the output of each sublayer.
        hidden_act: Activation of the shared MLP and of the experts.
        initializer_range: Standard deviation of the initial weights.
        rms_norm_eps: Epsilon of RMSNorm.
        max_position_embeddings: Longest sequence that the rotary embedding is made for.
        rope_parameters: Rotary embedding as in transformers; the YAML's `rope_theta` is read into it.
        use_cache: Whether generation keeps a cache by default.
        tie_word_embeddings: Whether the output head is the embedding; the published sizes do not tie.
        num_attention_heads: Number of attention heads, each with a key and a value of its own.
        num_inner_values: Number of rows that a token's value is picked from.
        cross_domain_intermediate_size: Width of the shared MLP.
        private_expert_intermediate_size: Size of the query that retrieves experts; even.
        num_cdmmoe_experts: Number of experts; a perfect square.
        num_cdmmoe_heads: Number of retrievals a token.
        num_cdmmoe_experts_per_head: Number of experts a retrieval.
    """

    model_type = "wonderful_matrices"
    keys_to_ignore_at_inference = ["past_key_values"]

    vocab_size: int = 32768
    hidden_size: int = 256
    num_hidden_layers: int = 8
    hidden_bias: bool = False
    hidden_dropout: float | int = 0.0
    hidden_act: str = "silu"
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-06
    max_position_embeddings: int = 16384
    rope_parameters: RopeParameters | dict | None = None
    use_cache: bool = True
    tie_word_embeddings: bool = False
    num_attention_heads: int = 2
    num_inner_values: int = 2
    cross_domain_intermediate_size: int = 1024
    private_expert_intermediate_size: int = 256
    num_cdmmoe_experts: int = 256
    num_cdmmoe_heads: int = 1
    num_cdmmoe_experts_per_head: int = 2
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.hidden_size % self.num_attention_heads or self.head_size % 2:
            raise ValueError(
                f"hidden_size {self.hidden_size} does not split into {self.num_attention_heads} heads of even size: "
                "change one."
            )
        if self.private_expert_intermediate_size % 2:
            raise ValueError(
                f"private_expert_intermediate_size {self.private_expert_intermediate_size} is odd: it is split in two "
                "keys, make it even."
            )
        side = math.isqrt(self.num_cdmmoe_experts)
        if side * side != self.num_cdmmoe_experts:
            raise ValueError(
                f"num_cdmmoe_experts {self.num_cdmmoe_experts} is not a perfect square: "
                f"the nearest are {side**2} and {(side + 1) ** 2}."
            )
        if self.num_cdmmoe_experts_per_head > self.num_cdmmoe_experts:
            raise ValueError(
                f"num_cdmmoe_experts_per_head {self.num_cdmmoe_experts_per_head} is more than num_cdmmoe_experts "
                f"{self.num_cdmmoe_experts}: lower it."
            )
        # As for Doge: the Auto classes find the models by this class.
        import small_doge.models.wonderful_matrices.registration  # noqa: F401

    @property
    def head_size(self) -> int:
        """Size D of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @classmethod
    def from_size(cls, size: str, **overrides: Any) -> WonderfulMatricesConfig:
        """The configuration of a named size ("25M", "80M", "200M" or "450M"); `overrides` win.

        Raises:
            ValueError: the name is not in the table.
        """
        row = SIZES.get(size)
        if row is None:
            raise ValueError(f"there is no size {size!r}: choose one of {', '.join(SIZES)}.")
        fields: dict[str, Any] = {
            "num_hidden_layers": row.layers,
            "hidden_size": row.width,
            "num_attention_heads": row.heads,
            "num_inner_values": row.inner_values,
            "cross_domain_intermediate_size": row.cross_domain,
            "private_expert_intermediate_size": row.expert,
            "num_cdmmoe_experts": row.experts,
            "num_cdmmoe_heads": row.expert_heads,
            "num_cdmmoe_experts_per_head": row.experts_per_head,
        }
        return cls(**(fields | overrides))


__all__ = ["SIZES", "WonderfulMatricesConfig", "WonderfulMatricesSize"]
