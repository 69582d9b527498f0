"""`small-doge train`: one stage."""

from __future__ import annotations

from typing import Annotated

import typer

STAGES = ("pt", "sft", "dpo", "distill", "grpo")


def train(
    context: typer.Context,
    stage: Annotated[str, typer.Argument(help="pt, sft, dpo, distill or grpo.")],
) -> None:
    """Run one stage: --config RECIPE.yaml, then any option of the recipe as --name value.

    `small-doge train pt --help` lists the options of a stage.
    """
    from importlib import import_module

    if stage == "--help":
        typer.echo(context.get_help())
        return
    if stage not in STAGES:
        raise ValueError(f"there is no stage {stage!r}: choose one of {', '.join(STAGES)}.")
    from small_doge.trainer.recipe import quiet_renaming

    quiet_renaming()
    import_module(f"small_doge.trainer.doge.{stage}").main(context.args)
