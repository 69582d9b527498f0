"""`small-doge serve` and `small-doge webui`: models over HTTP, and in the browser."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Annotated

import typer

ModelList = Annotated[
    list[str], typer.Argument(help="Checkpoint folders or hub ids, as PATH or NAME=PATH. No others are ever served.")
]
Host = Annotated[str, typer.Option(help="Address to listen on.")]
Port = Annotated[int, typer.Option(min=1, max=65535, help="TCP port.")]
Device = Annotated[str | None, typer.Option(help="cpu or cuda; a GPU if there is one.")]
Dtype = Annotated[str | None, typer.Option(help="fp32, bf16, int8 or int4; the engine's default if left out.")]
KeyFile = Annotated[Path | None, typer.Option(help="File of API keys, one a line, plain or as sha256:HEX.")]


def serve(
    models: ModelList,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    ui: Annotated[bool, typer.Option("--ui", help="Serve the chat page too, at /chat.")] = False,
    device: Device = None,
    dtype: Dtype = None,
    api_key_file: KeyFile = None,
    open_to_all: Annotated[bool, typer.Option("--open-to-all", help="Let other machines in without a key.")] = False,
    allowed_host: Annotated[list[str] | None, typer.Option(help="A name that clients call the server by.")] = None,
    cors_origin: Annotated[list[str] | None, typer.Option(help="A web page's origin that may call the API.")] = None,
    rows: Annotated[int, typer.Option(min=1, help="Completions decoded side by side.")] = 16,
    cache_rows: Annotated[int, typer.Option(min=0, help="Sequences kept for prompts that begin alike; 0: off.")] = 4,
    queue: Annotated[int, typer.Option(min=0, help="Completions that may wait; more are answered with 429.")] = 64,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of one completion.")] = 2048,
    request_seconds: Annotated[float, typer.Option(min=1, help="Most time for one request.")] = 300.0,
    grace_seconds: Annotated[float, typer.Option(min=0, help="Time for running requests when told to stop.")] = 10.0,
    log_prompts: Annotated[bool, typer.Option("--log-prompts", help="Write prompts and answers to the log.")] = False,
) -> None:
    """Serve models through an OpenAI-compatible API. Keys may also come from SMALL_DOGE_API_KEYS, by commas."""
    _need("fastapi", "uvicorn", "prometheus_client", "llguidance", *(["gradio"] if ui else []))
    from small_doge.serving.batching import BatchLimits
    from small_doge.serving.security import read_keys
    from small_doge.serving.server import check_settings
    from small_doge.serving.server import serve as run
    from small_doge.serving.settings import ServerSettings
    from small_doge.utils.hardware import default_device

    settings = ServerSettings(
        host=host,
        port=port,
        api_key_hashes=read_keys(api_key_file),
        allowed_hosts=tuple(allowed_host or ()),
        cors_origins=tuple(cors_origin or ()),
        ui=ui,
        log_prompts=log_prompts,
        request_seconds=request_seconds,
        max_completion_tokens=max_tokens,
        grace_seconds=grace_seconds,
        batch=dataclasses.replace(BatchLimits(), rows=rows, cache_rows=cache_rows, queue=queue),
    )
    check_settings(settings, open_to_all)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", force=True)
    run(models, settings, device or str(default_device()), dtype)


def webui(models: ModelList, port: Port = 8000, device: Device = None, dtype: Dtype = None) -> None:
    """Chat with models in the browser, on this machine only."""
    typer.echo(f"open http://127.0.0.1:{port}/chat/ once the models are loaded")
    serve(models, port=port, ui=True, device=device, dtype=dtype)


def _need(*modules: str) -> None:
    """Say which extra is missing, before anything heavy is loaded."""
    from importlib.util import find_spec

    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise ValueError(f"{', '.join(missing)} is not installed: pip install 'small-doge[serve]'.")
