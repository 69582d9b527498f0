"""What the native core reads and writes on disk, without torch: Hugging Face folders and its own mapped file."""

import json
import math
import os
import struct
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

SOURCE_CODES = {"F32": 0, "BF16": 1, "F16": 2}
FORMAT = "small-doge-native"
VERSION = "1"


class Unsupported(ValueError):
    """A whole checkpoint of something that the native core does not compute; torch does."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor inside a memory-mapped safetensors file: raw bytes, element type and shape."""

    data: np.ndarray
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Shape:
    """The numbers that the core needs of a Doge configuration. `experts` is 0 for a dense MLP."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    window: int
    experts: int
    experts_per_token: int
    eps: float
    rope_scale: float
    inv_freq: tuple[float, ...]

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Shape":
        fields = json.loads(text)
        return cls(**{**fields, "inv_freq": tuple(fields["inv_freq"])})


def read_shape(folder: Path) -> Shape:
    """The shape in `folder/config.json`.

    Raises:
        Unsupported: what the native core does not compute.
        ValueError: no such file, or a mixture that nothing computes.
    """
    path = folder / "config.json"
    if not path.is_file():
        held = "an adapter and no model" if (folder / "adapter_config.json").is_file() else "no model (no config.json)"
        raise ValueError(f"{folder} holds {held}: name the folder of a finished checkpoint.")
    config = json.loads(path.read_text(encoding="utf-8"))
    if config.get("model_type") != "doge":
        raise Unsupported(f"{path} has model_type {config.get('model_type')!r}; the native core runs 'doge'")
    expected: dict[str, tuple[Any, ...]] = {
        "hidden_act": ("silu",),
        "attention_bias": (False,),
        "mlp_bias": (False,),
        "sliding_window": (None,),
        "qk_norm": (True,),
        "score_per_query_head": (False,),
    }
    for name, allowed in expected.items():
        if config.get(name, allowed[0]) not in allowed:
            raise Unsupported(f"{path}: the native core does not compute {name}={config[name]!r}")
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    experts = config["num_experts"] if config.get("is_moe") else 0
    if experts:
        if math.isqrt(experts) ** 2 != experts:
            raise ValueError(f"{path}: num_experts={experts} is not a perfect square; the router needs one")
        if config.get("legacy_routing", True):
            raise Unsupported(
                f"{path}: legacy_routing mixes tokens in the router, which the native core does not do; "
                "set legacy_routing to false for a checkpoint trained with per-token routing"
            )
    inv_freq, scale = rope_frequencies(config, head_dim)
    return Shape(
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        intermediate=config["intermediate_size"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=head_dim,
        vocab=config["vocab_size"],
        window=config.get("keep_window_size", 2048),
        experts=experts,
        experts_per_token=config["num_experts_per_tok"] if experts else 0,
        eps=config.get("rms_norm_eps", 1e-6),
        rope_scale=scale,
        inv_freq=tuple(inv_freq),
    )


def rope_frequencies(config: dict[str, Any], head_dim: int) -> tuple[list[float], float]:
    """Inverse frequencies (head_dim / 2) and the factor on cos and sin, of a config in either transformers layout.

    Plain RoPE is computed here, so that loading needs no torch; the scaled kinds come from transformers itself.
    """
    parameters = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    theta = parameters.get("rope_theta", config.get("rope_theta", 10000.0))
    if kind == "default":
        exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
        return [float(np.float32(1.0 / np.float32(theta ** float(e)))) for e in exponents], 1.0
    if kind in ("dynamic", "longrope"):
        raise Unsupported(f"rope_type {kind!r} changes with the length, which the native core does not do")
    from transformers import DogeConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    if kind not in ROPE_INIT_FUNCTIONS:
        raise ValueError(f"rope_type {kind!r} is unknown; take one of default, {', '.join(ROPE_INIT_FUNCTIONS)}")
    inv_freq, scale = ROPE_INIT_FUNCTIONS[kind](DogeConfig(**config), device=None)
    return [float(f) for f in inv_freq], float(scale)


def map_safetensors(path: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """The tensors of one file, memory-mapped, and its metadata. Raises ValueError for a damaged header."""
    mapped = np.memmap(path, dtype=np.uint8, mode="r")
    (length,) = struct.unpack("<Q", mapped[:8].tobytes())
    if length > mapped.size - 8:
        raise ValueError(f"{path} is cut short or no safetensors file; download or save it again")
    header = json.loads(mapped[8 : 8 + length].tobytes())
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        if 8 + length + end > mapped.size:
            raise ValueError(f"{path} is cut short at {name}; download or save it again")
        raw = mapped[8 + length + begin : 8 + length + end]
        tensors[name] = StoredTensor(raw, entry["dtype"], tuple(entry["shape"]))
    return tensors, metadata


def map_checkpoint(folder: Path) -> dict[str, StoredTensor]:
    """All weights of a Hugging Face folder, from model.safetensors or its shards."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    elif (folder / "model.safetensors").is_file():
        files = ["model.safetensors"]
    else:
        raise ValueError(f"{folder} holds no weights (no model.safetensors): copy the checkpoint again, whole.")
    tensors: dict[str, StoredTensor] = {}
    for name in files:
        tensors.update(map_safetensors(folder / name)[0])
    for name, tensor in tensors.items():
        if tensor.dtype not in SOURCE_CODES:
            raise ValueError(f"{name} is stored as {tensor.dtype}; the native core reads F32, F16 and BF16")
    return tensors


Entry = tuple[str, bool, int, int, int, np.ndarray]  # name, matrix?, type code, rows, columns, bytes


def write_packed(path: Path, entries: Iterable[Entry], shape: Shape, dtype: str) -> None:
    """Writes packed weights as one safetensors file of bytes, whole or not at all."""
    # Blocks of whole cache lines first: everything that a kernel streams then lies aligned.
    ordered = sorted(entries, key=lambda e: e[5].size % 64 != 0)
    layout = {name: [bool(matrix), code, rows, cols] for name, matrix, code, rows, cols, _ in ordered}
    metadata = {"format": FORMAT, "version": VERSION, "dtype": dtype, "shape": shape.to_json()}
    header: dict[str, Any] = {"__metadata__": {**metadata, "layout": json.dumps(layout)}}
    offset = 0
    for name, _, _, _, _, data in ordered:
        header[name] = {"dtype": "U8", "shape": [data.size], "data_offsets": [offset, offset + data.size]}
        offset += data.size
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % 64)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for entry in ordered:
                file.write(entry[5].data)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def map_packed(path: Path) -> tuple[list[Entry], Shape, str]:
    """The packed weights of a file that `write_packed` wrote, memory-mapped; its shape and dtype."""
    tensors, metadata = map_safetensors(path)
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} is not a saved native model; give a checkpoint folder, or a file that save() wrote")
    if metadata["version"] != VERSION:
        raise ValueError(f"{path} has version {metadata['version']}, this build reads {VERSION}; save it again")
    layout = json.loads(metadata["layout"])
    entries = [(name, *layout[name], tensor.data) for name, tensor in tensors.items()]
    return entries, Shape.from_json(metadata["shape"]), metadata["dtype"]
