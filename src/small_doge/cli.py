"""`small-doge VERB`: every part of the project from the command line."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer(
    help="Train, understand and use your own small language model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
tokenizer_app = typer.Typer(help="Train a tokenizer, or look at one.", no_args_is_help=True)
data_app = typer.Typer(help="The built-in data, and prepared data sets.", no_args_is_help=True)
app.add_typer(tokenizer_app, name="tokenizer")
app.add_typer(data_app, name="data")
console = Console()

STAGES = ("pt", "sft", "dpo", "grpo")


@app.command()
def quickstart(
    out: Annotated[
        Path, typer.Option(help="Folder of the run; the same folder goes on where it was interrupted.")
    ] = Path("runs/quickstart"),
    data: Annotated[
        Path | None, typer.Option(help="Your own folder of .txt, .md, .jsonl(.zst/.gz) or .parquet files.")
    ] = None,
    chat_after: Annotated[bool, typer.Option("--chat/--no-chat", help="Open a chat at the end, in a terminal.")] = True,
) -> None:
    """Walk the whole road: text, tokenizer, pretraining, SFT, DPO, distillation, GRPO, report, chat."""
    from small_doge.quickstart.report import make_report
    from small_doge.quickstart.road import STAGE_NAMES, Road

    road = Road(out, data)
    state = road.run()
    answers = road.sample_answers()
    report = make_report(out, state, answers, {stage: road.checkpoint(stage) for stage in STAGE_NAMES})
    console.print(f"report: {out / 'report.html'} ({report['seconds']['total']:.0f} seconds in all)", highlight=False)
    if chat_after and sys.stdin.isatty() and sys.stdout.isatty():
        chat(str(road.checkpoint(STAGE_NAMES[-1])))
        return
    for sample in answers:
        console.print(f"\n[bold]{sample['question']}[/bold]")
        console.print(sample["answer"], markup=False, highlight=False)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def train(
    context: typer.Context,
    stage: Annotated[str, typer.Argument(help="pt, sft, dpo or grpo.")],
) -> None:
    """Run one stage: --config RECIPE.yaml, then any option of the recipe as --name value."""
    from importlib import import_module

    if stage not in STAGES:
        raise ValueError(f"there is no stage {stage!r}: choose one of {', '.join(STAGES)}.")
    import_module(f"small_doge.trainer.doge.{stage}").main(context.args)


@tokenizer_app.command("train")
def tokenizer_train(
    sources: Annotated[list[str], typer.Argument(help="Text: files, folders or built-in sources.")],
    out: Annotated[Path, typer.Option(help="Folder to save it to.")] = Path("tokenizer"),
    vocab_size: Annotated[int, typer.Option(help="Number of tokens.")] = 32768,
) -> None:
    """Train a byte-level BPE tokenizer with the family's special tokens and chat template."""
    from small_doge.processor.documents import iter_documents
    from small_doge.processor.tokenizer import train_tokenizer

    texts = (document.text for source in sources for document in iter_documents(source))
    tokenizer = train_tokenizer(texts, vocab_size, show_progress=console.is_terminal)
    tokenizer.save_pretrained(str(out))
    console.print(f"{len(tokenizer):,} tokens saved to {out}", highlight=False)


@tokenizer_app.command("inspect")
def tokenizer_inspect(
    tokenizer: Annotated[str, typer.Argument(help="Tokenizer folder or hub id.")],
    text: Annotated[str, typer.Option(help="Text to encode.")] = "The quick brown fox jumps over 13 lazy dogs.",
) -> None:
    """Show a tokenizer's size and special tokens, and how it cuts a text."""
    from small_doge.processor.tokenizer import load_tokenizer

    loaded = load_tokenizer(tokenizer)
    ids = loaded(text, add_special_tokens=False)["input_ids"]
    console.print(f"{len(loaded):,} tokens; {len(ids)} for {len(text.encode())} bytes", highlight=False)
    special = {"bos": loaded.bos_token, "eos": loaded.eos_token, "pad": loaded.pad_token}
    console.print(" ".join(f"{name}={token}" for name, token in special.items()), markup=False, highlight=False)
    console.print(" | ".join(loaded.decode([i]) for i in ids), markup=False, highlight=False)


@data_app.command("list")
def data_list() -> None:
    """List the sources that need no download."""
    from small_doge.processor.builtin import BUILTIN_SOURCES

    for name, source in BUILTIN_SOURCES.items():
        console.print(f"{name}: {source.description}", highlight=False)


@data_app.command("inspect")
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


@app.command("eval")
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


@app.command()
def chat(
    model: Annotated[str, typer.Argument(help="Checkpoint folder or hub id.")],
    temperature: Annotated[float, typer.Option(help="0 takes the most likely token.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Keep the likeliest tokens up to this share.")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 256,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; a GPU if there is one.")] = None,
) -> None:
    """Talk to a model in the terminal."""
    from small_doge.chat import Chat
    from small_doge.inference import load
    from small_doge.inference.sampling import SamplingParams
    from small_doge.utils.hardware import default_device

    engine = load(model, device=device or str(default_device()))
    params = SamplingParams(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p)
    Chat(engine, params, console).run()


@app.command()
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


def main() -> None:
    """Run the command line; a user's mistake is one line on stderr and exit code 2."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        app(standalone_mode=True)
    except (ValueError, OSError) as error:
        if os.environ.get("SMALL_DOGE_TRACEBACK"):
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
