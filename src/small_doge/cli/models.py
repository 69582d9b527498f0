"""`small-doge info`: sizes and checkpoints in figures."""

from __future__ import annotations

from typing import Annotated

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
