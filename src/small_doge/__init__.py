"""SmallDoge: train, understand and use your own small language model."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig

from small_doge.models.doge.configuration_doge import DogeConfig
from small_doge.models.wonderful_matrices.configuration_wonderful_matrices import WonderfulMatricesConfig

if TYPE_CHECKING:
    from small_doge.models.doge.cache_doge import DogeCache
    from small_doge.models.doge.modeling_doge import DogeForCausalLM, DogeForSequenceClassification, DogeModel
    from small_doge.models.wonderful_matrices.modeling_wonderful_matrices import (
        WonderfulMatricesForCausalLM,
        WonderfulMatricesModel,
    )

__version__ = "0.1.0"

# From here on a checkpoint of model_type "doge" is ours; its configuration brings the models in when one is made.
AutoConfig.register("doge", DogeConfig, exist_ok=True)
AutoConfig.register("wonderful_matrices", WonderfulMatricesConfig, exist_ok=True)

_HOMES = {
    "DogeCache": "small_doge.models.doge.cache_doge",
    "DogeForCausalLM": "small_doge.models.doge.modeling_doge",
    "DogeForSequenceClassification": "small_doge.models.doge.modeling_doge",
    "DogeModel": "small_doge.models.doge.modeling_doge",
    "WonderfulMatricesForCausalLM": "small_doge.models.wonderful_matrices.modeling_wonderful_matrices",
    "WonderfulMatricesModel": "small_doge.models.wonderful_matrices.modeling_wonderful_matrices",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


__all__ = [
    "DogeCache",
    "DogeConfig",
    "DogeForCausalLM",
    "DogeForSequenceClassification",
    "DogeModel",
    "WonderfulMatricesConfig",
    "WonderfulMatricesForCausalLM",
    "WonderfulMatricesModel",
    "__version__",
]
