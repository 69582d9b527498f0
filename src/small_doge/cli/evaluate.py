"""`small-doge eval`: the figures of a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from small_doge.cli.console import console


def evaluate(
    model: Annotated[str, typer.Argument(help="Checkpoint folder or hub id.")],
    text: Annotated[
        list[str] | None, typer.Option(help="Held-out text (file, folder or builtin:python-docs) for bits per byte.")
    ] = None,
    problems: Annotated[int, typer.Option(help="Number of held-out arithmetic problems to solve.")] = 0,
    max_length: Annotated[int, typer.Option(help="Tokens that the model sees at once.")] = 1024,
    megabytes: Annotated[float, typer.Option(help="Most text to read from each --text.")] = 0.5,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; a GPU if there is one.")] = None,
    output: Annotated[Path | None, typer.Option(help="Write the figures as JSON to this file.")] = None,
) -> None:
    """Measure a checkpoint: bits per byte on held-out text beside gzip's, and accuracy on held-out arithmetic."""
    from small_doge.evaluation.summary import evaluate_checkpoint

    rows = evaluate_checkpoint(model, text or [], problems, max_length, megabytes, device)
    table = Table("measured", "on", "value", "n", "95 % interval", "beside it")
    for row in rows:
        table.add_row(*(str(row[key]) for key in ("metric", "data", "value", "n", "ci95", "reference")))
    console.print(table)
    if output is not None:
        output.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
