"""Generation: `load` a checkpoint, then `generate` or `stream`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from small_doge.utils.hardware import check_device
from small_doge.utils.places import refuse_missing

if TYPE_CHECKING:
    from small_doge.inference.engine import Engine

logger = logging.getLogger(__name__)

DTYPES = ("fp32", "bf16", "int8", "int4")
ALIASES = {"float32": "fp32", "bfloat16": "bf16"}
TORCH_DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
# What a model needs; nothing that runs (no .py) and nothing that unpickles.
HUB_FILES = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")


def load(
    path: str, device: str = "cpu", dtype: str | None = None, drafts: int = 0, draft_model: str | None = None
) -> Engine:
    """An engine for the checkpoint in `path` (a folder or a hub id).

    On a CPU the native core runs a Doge in any of the types; where it is not built, or for an architecture that it does
    not know, torch runs instead, in fp32 or bf16, and a warning says why. On a GPU torch runs in fp32 or bf16.

    Args:
        path: A checkpoint's folder, a hub id, or a file that `NativeModel.save` wrote beside the tokenizer's files.
        device: "cpu", "cuda", "cuda:1", ...
        dtype: "fp32", "bf16" (torch's names are taken too), "int8" (8-bit weights and activations) or "int4" (4-bit
            weights). By default int8 on a CPU and bf16 on a GPU.
        drafts: Tokens that the native core guesses and checks in one step; the completions stay the same.
        draft_model: Who guesses them: a smaller checkpoint with the same tokenizer (speculative decoding, arXiv
            2211.17192). If there is none, they come from what a sequence holds already (prompt look-up).

    Raises:
        ValueError: an unknown dtype or device, a dtype that the device does not run, drafts without the native core, a
            draft model with another tokenizer, or a folder that is no whole checkpoint.
    """
    on_cpu = device.startswith("cpu")
    dtype = dtype or ("int8" if on_cpu else "bf16")
    dtype = ALIASES.get(dtype, dtype)
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}: choose one of {', '.join(DTYPES)}.")
    if not on_cpu and dtype not in TORCH_DTYPES:
        raise ValueError(f"dtype {dtype} runs on a CPU only: choose {' or '.join(TORCH_DTYPES)} for {device}.")
    place = locate(path)
    folder = folder_of(place)
    why_not = native_refusal(folder) if on_cpu else ""
    if on_cpu and not why_not:
        from small_doge.inference.native import NativeModel

        small = locate(draft_model) if draft_model else None
        engine = with_tokenizer(NativeModel.load(place, dtype, drafts=drafts, draft_model=small), folder)
        if small:
            refuse_other_tokenizer(engine, folder_of(small))
        return engine
    if drafts or draft_model:
        raise ValueError(f"drafts need the native core ({why_not or 'it runs on a CPU'}): leave them out.")
    check_device(device)
    return with_tokenizer(load_in_torch(folder, device, dtype, why_not), folder)


def locate(path: str) -> Path:
    """A folder or a saved file on disk, or the folder that the hub gives.

    Raises:
        ValueError: no such place, or a file without the checkpoint that it was saved beside.
    """
    place = Path(path)
    if place.is_file() and not (place.parent / "config.json").is_file():
        raise ValueError(f"{path} is a file without a checkpoint beside it: name the folder of a finished checkpoint.")
    return place if place.exists() else download(path)


def folder_of(place: Path) -> Path:
    """Where the tokenizer and the settings of the model at `place` are."""
    return place.parent if place.is_file() else place


def refuse_other_tokenizer(engine: Engine, folder: Path) -> None:
    """Raises ValueError where the tokenizer in `folder` gives other ids than the engine's."""
    from transformers import AutoTokenizer

    if AutoTokenizer.from_pretrained(folder).get_vocab() != engine.tokenizer.get_vocab():
        raise ValueError(f"{folder} has another tokenizer than the model: take a draft model with the same one.")


def native_refusal(folder: Path) -> str:
    """Why the native core does not run the checkpoint in `folder`; empty if it does."""
    from small_doge.inference import native
    from small_doge.inference.native.checkpoint import Unsupported, read_shape

    if not native.is_available():
        return native.reason()
    try:
        read_shape(folder)
    except Unsupported as error:
        return str(error)
    return ""


def load_in_torch(folder: Path, device: str, dtype: str, why_not_native: str) -> Any:
    """The model in torch; where that is not what was asked for, one warning says so and why."""
    import torch

    from small_doge.inference.torch_backend import TorchBackend
    from small_doge.models.loading import load_checkpoint

    served = dtype if dtype in TORCH_DTYPES else "fp32"
    if why_not_native:
        logger.warning("%s runs through torch in %s: %s.", folder, served, why_not_native)
    model: Any = load_checkpoint(str(folder), getattr(torch, TORCH_DTYPES[served]))
    return TorchBackend(model.to(device))


def download(name: str) -> Path:
    """The folder of a model from the hub, without anything that could run.

    Raises:
        ValueError: neither a folder nor a model that the hub gives.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    refuse_missing(name)
    try:
        return Path(snapshot_download(name, allow_patterns=list(HUB_FILES)))
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise ValueError(f"{name} is neither a folder nor a model that the hub gives: {error}") from None


def with_tokenizer(backend: Any, folder: Path) -> Engine:
    """An engine from a loaded model and what stands beside it: the tokenizer and the tokens that end a completion."""
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    import small_doge  # noqa: F401  registers the family with the Auto classes
    from small_doge.inference.engine import Engine

    tokenizer = AutoTokenizer.from_pretrained(folder)
    ends = None
    if (folder / "generation_config.json").is_file():
        ends = GenerationConfig.from_pretrained(folder).eos_token_id
    if ends is None:
        ends = AutoConfig.from_pretrained(folder).eos_token_id
    if ends is None:
        ends = tokenizer.eos_token_id
    return Engine(backend, tokenizer, ends if isinstance(ends, (list, tuple)) else [ends])
