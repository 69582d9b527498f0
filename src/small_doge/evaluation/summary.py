"""Figures of a checkpoint or of a size, as rows for a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoConfig

from small_doge.evaluation.likelihood import bits_per_byte, gzip_bits_per_byte
from small_doge.evaluation.problems import solve
from small_doge.inference import load
from small_doge.models.doge.accounting_doge import cache_bytes_per_sequence, count_parameters, training_flops_per_token
from small_doge.models.doge.configuration_doge import SIZES, DogeConfig
from small_doge.models.loading import load_checkpoint
from small_doge.processor.builtin import BUILTIN_SOURCES
from small_doge.processor.documents import iter_documents
from small_doge.utils.hardware import default_device, device_name, peak_flops
from small_doge.utils.places import refuse_missing
from small_doge.utils.scaling_laws import RELEASED_RUNS


def evaluate_checkpoint(
    model: str, texts: Sequence[str], problems: int, max_length: int, megabytes: float, device: str | None
) -> list[dict[str, Any]]:
    """Bits per byte on each text source and accuracy on held-out arithmetic, each with its number of items.

    Raises:
        ValueError: nothing to measure, or a source that cannot be read.
    """
    if not texts and not problems:
        raise ValueError("nothing to measure: give --tasks NAMES, --domains FOLDER, --text SOURCE or --problems N.")
    device = device or str(default_device())
    engine = load(model, device=device, dtype="float32")
    rows: list[dict[str, Any]] = []
    weights = nn.Module.to(load_checkpoint(model), device) if texts else None
    for source in texts:
        assert weights is not None
        documents = read_up_to(source, megabytes)
        if not documents:
            raise ValueError(f"{source} holds no text: give a file or folder with some.")
        value = bits_per_byte(weights, engine.tokenizer, documents, max_length)
        # In the order that serves gzip best: its window then holds what is alike.
        reference = f"gzip -9: {gzip_bits_per_byte(sorted(documents)):.4f}"
        rows.append(row("bits per byte", source, f"{value:.4f}", len(documents), "", reference))
    if problems:
        tests = list(BUILTIN_SOURCES["builtin:arithmetic"](n=problems, split="test"))
        scores = solve(engine, tests)
        low, high = scores.ci95
        interval = f"{low:.1%} to {high:.1%}"
        rows.append(row("accuracy, greedy", "builtin:arithmetic", f"{scores.accuracy:.1%}", problems, interval, ""))
        rows.append(row("well-formed thinking", "builtin:arithmetic", f"{scores.format_rate:.1%}", problems, "", ""))
    return rows


def row(metric: str, data: str, value: str, n: int, ci95: str, reference: str) -> dict[str, Any]:
    """One line of the table."""
    return {"metric": metric, "data": data, "value": value, "n": n, "ci95": ci95, "reference": reference}


def read_up_to(source: str, megabytes: float) -> list[str]:
    """Documents of a source until they hold that much text."""
    texts: list[str] = []
    left = megabytes * 1e6
    for document in iter_documents(source):
        texts.append(document.text)
        left -= len(document.text.encode())
        if left <= 0:
            break
    return texts


def describe_model(name: str, length: int) -> dict[str, str]:
    """A size's or checkpoint's exact counts, for sequences of `length` tokens.

    Raises:
        ValueError: neither a size nor a checkpoint of the family.
    """
    if Path(name).exists() or "/" in name:
        refuse_missing(name)
        config = AutoConfig.from_pretrained(name)
        if not isinstance(config, DogeConfig):
            raise ValueError(f"{name} is a {config.model_type}: this counts Doge models only.")
        budget = None
    else:
        config, budget = DogeConfig.from_size(name), RELEASED_RUNS.get(name.removeprefix("Doge-"))
    count = count_parameters(config)
    flops = training_flops_per_token(config, length)
    device = default_device()
    peak = peak_flops(device_name(device)) if device.type == "cuda" else None
    tokens = budget.tokens if budget else None
    return {
        "model": f"Doge-{name}" if name in SIZES else name,
        "parameters": f"{count.total:,}",
        "not embedding": f"{count.total - count.embedding:,}",
        "active": f"{count.active:,}",
        "training FLOPs a token": f"{flops / 1e6:,.1f} M",
        "bf16 weights": f"{count.total * 2 / 2**20:,.0f} MiB",
        "training memory": f"{count.total * 16 / 2**20:,.0f} MiB",
        "full cache a sequence": f"{cache_bytes_per_sequence(config) / 2**20:,.1f} MiB",
        "token budget": f"{tokens / 1e9:.1f} B" if tokens else "",
        f"floor on {device_name(device)}" if peak else "floor on this GPU": (
            f"{tokens * flops / peak / 3600:.2f} h" if tokens and peak else "n/a"
        ),
    }
