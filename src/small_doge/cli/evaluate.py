"""`small-doge eval`: a checkpoint's quality and speed, and checkpoints compared."""

from __future__ import annotations

import json
import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Column
from typer.core import TyperGroup

from small_doge.cli.console import console, plain_table

DEFAULT_COMMAND = "checkpoint"


class CheckpointFirst(TyperGroup):
    """Lets `small-doge eval CHECKPOINT ...` do without the name of its command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "--help"):
            args = [DEFAULT_COMMAND, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=CheckpointFirst,
    help="Measure a checkpoint with `small-doge eval CHECKPOINT ...` (options: `small-doge eval checkpoint --help`), "
    "compare several, or measure speed.",
    no_args_is_help=True,
)


@app.command(DEFAULT_COMMAND)
def evaluate(
    model: Annotated[str, typer.Argument(help="Checkpoint folder or hub id.")],
    text: Annotated[
        list[str] | None, typer.Option(help="Held-out text (file, folder or builtin:python-docs) for bits per byte.")
    ] = None,
    problems: Annotated[int, typer.Option(min=0, help="Number of held-out arithmetic problems to solve.")] = 0,
    tasks: Annotated[
        str | None, typer.Option(help="Tasks of lm-eval, by commas: mmlu,arc_easy,...; `base`, `instruct` or `list`.")
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the tasks' files; the hub if left out.")] = None,
    domains: Annotated[Path | None, typer.Option(help="Folder of held-out text, a file a domain.")] = None,
    shots: Annotated[
        int | None, typer.Option(min=0, help="Worked examples in a prompt; each task's own if left out.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Most items of a task, drawn by the seed.")] = None,
    seed: Annotated[int, typer.Option(help="Of the order of items and the choice of shots.")] = 0,
    chat: Annotated[bool, typer.Option("--chat", help="Ask through the chat template.")] = False,
    batch_tokens: Annotated[int, typer.Option(min=1, help="Padded tokens of one forward.")] = 16384,
    max_length: Annotated[int, typer.Option(min=2, help="Tokens that the model sees at once, for text.")] = 1024,
    megabytes: Annotated[float, typer.Option(min=0.001, help="Most text to read from each --text or domain.")] = 0.5,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; a GPU if there is one.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    output: Annotated[
        Path | None, typer.Option(help="With --tasks or --domains a folder for JSON, Markdown and a plot, else a file.")
    ] = None,
) -> None:
    """Measure a checkpoint: lm-eval's tasks, bits per byte on held-out text, and held-out arithmetic."""
    if tasks is None and domains is None:
        measure_text(model, text or [], problems, max_length, megabytes, device, output)
        return
    if text or problems:
        raise ValueError("--text and --problems go without --tasks and --domains: run them by themselves.")
    from small_doge.evaluation.lists import named_tasks

    names = named_tasks(tasks or "")
    if tasks == "list":
        console.print("\n".join(names), highlight=False)
        return
    if data_dir is not None and not data_dir.is_dir():
        raise ValueError(f"there is no folder {data_dir}: name the one that holds the tasks' files.")
    if find_spec("lm_eval") is None:
        raise ValueError("--tasks and --domains need lm-eval: pip install 'small-doge[eval]'.")
    from small_doge.evaluation.domains import domain_files, domain_row
    from small_doge.evaluation.harness import check_tasks, run_task
    from small_doge.evaluation.lm import load_lm
    from small_doge.evaluation.results import COLUMNS, make_result, shown, write_result
    from small_doge.utils.hardware import default_device, device_name

    files = domain_files(domains) if domains is not None else {}
    folder = str(data_dir) if data_dir else None
    check_tasks(names, folder)
    device = device or str(default_device())
    # lm-eval's remarks are about options that this command does not have.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    lm = load_lm(model, device, dtype, batch_tokens)
    rows = [
        domain_row(lm.model, lm.tokenizer, name, path, max_length, megabytes, batch_tokens)
        for name, path in files.items()
    ]
    found = [run_task(lm, name, folder, shots, limit, seed, chat) for name in names]
    about = {"model": model, "device": device_name(device), "dtype": dtype, "seed": seed, "limit": limit, "chat": chat}
    about["data"] = folder or "hub"
    result = make_result(about, found, rows)
    show(COLUMNS, [shown(row) for row in result["rows"]])
    if output is not None:
        write_result(result, output)
        console.print(f"results: {output}/results.json, results.md, results.png", highlight=False)


@app.command()
def compare(
    results: Annotated[
        list[Path], typer.Argument(help="results.json files, or folders with one; the first is the base.")
    ],
    output: Annotated[Path | None, typer.Option(help="Folder for compare.md and compare.png.")] = None,
) -> None:
    """Set several checkpoints side by side, with the 95 % interval of each difference from the first."""
    from small_doge.evaluation.results import comparison_rows, markdown_table, plot, read_result

    if len(results) < 2:
        raise ValueError("nothing to compare: give at least two results.json files.")
    loaded = [read_result(path) for path in results]
    columns, rows = comparison_rows(loaded)
    show(columns, rows)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        (output / "compare.md").write_text(markdown_table(columns, rows), encoding="utf-8")
        plot(loaded, output / "compare.png")
        console.print(f"comparison: {output}/compare.md, compare.png", highlight=False)


@app.command()
def speed(
    model: Annotated[str, typer.Argument(help="Checkpoint folder, or a size such as 20M with random weights.")],
    device: Annotated[str | None, typer.Option(help="cpu or cuda; a GPU if there is one.")] = None,
    dtype: Annotated[
        str, typer.Option(help="float32, bfloat16 or float16 by torch; fp32, bf16, int8 or int4 by the CPU engine.")
    ] = "float32",
    prompt: Annotated[int, typer.Option(help="Tokens of each prompt.")] = 512,
    new_tokens: Annotated[int, typer.Option(help="Tokens to generate.")] = 64,
    batch: Annotated[int, typer.Option(help="Sequences at once.")] = 1,
    rounds: Annotated[int, typer.Option(help="Times that everything is measured; the median is reported.")] = 5,
    output: Annotated[Path | None, typer.Option(help="Write the rows as JSON to this file.")] = None,
) -> None:
    """Measure tokens/s of prefill and decode, the time to the first token, and memory, on this device."""
    from small_doge.evaluation.speed import measure_speed
    from small_doge.utils.hardware import default_device

    rows = measure_speed(model, device or str(default_device()), dtype, prompt, new_tokens, batch, rounds)
    console.print(f"{rows[0]['device']}: {rows[0]['variant']}", highlight=False)
    show(
        ("metric", "median", "min", "max", "n"),
        [[row["metric"], *(f"{row[key]:,.4g}" for key in ("value", "min", "max")), str(row["n"])] for row in rows],
    )
    if output is not None:
        output.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def measure_text(
    model: str,
    text: list[str],
    problems: int,
    max_length: int,
    megabytes: float,
    device: str | None,
    output: Path | None,
) -> None:
    """Bits per byte on each text beside gzip's, and accuracy on held-out arithmetic."""
    from small_doge.evaluation.summary import evaluate_checkpoint

    rows = evaluate_checkpoint(model, text, problems, max_length, megabytes, device)
    show(
        ("measured", "on", "value", "n", "95 % interval", "beside it"),
        [[str(row[key]) for key in ("metric", "data", "value", "n", "ci95", "reference")] for row in rows],
    )
    if output is not None:
        output.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def show(columns: Any, rows: list[list[str]]) -> None:
    """Print a table."""
    table = plain_table(*(Column(name, no_wrap=name in ("task", "metric")) for name in columns))
    for row in rows:
        table.add_row(*row)
    console.print(table)
