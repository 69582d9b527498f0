"""The first generation's models under the Auto classes of transformers."""

from __future__ import annotations

from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from small_doge.models.wonderful_matrices.configuration_wonderful_matrices import WonderfulMatricesConfig
from small_doge.models.wonderful_matrices.modeling_wonderful_matrices import (
    WonderfulMatricesForCausalLM,
    WonderfulMatricesForSequenceClassification,
    WonderfulMatricesModel,
)

AutoModel.register(WonderfulMatricesConfig, WonderfulMatricesModel, exist_ok=True)
AutoModelForCausalLM.register(WonderfulMatricesConfig, WonderfulMatricesForCausalLM, exist_ok=True)
AutoModelForSequenceClassification.register(
    WonderfulMatricesConfig, WonderfulMatricesForSequenceClassification, exist_ok=True
)
