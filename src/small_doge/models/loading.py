"""Reads a checkpoint, refusing one that is not whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

import small_doge  # noqa: F401  registers the family with the Auto classes


def load_checkpoint(path: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A causal language model from a folder or the hub, refusing one whose weights are not all there.

    Raises:
        ValueError: weights missing or of another shape than the configuration says, or a folder without a model.
    """
    if Path(path).is_dir() and not (Path(path) / "config.json").is_file():
        raise ValueError(f"{path} holds no model (no config.json): name the folder of a finished checkpoint.")
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, output_loading_info=True)
    except RuntimeError as error:
        raise ValueError(
            f"the weights of {path} do not fit its config.json: {' '.join(str(error).split())[:300]}"
        ) from error
    model, report = loaded
    wrong = sorted(report["missing_keys"]) + sorted(str(k) for k in report["mismatched_keys"])
    if wrong:
        raise ValueError(
            f"{path} lacks weights that its config.json promises ({', '.join(wrong[:3])}...): "
            "copy the checkpoint again, whole."
        )
    return model
