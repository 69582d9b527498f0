"""`small-doge quickstart`: the whole road in one command."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from small_doge.cli.chat import chat
from small_doge.cli.console import console


def quickstart(
    out: Annotated[
        Path,
        typer.Option(file_okay=False, help="Folder of the run; the same folder goes on where it was interrupted."),
    ] = Path("runs/quickstart"),
    data: Annotated[
        Path | None, typer.Option(help="Your own folder of .txt, .md, .jsonl(.zst/.gz) or .parquet files.")
    ] = None,
    chat_after: Annotated[bool, typer.Option("--chat/--no-chat", help="Open a chat at the end, in a terminal.")] = True,
) -> None:
    """Walk the whole road: text, tokenizer, pretraining, SFT, DPO, distillation, GRPO, report, chat."""
    import datasets

    from small_doge.quickstart.report import make_report
    from small_doge.quickstart.road import STAGE_NAMES, Road
    from small_doge.trainer.recipe import quiet_renaming

    # The terminal is left to the road's own progress.
    datasets.disable_progress_bars()
    quiet_renaming()
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
