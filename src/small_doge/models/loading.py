"""Reads a checkpoint, refusing one that is not whole."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, PreTrainedModel

import small_doge  # noqa: F401  registers the family with the Auto classes
from small_doge.utils.places import refuse_missing

WEIGHTS = ("*.safetensors", "*.bin")


def load_checkpoint(path: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A causal language model from a folder or the hub, refusing one whose weights are not all there.

    Raises:
        ValueError: no such folder or hub id, weights missing, cut short or of another shape than the configuration
            says, a Doge in the layout of an earlier release, or a folder without a model or with an adapter alone.
    """
    refuse_missing(path)
    folder = Path(path)
    if folder.is_dir() and not (folder / "config.json").is_file():
        held = "an adapter and no model" if (folder / "adapter_config.json").is_file() else "no model (no config.json)"
        raise ValueError(f"{path} holds {held}: name the folder of a finished checkpoint.")
    if folder.is_dir() and not any(file for pattern in WEIGHTS for file in folder.glob(pattern)):
        raise ValueError(f"{path} holds no weights (no model.safetensors): copy the checkpoint again, whole.")
    try:
        # Misshapen weights are let through here, because the report names them and the error would not.
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except SafetensorError as error:
        raise ValueError(
            f"the weights of {path} cannot be read ({error}): copy the checkpoint again, whole."
        ) from error
    except OSError as error:
        raise ValueError(f"{path} is neither a folder nor a model that the hub gives: {error}") from None
    model, report = loaded
    if _is_of_an_earlier_release(report):
        raise ValueError(
            f"{path} is in the layout of an earlier release of Doge: write it in today's with "
            f"`small-doge convert {path} OUT`, and name OUT."
        )
    if report["missing_keys"]:
        raise ValueError(
            f"{path} lacks weights that its config.json promises ({shortened(report['missing_keys'])}): "
            "copy the checkpoint again, whole."
        )
    if report["mismatched_keys"]:
        names = {f"{name} {list(found)}, not {list(wanted)}" for name, found, wanted in report["mismatched_keys"]}
        raise ValueError(
            f"{path} holds weights that do not fit its config.json ({shortened(names)}): "
            "put back the config.json that they were saved with."
        )
    return model


def _is_of_an_earlier_release(report: dict[str, Any]) -> bool:
    """The first releases named weights otherwise, and the next ones had no norms on queries and keys."""
    missing = report["missing_keys"]
    only_norms = bool(missing) and all(re.search(r"\.self_attn\.[qk]_norm\.", name) for name in missing)
    return only_norms or any(name.startswith("model.word_embed.") for name in report["unexpected_keys"])


def shortened(names: set[str]) -> str:
    """The first three names, and how many more there are."""
    first, rest = sorted(names)[:3], len(names) - 3
    return ", ".join(first) + (f" and {rest} more" if rest > 0 else "")
