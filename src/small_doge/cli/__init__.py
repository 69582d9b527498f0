"""`small-doge VERB`: every part of the project from the command line, a file for each group of verbs."""

from __future__ import annotations

import logging
import os
import sys

import typer

from small_doge.cli import chat, data, evaluate, models, quickstart, scaling, serve, tokenizer, train

app = typer.Typer(
    help="Train, understand and use your own small language model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(quickstart.quickstart)
app.add_typer(tokenizer.app, name="tokenizer")
app.add_typer(data.app, name="data")
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(train.train)
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
    try:
        app(standalone_mode=True)
    except (ValueError, OSError) as error:
        if os.environ.get("SMALL_DOGE_TRACEBACK"):
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
