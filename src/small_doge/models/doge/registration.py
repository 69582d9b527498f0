"""The Doge models under their names in transformers: the Auto classes, and the attention backends.

transformers knows the name "doge" and has code of its own for it; once this package is imported, ours runs.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.modeling_utils import AttentionInterface

from small_doge.models.doge.configuration_doge import DogeConfig
from small_doge.models.doge.modeling_doge import (
    BACKEND_OF,
    DogeForCausalLM,
    DogeForSequenceClassification,
    DogeModel,
)


def _only_for_doge(*args: Any, **kwargs: Any) -> None:
    raise ValueError("this attention is Doge's own: choose attn_implementation sdpa or eager for another model.")


for _name in BACKEND_OF.keys() - {"sdpa", "eager"}:
    AttentionInterface.register(_name, _only_for_doge)

AutoModel.register(DogeConfig, DogeModel, exist_ok=True)
AutoModelForCausalLM.register(DogeConfig, DogeForCausalLM, exist_ok=True)
AutoModelForSequenceClassification.register(DogeConfig, DogeForSequenceClassification, exist_ok=True)
