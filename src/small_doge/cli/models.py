"""`small-doge info`, `upcycle` and `convert`: models in figures, and one made out of another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from small_doge.cli.console import console


def info(
    model: Annotated[
        str | None, typer.Argument(help="A size such as 20M, or a checkpoint folder; all sizes if left out.")
    ] = None,
    length: Annotated[int, typer.Option(help="Sequence length that FLOPs are counted for.")] = 2048,
) -> None:
    """Print exact parameter counts, FLOPs a token, memory, and the time on the GPU at hand."""
    from small_doge.evaluation.summary import describe_model
    from small_doge.models.doge.configuration_doge import SIZES

    names = [model] if model else list(SIZES)
    rows = [describe_model(name, length) for name in names]
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*row.values())
    console.print(table)
    console.print(
        "Training memory: fp32 weights, gradients and two AdamW moments, without activations. "
        "Time: the seeds' token budget at the device's bf16 peak, a floor that no run reaches.",
        highlight=False,
    )


def upcycle(
    dense: Annotated[str, typer.Argument(help="Folder or hub id of a dense Doge.")],
    out: Annotated[Path, typer.Argument(help="Folder to write the mixture to.")],
    num_experts: Annotated[int, typer.Option(help="Number of experts, a perfect square.")] = 1024,
    num_experts_per_tok: Annotated[int, typer.Option(help="Experts that a token is sent to.")] = 16,
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
            f"Import small_doge before you load it: transformers' own Doge would read it wrongly: {obstacle}",
            highlight=False,
        )


def _sizes(config: Any) -> str:
    from small_doge.models.doge.accounting_doge import count_parameters

    count = count_parameters(config)
    return f"{count.total:,} parameters, {count.active:,} of them for each token"
