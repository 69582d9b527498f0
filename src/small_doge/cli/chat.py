"""`small-doge chat`: a model in the terminal."""

from __future__ import annotations

from typing import Annotated

import typer

from small_doge.cli.console import console


def chat(
    model: Annotated[str, typer.Argument(help="Checkpoint folder or hub id.")],
    temperature: Annotated[float, typer.Option(help="0 takes the most likely token.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Keep the likeliest tokens up to this share.")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 256,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; a GPU if there is one.")] = None,
) -> None:
    """Talk to a model in the terminal."""
    from small_doge.chat import Chat
    from small_doge.inference import load
    from small_doge.inference.sampling import SamplingParams
    from small_doge.utils.hardware import default_device

    engine = load(model, device=device or str(default_device()))
    params = SamplingParams(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p)
    session = Chat(engine, params, console)
    session.system = system
    session.run()
