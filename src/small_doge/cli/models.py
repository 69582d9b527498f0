"""`small-doge info`, `upcycle` and `convert`: models in figures, and one made out of another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Column

from small_doge.cli.console import console, plain_table

MODELS_ABREAST = 4


def info(
    model: Annotated[
        str | None, typer.Argument(help="A size such as 20M, or a checkpoint folder; all sizes if left out.")
    ] = None,
    length: Annotated[int, typer.Option(min=1, help="Sequence length that FLOPs are counted for.")] = 2048,
) -> None:
    """Print exact parameter counts, FLOPs a token, memory, and the time on the GPU at hand."""
    from small_doge.evaluation.summary import describe_model
    from small_doge.models.doge.configuration_doge import SIZES

    names = [model] if model else list(SIZES)
    models = [describe_model(name, length) for name in names]
    # Side by side, as many as fit 80 columns.
    for start in range(0, len(models), MODELS_ABREAST):
        abreast = models[start : start + MODELS_ABREAST]
        heads = (Column(found["model"], justify="right", overflow="fold") for found in abreast)
        table = plain_table("", *heads)
        table.padding = 0
        for name in list(abreast[0])[1:]:
            table.add_row(name, *(found[name] for found in abreast))
        console.print(table)
    console.print(
        "Training memory: fp32 weights, gradients and two AdamW moments, without activations. "
        "Token budget: the released run's. Floor: that budget at the GPU's bf16 peak, which no run reaches.",
        highlight=False,
    )


def upcycle(
    dense: Annotated[str, typer.Argument(help="Folder or hub id of a dense Doge.")],
    out: Annotated[Path, typer.Argument(help="Folder to write the mixture to.")],
    num_experts: Annotated[int, typer.Option(min=1, help="Number of experts, a perfect square.")] = 1024,
    num_experts_per_tok: Annotated[int, typer.Option(min=1, help="Experts that a token is sent to.")] = 16,
    balance: Annotated[float, typer.Option(help="Weight of the balance loss in training; 0 for none.")] = 0.001,
    seed: Annotated[int, typer.Option(help="Seed of the new weights.")] = 0,
) -> None:
    """Grow a mixture of experts out of a dense Doge; its logits are the same until it is trained."""
    from small_doge.models.doge.conversion import obstacle_for_transformers
    from small_doge.models.doge.folders import upcycle_folder

    model = upcycle_folder(dense, out, num_experts, num_experts_per_tok, balance, seed)
    console.print(f"{out}: {_sizes(model.config)}", highlight=False)
    _warn_of_transformers("doge", obstacle_for_transformers(model.config))


def convert(
    source: Annotated[str, typer.Argument(help="Folder or hub id of a Doge of any layout, a Llama or a Mistral.")],
    out: Annotated[Path, typer.Argument(help="Folder to write to.")],
    to: Annotated[str, typer.Option(help="doge, transformers, older, remote-code or llama.")] = "doge",
) -> None:
    """Write a checkpoint in another layout, with the same logits; where that is impossible, say why."""
    from small_doge.models.doge.conversion import obstacle_for_transformers
    from small_doge.models.doge.folders import TARGETS, convert_folder

    model = convert_folder(source, out, to)
    console.print(f"{out}: {TARGETS[to]}; {_sizes(model.config)}", highlight=False)
    _warn_of_transformers(to, obstacle_for_transformers(model.config))


def _warn_of_transformers(to: str, obstacle: str | None) -> None:
    # transformers has a Doge of its own, and computes something else from such a folder without a word.
    if obstacle is not None and to != "remote-code":
        console.print(
            f"Import small_doge before you load it, since transformers' own Doge would read it wrongly: {obstacle}",
            highlight=False,
        )


def _sizes(config: Any) -> str:
    from small_doge.models.doge.accounting_doge import count_parameters

    count = count_parameters(config)
    used = f", {count.active:,} of them for each token" if count.active < count.total else ""
    return f"{count.total:,} parameters{used}"
