"""Generation: `load` a checkpoint, then `generate` or `stream`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from small_doge.inference.engine import Engine

DTYPES = ("float32", "bfloat16", "float16")


def load(path: str, device: str = "cpu", dtype: str = "float32") -> Engine:
    """An engine for the checkpoint in `path` (a folder or a hub id).

    Raises:
        ValueError: an unknown dtype, or a folder that is no whole checkpoint.
    """
    import torch
    from transformers import AutoTokenizer

    from small_doge.inference.engine import Engine
    from small_doge.models.loading import load_checkpoint

    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}: choose one of {', '.join(DTYPES)}.")
    model = load_checkpoint(path, getattr(torch, dtype))
    torch.nn.Module.to(model, device)
    return Engine(model, AutoTokenizer.from_pretrained(path))
