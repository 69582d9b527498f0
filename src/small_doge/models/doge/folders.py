"""Conversions from one checkpoint folder to another, tokenizer and all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from huggingface_hub import snapshot_download

from small_doge.models.doge.conversion import (
    from_llama,
    obstacle_for_llama,
    obstacle_for_transformers,
    read_doge,
    share_scores,
    split_scores,
    upcycle,
)
from small_doge.models.doge.modeling_doge import DogeForCausalLM
from small_doge.models.doge.remote_code import export_remote_code
from small_doge.utils.places import refuse_missing

TARGETS = {
    "doge": "today's layout, which small_doge reads",
    "transformers": "what plain transformers runs with the same logits",
    "older": "upstream's older layout: a score for each query head, no norms on queries and keys",
    "remote-code": "today's layout with the code beside it, for trust_remote_code",
    "llama": "refused, with the reason",
}
# Everything that a tokenizer may consist of.
TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template*",
)


def upcycle_folder(
    dense: str, out: Path, num_experts: int, num_experts_per_tok: int, balance: float, seed: int = 0
) -> DogeForCausalLM:
    """Write the mixture that grows out of the dense checkpoint `dense` to `out`; see `conversion.upcycle`.

    Args:
        balance: weight of the balance loss in training; 0 trains without it.
    """
    source = _prepared(dense, out)
    fields = {"output_router_logits": balance > 0, "router_aux_loss_coef": balance}
    model = upcycle(read_doge(source), num_experts, num_experts_per_tok, seed, **fields)
    model.save_pretrained(out)
    _copy_tokenizer(source, out)
    return model


def convert_folder(source: str, out: Path, to: str) -> DogeForCausalLM:
    """Write the checkpoint `source` (a Doge of any layout, a Llama or a Mistral) to `out` as one of `TARGETS`.

    Raises:
        ValueError: no such target, another architecture, or a model for which the target has no equal; says why.
    """
    if to not in TARGETS:
        raise ValueError(f"there is no target {to!r}: choose one of {', '.join(TARGETS)}.")
    folder = _prepared(source, out)
    model = _read(folder)
    if to == "llama":
        raise ValueError(f"{source} cannot become a Llama: {obstacle_for_llama(model)}")
    if to == "older":
        model = split_scores(model)
    elif to == "transformers":
        model = share_scores(model)
        obstacle = obstacle_for_transformers(model.config)
        if obstacle is not None:
            raise ValueError(f"transformers cannot run {source}: {obstacle}")
    if to == "remote-code":
        export_remote_code(model, out)
    else:
        model.save_pretrained(out)
    _copy_tokenizer(folder, out)
    return model


def _read(folder: Path) -> DogeForCausalLM:
    kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    if kind == "doge":
        return read_doge(folder)
    if kind == "wonderful_matrices":
        raise ValueError(f"{folder} is of the first generation, another architecture: it converts into nothing else.")
    return from_llama(folder)


def _prepared(source: str, out: Path) -> Path:
    """The folder of the source, downloaded if it is a hub id; refuses to write into a folder that holds a model."""
    if (out / "config.json").exists():
        raise ValueError(f"{out} holds a model already: name another folder.")
    refuse_missing(source)
    folder = Path(source) if Path(source).is_dir() else Path(snapshot_download(source))
    if not (folder / "config.json").is_file():
        raise ValueError(f"{source} holds no model (no config.json): name the folder of a finished checkpoint.")
    return folder


def _copy_tokenizer(source: Path, out: Path) -> None:
    for pattern in TOKENIZER_FILES:
        for file in source.glob(pattern):
            if file.is_file():
                shutil.copy2(file, out)
