"""`small-doge VERB`: every part of the project from the command line, a file for each group of verbs."""

from __future__ import annotations

import logging
import os
import sys
from typing import Annotated

import typer
from huggingface_hub.utils.logging import disable_propagation
from transformers.utils.logging import disable_progress_bar

from small_doge import __version__
from small_doge.cli import chat, data, evaluate, models, quickstart, scaling, serve, tokenizer, train

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def show_version(wanted: bool) -> None:
    """Print the version and leave, where it is asked for."""
    if wanted:
        typer.echo(f"small-doge {__version__}")
        raise typer.Exit


@app.callback()
def small_doge(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Train, understand and use your own small language model."""


app.command()(quickstart.quickstart)
app.add_typer(tokenizer.app, name="tokenizer")
app.add_typer(data.app, name="data")
# A stage's --help is the stage's to answer.
PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True}
app.command(context_settings=PASSED_ON, add_help_option=False)(train.train)
app.add_typer(evaluate.app, name="eval")
app.command()(chat.chat)
app.command()(serve.serve)
app.command()(serve.webui)
app.command()(models.info)
app.command()(models.upcycle)
app.command()(models.convert)
app.command()(scaling.scaling)


def main() -> None:
    """Run the command line; a user's mistake is one line on stderr and exit code 2."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    # The Hub's library prints its remarks itself; and a bar for each file says nothing of models of this size.
    disable_propagation()
    disable_progress_bar()
    try:
        app(standalone_mode=True)
    except (ValueError, OSError) as error:
        if os.environ.get("SMALL_DOGE_TRACEBACK"):
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
