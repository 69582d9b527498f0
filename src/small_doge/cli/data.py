"""`small-doge data`: sources by name, recipes to data sets, and looking at prepared ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.table import Column

from small_doge.cli.console import console, plain_table

app = typer.Typer(help="Sources by name, and data sets prepared from them.", no_args_is_help=True)

LONGEST_SHOWN = 1500


@app.command("list")
def data_list() -> None:
    """List every source that is known by name, and where it would be read from."""
    from small_doge.processor.prepare import list_sources

    table = plain_table(Column("name", no_wrap=True), "kind", Column("holds; license; read from", overflow="fold"))
    for row in list_sources():
        about = filter(None, (row["description"], row["license"], row["from"]))
        table.add_row(row["name"], row["kind"], "; ".join(about))
    console.print(table)


@app.command("show")
def data_show(
    name: Annotated[str, typer.Argument(help="A name from `data list`, a file, folder or pattern, or a hub id.")],
    rows: Annotated[int, typer.Option(min=0, help="Rows to read and show; 0 only says what is known.")] = 2,
) -> None:
    """Show what is known of a source (hub id, fields, license, citation) and its first rows."""
    from small_doge.processor.prepare import show_source

    shown = show_source(name, rows)
    first = shown.pop("rows")
    for key, value in shown.items():
        text = ", ".join(f"{k} ({v})" for k, v in value.items()) if isinstance(value, dict) else value
        console.print(f"{key}: {text}", markup=False, highlight=False)
    for row in first:
        console.print(
            _short(json.dumps(row, ensure_ascii=False, default=str)), markup=False, highlight=False, soft_wrap=True
        )


@app.command("prepare")
def data_prepare(
    recipe: Annotated[Path, typer.Argument(help="A YAML file such as recipes/data/pretrain.yaml.")],
    change: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE in place of the recipe's; repeat for more.")
    ] = None,
) -> None:
    """Make the data set of a recipe; a run that was killed goes on where it was."""
    from small_doge.processor.prepare import prepare, read_recipe

    overrides: dict[str, Any] = {}
    for item in change or []:
        key, equals, value = item.partition("=")
        if not equals:
            raise ValueError(f"--set {item} has no value: write --set KEY=VALUE.")
        try:
            overrides[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ValueError(
                f"--set {item} is not valid YAML: quote the value, such as 'quality={{min_characters: 9}}'."
            ) from None
    report = prepare(recipe, overrides)
    output = {**read_recipe(recipe), **overrides}["output"]
    console.print(report.summary(), markup=False, highlight=False)
    console.print(f"saved to {output}", markup=False, highlight=False)


@app.command("inspect")
def data_inspect(
    folder: Annotated[Path, typer.Argument(help="Folder of a prepared data set.")],
    tokenizer: Annotated[str | None, typer.Option(help="Tokenizer to show rows of tokens as text with.")] = None,
    rows: Annotated[int, typer.Option(min=0, help="Rows to show of each part.")] = 1,
) -> None:
    """Show the parts, columns, report and first rows of a prepared data set; answers stand between ⟦ and ⟧."""
    from small_doge.processor.prepare import inspect_folder
    from small_doge.processor.report import REPORT_FILE, Report

    shown = inspect_folder(folder, tokenizer, rows)
    for name, part in shown["parts"].items():
        tokens = f", {part['tokens']:,} tokens" if "tokens" in part else ""
        console.print(
            f"{name}: {part['rows']:,} rows{tokens}, columns {', '.join(part['columns'])}",
            markup=False,
            highlight=False,
        )
        for row in part["first_rows"]:
            console.print(_short(json.dumps(row, ensure_ascii=False)), markup=False, highlight=False, soft_wrap=True)
    if (folder / REPORT_FILE).exists():
        console.print(Report.load(folder).summary(), markup=False, highlight=False)


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}... ({len(text):,} characters)"
