"""Bits per byte on held-out text, domain by domain: each file of a folder is one domain."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from small_doge.evaluation.likelihood import gzip_bits_per_byte, log_likelihoods, text_windows
from small_doge.evaluation.summary import read_up_to

ENDINGS = (".jsonl.zst", ".jsonl.gz", ".jsonl", ".parquet", ".txt", ".md")


def domain_files(folder: Path) -> dict[str, Path]:
    """The files of text in a folder, by their names without endings.

    Raises:
        ValueError: there is no folder, or no text in it.
    """
    found = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        ending = next((ending for ending in ENDINGS if path.name.endswith(ending)), None)
        if ending is not None:
            found[path.name.removesuffix(ending)] = path
    if not found:
        raise ValueError(f"{folder} holds no text: give a folder of {', '.join(ENDINGS)} files, one a domain.")
    return found


def domain_row(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    path: Path,
    max_length: int,
    megabytes: float,
    batch_tokens: int,
) -> dict[str, Any]:
    """Bits per byte on a domain, its end-of-document tokens included, and the 95 % interval over documents.

    The interval is that of a ratio of two sums over documents (bits and bytes; the delta method).

    Raises:
        ValueError: a file without text.
    """
    texts = read_up_to(str(path), megabytes)
    if not texts:
        raise ValueError(f"{path} holds no text: its rows need a field `text`, or leave it out of the folder.")
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    windows, owners = [], []
    encoded: Any = tokenizer(texts, add_special_tokens=False)["input_ids"]
    for number, ids in enumerate(encoded):
        pieces = text_windows([bos, *ids, eos], max_length)
        windows += pieces
        owners += [number] * len(pieces)
    bits = [0.0] * len(texts)
    for owner, (nats, _) in zip(owners, log_likelihoods(model, windows, batch_tokens), strict=True):
        bits[owner] -= nats / math.log(2)
    sizes = [len(text.encode()) for text in texts]
    value = sum(bits) / sum(sizes)
    n = len(texts)
    residuals = sum((b - value * s) ** 2 for b, s in zip(bits, sizes, strict=True))
    # One document says nothing about the spread.
    error = math.sqrt(residuals * n / (n - 1)) / sum(sizes) if n > 1 else None
    return {
        "task": name,
        "shots": None,
        "metric": "bits_per_byte",
        "value": value,
        "stderr": error,
        "ci95": [None, None] if error is None else [value - 1.959964 * error, value + 1.959964 * error],
        "chance": None,
        "reference": f"gzip -9: {gzip_bits_per_byte(texts):.3f}",
        "n": n,
        "official_n": None,
        "primary": False,
        "bytes": sum(sizes),
    }
