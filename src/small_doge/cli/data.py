"""`small-doge data`: the built-in sources, and prepared data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from small_doge.cli.console import console

app = typer.Typer(help="The built-in data, and prepared data sets.", no_args_is_help=True)


@app.command("list")
def data_list() -> None:
    """List the sources that need no download."""
    from small_doge.processor.builtin import BUILTIN_SOURCES

    for name, source in BUILTIN_SOURCES.items():
        console.print(f"{name}: {source.description}", highlight=False)


@app.command("inspect")
def data_inspect(
    folder: Annotated[Path, typer.Argument(help="Folder of a prepared data set.")],
    rows: Annotated[int, typer.Option(help="Rows to show.")] = 2,
) -> None:
    """Show the splits, columns and first rows of a prepared data set."""
    from datasets import load_from_disk

    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}: name one that a data set was saved to.")
    for split, data in load_from_disk(str(folder)).items():
        console.print(
            f"[bold]{split}[/bold]: {len(data):,} rows, columns {', '.join(data.column_names)}", highlight=False
        )
        for row in data.select(range(min(rows, len(data)))):
            console.print(str(row)[:600], markup=False, highlight=False)
