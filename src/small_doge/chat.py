"""A chat in the terminal: answers appear as they are made, thoughts dimmed."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console

from small_doge.inference.engine import Engine
from small_doge.inference.sampling import SamplingParams

HELP = (
    "/reset forgets the conversation, /system TEXT sets the system message, /params shows the sampling, /exit leaves."
)
TAGS = {"<think>": True, "</think>": False}


class Chat:
    """One conversation with a model.

    Args:
        engine: The model.
        params: How to sample.
        console: Where to print.
    """

    def __init__(self, engine: Engine, params: SamplingParams, console: Console | None = None) -> None:
        self.engine, self.params = engine, params
        self.console = console or Console()
        self.system: str | None = None
        self.messages: list[dict[str, Any]] = []

    def run(self) -> None:
        """Talk until the person leaves (/exit, Ctrl-D or Ctrl-C)."""
        self.console.print(f"[dim]{HELP}[/dim]")
        while True:
            try:
                line = self.console.input("[bold]you>[/bold] ").strip()
            except (EOFError, KeyboardInterrupt):
                self.console.print()
                return
            if line == "/exit":
                return
            if line:
                self.take(line)

    def take(self, line: str) -> None:
        """Obey a command, or answer."""
        command, _, rest = line.partition(" ")
        if command == "/reset":
            self.messages.clear()
        elif command == "/system":
            self.system = rest.strip() or None
        elif command == "/params":
            self.console.print(self.params)
        elif command.startswith("/"):
            self.console.print(f"there is no command {command}. {HELP}")
        else:
            self.answer(line)

    def answer(self, question: str) -> None:
        """Add the question to the conversation and print the answer as it comes; Ctrl-C stops the answer only."""
        self.messages.append({"role": "user", "content": question})
        prompt = [{"role": "system", "content": self.system}, *self.messages] if self.system else self.messages
        pieces: list[str] = []
        thinking = False
        start = time.monotonic()
        try:
            for piece in self.engine.stream(prompt, self.params):
                pieces.append(piece)
                thinking = TAGS.get(piece.strip(), thinking)
                style = "dim" if thinking or piece.strip() in TAGS else None
                self.console.print(piece, end="", style=style, markup=False, highlight=False, soft_wrap=True)
        except KeyboardInterrupt:
            self.console.print(" [dim](stopped)[/dim]", end="")
        seconds = time.monotonic() - start
        self.messages.append({"role": "assistant", "content": "".join(pieces)})
        rate = len(pieces) / seconds if seconds > 0 else 0.0
        self.console.print(f"\n[dim]{len(pieces)} pieces, {rate:.0f} a second[/dim]")
