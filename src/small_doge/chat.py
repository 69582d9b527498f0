"""A chat in the terminal: answers appear as they are made, thoughts are folded."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.status import Status
from rich.table import Table

from small_doge.inference.sampling import SamplingParams
from small_doge.serving.reply import Content, Reasoning, ReplyParser
from small_doge.serving.text import TextCodec

HELP = {
    "/system [TEXT]": "set the system message, or take it away",
    "/params [NAME=VALUE ...]": "show how answers are drawn, or change it; thinking=on, off or auto too",
    "/think": "show the last thought",
    "/reset": "forget the conversation",
    "/save FILE": "write the conversation to a file: .json, or Markdown",
    "/help": "show this",
    "/exit": "leave; so do Ctrl-D and Ctrl-C (which stops an answer first)",
}
THINKING = {"auto": None, "on": True, "off": False}
BLOCK = '"""'


class ChatEngine(Protocol):
    """What the chat asks of an engine; `small_doge.inference.load` gives one."""

    tokenizer: Any

    def stream(self, prompt: list[int], params: SamplingParams) -> Any:
        """The completion's text, piece by piece."""


class Chat:
    """One conversation with a model.

    Args:
        engine: The model.
        params: How to sample.
        console: Where to print.
    """

    def __init__(self, engine: ChatEngine, params: SamplingParams, console: Console | None = None) -> None:
        self.engine, self.params = engine, params
        self.console = console or Console()
        self.codec = TextCodec(engine.tokenizer)
        self.system: str | None = None
        self.thinking = "auto"
        self.messages: list[dict[str, Any]] = []
        self._commands: dict[str, Callable[[str], None]] = {
            "/system": self._set_system,
            "/params": self._set_params,
            "/think": self._show_thought,
            "/reset": self._reset,
            "/save": self._save,
            "/help": self._help,
        }

    def run(self) -> None:
        """Talk until the person leaves (/exit, Ctrl-D or Ctrl-C)."""
        self.console.print(f"[dim]/help lists the commands; {BLOCK} begins and ends a message of several lines.[/dim]")
        while True:
            try:
                text = self.read()
            except (EOFError, KeyboardInterrupt):
                self.console.print()
                return
            if text == "/exit":
                return
            if text:
                self.take(text)

    def read(self) -> str:
        """One message: a line, or the lines between triple quotes.

        Raises:
            EOFError: there is no more input.
        """
        line = self.console.input("[bold]you>[/bold] ").strip()
        if not line.startswith(BLOCK):
            return line
        text = line.removeprefix(BLOCK)
        while BLOCK not in text:
            text += "\n" + self.console.input("[dim]...>[/dim] ")
        return text.partition(BLOCK)[0].strip("\n")

    def take(self, text: str) -> None:
        """Obey a command, or answer; a mistake is one line and changes nothing."""
        command, _, rest = text.partition(" ")
        if not text.startswith("/"):
            self.answer(text)
        elif command in self._commands:
            try:
                self._commands[command](rest.strip())
            except (ValueError, OSError) as error:
                self.console.print(f"{error}", style="red", markup=False, highlight=False)
        else:
            self.console.print(f"there is no command {command}: /help lists them.", markup=False, highlight=False)

    def answer(self, question: str) -> None:
        """Add the question to the conversation and print the answer as it comes; Ctrl-C stops the answer only."""
        prompt = [{"role": "system", "content": self.system}] if self.system else []
        prompt += [*self.messages, {"role": "user", "content": question}]
        ids, thinking = self.codec.render(prompt, None, THINKING[self.thinking])
        reply = Reply(self.console, thinking)
        start = time.monotonic()
        try:
            for piece in self.engine.stream(ids, self.params):
                reply.push(piece)
        except KeyboardInterrupt:
            reply.stopped = True
        reply.finish()
        seconds = time.monotonic() - start
        message = {"role": "assistant", "content": reply.content}
        if reply.thought:
            message["reasoning_content"] = reply.thought
        self.messages += [{"role": "user", "content": question}, message]
        tokens = len(self.codec.encode(reply.thought + reply.content)) - 1
        note = f"{tokens} tokens, {tokens / max(seconds, 1e-6):,.0f} tokens/s{', stopped' if reply.stopped else ''}"
        self.console.print(f"\n[dim]{note}[/dim]", highlight=False)

    def _set_system(self, text: str) -> None:
        self.system = text or None

    def _reset(self, text: str) -> None:
        self.messages.clear()

    def _help(self, text: str) -> None:
        table = Table(show_header=False, box=None)
        for command, meaning in HELP.items():
            table.add_row(command.replace("[", "\\["), meaning)
        self.console.print(table, highlight=False)

    def _show_thought(self, text: str) -> None:
        thoughts = [message["reasoning_content"] for message in self.messages if "reasoning_content" in message]
        self.console.print(thoughts[-1] if thoughts else "there was no thought.", style="dim", markup=False)

    def _set_params(self, text: str) -> None:
        fields = {field.name: getattr(self.params, field.name) for field in dataclasses.fields(self.params)}
        changes: dict[str, Any] = {}
        for pair in text.split():
            name, _, value = pair.partition("=")
            if name == "thinking":
                if value not in THINKING:
                    raise ValueError(f"thinking is {value!r}: choose on, off or auto.")
                self.thinking = value
            elif name not in fields:
                raise ValueError(f"there is no {name}: the names are {', '.join(fields)} and thinking (on, off, auto).")
            else:
                try:
                    changes[name] = json.loads(value)
                except ValueError:
                    raise ValueError(f"{name}={value} is no number: write for example temperature=0.7.") from None
        self.params = dataclasses.replace(self.params, **changes)
        shown = {**fields, **changes, "thinking": self.thinking}
        self.console.print(", ".join(f"{name}={value}" for name, value in shown.items()), highlight=False)

    def _save(self, name: str) -> None:
        if not name:
            raise ValueError("/save needs a file name, such as /save chat.md.")
        messages = [{"role": "system", "content": self.system}] if self.system else []
        messages += self.messages
        if name.endswith(".json"):
            text = json.dumps(messages, ensure_ascii=False, indent=2) + "\n"
        else:
            text = "".join(f"## {message['role']}\n\n{message['content']}\n\n" for message in messages)
        Path(name).write_text(text, encoding="utf-8")
        self.console.print(f"saved to {name}", markup=False, highlight=False)


class Reply:
    """Prints one reply: a line says that the model thinks, and the answer follows as it comes.

    Args:
        console: Where to print.
        thinking: Whether the prompt has opened a thought.
    """

    def __init__(self, console: Console, thinking: bool) -> None:
        self.console = console
        self.thought, self.content = "", ""
        self.stopped = False
        self._parser = ReplyParser(thinking)
        self._status: Status | None = None

    def push(self, text: str) -> None:
        """Take more text in and show it."""
        self._show(self._parser.push(text))

    def finish(self) -> None:
        """Show the rest."""
        self._show(self._parser.finish())
        self._fold()

    def _show(self, parts: list[Any]) -> None:
        for part in parts:
            if isinstance(part, Reasoning):
                self.thought += part.text
                if self._status is None:
                    self._status = self.console.status("[dim]thinking[/dim]")
                    self._status.start()
                self._status.update(f"[dim]thinking ({len(self.thought.split())} words)[/dim]")
            elif isinstance(part, Content):
                self._fold()
                self.content += part.text
                self.console.print(part.text, end="", markup=False, highlight=False, soft_wrap=True)

    def _fold(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None
            self.console.print(f"[dim](thought of {len(self.thought.split())} words: /think shows it)[/dim]")
