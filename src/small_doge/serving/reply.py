"""A reply taken apart while it comes: the thought, the answer and the calls of functions."""

from __future__ import annotations

import json
import uuid
from collections.abc import Collection
from dataclasses import dataclass, field

from small_doge.processor.reasoning_tags import FAMILIES
from small_doge.serving.text import partial_suffix

CALL_OPENING, CALL_CLOSING = "<tool_call>", "</tool_call>"


@dataclass(frozen=True)
class Reasoning:
    """A piece of the thought."""

    text: str


@dataclass(frozen=True)
class Content:
    """A piece of the answer."""

    text: str


@dataclass(frozen=True)
class Call:
    """One whole call of a function; `arguments` is JSON text."""

    name: str
    arguments: str
    id: str = field(default_factory=lambda: f"call_{uuid.uuid4().hex[:24]}")


Part = Reasoning | Content | Call


class ReplyParser:
    """Takes the text of a reply in pieces and gives its parts as soon as they are certain.

    A thought stands at the beginning, in any of the tag families of `reasoning_tags`; a call stands in the answer
    between `<tool_call>` tags. What is no valid call of a known function stays text.

    Args:
        thinking: Whether the prompt has opened a thought already.
        functions: Names of the functions that may be called; None where calls are not looked for.
    """

    def __init__(self, thinking: bool = False, functions: Collection[str] | None = None) -> None:
        self.functions = functions
        self.calls = 0
        self._buffer = ""
        self._closing = FAMILIES[0][1]
        self._step = self._in_thought if thinking else self._at_start
        self._thoughts = 0  # thoughts that showed any text
        self._shown = False  # whether the present thought has shown any
        self._bare = True  # whether white space in front of the answer is part of it

    def push(self, text: str) -> list[Part]:
        """Take in more text."""
        self._buffer += text
        return self._parse(final=False)

    def finish(self) -> list[Part]:
        """The rest, once no more text comes; a thought or call cut short comes as far as it went."""
        return self._parse(final=True)

    def _parse(self, final: bool) -> list[Part]:
        parts: list[Part] = []
        while True:
            step = self._step
            part = step(final)
            if part is not None:
                parts.append(part)
            elif step == self._step:  # neither a part nor a change of state: more text is needed
                return parts

    def _at_start(self, final: bool) -> Part | None:
        """In front of a thought or of the answer."""
        text = self._buffer.lstrip()
        for opening, closing in FAMILIES:
            if text.startswith(opening):
                self._buffer, self._closing, self._shown = text[len(opening) :], closing, False
                self._step = self._in_thought
                return None
        undecided = not text or any(opening.startswith(text) for opening, _ in FAMILIES)
        if undecided and not final:
            return None
        if not self._bare:
            self._buffer = text
        self._step = self._in_answer
        return None

    def _in_thought(self, final: bool) -> Part | None:
        if not self._shown:
            self._buffer = self._buffer.lstrip("\n")
        thought, closing, rest = self._buffer.partition(self._closing)
        if closing:
            self._buffer, self._step, self._bare = rest, self._at_start, False
            thought = thought.rstrip("\n")
        else:
            keep = 0 if final else partial_suffix(thought, self._closing)
            body = thought[: len(thought) - keep]
            # Line ends before the closing tag are not part of the thought, so they wait for what follows them.
            body = body.rstrip("\n")
            thought, self._buffer = body, "" if final else thought[len(body) :]
        if not thought:
            return None
        if not self._shown:
            self._thoughts += 1
            if self._thoughts > 1:
                thought = "\n\n" + thought
            self._shown = True
        return Reasoning(thought)

    def _in_answer(self, final: bool) -> Part | None:
        if self.calls:
            self._buffer = self._buffer.lstrip()
        keep = 0
        if self.functions is not None:
            at = self._buffer.find(CALL_OPENING)
            if at >= 0:
                # White space in front of a call is not part of the answer.
                text, self._buffer = self._buffer[:at].rstrip(), self._buffer[at:]
                self._step = self._in_call
                return Content(text) if text else None
            if not final:
                keep = partial_suffix(self._buffer, CALL_OPENING)
                body = self._buffer[: len(self._buffer) - keep]
                keep += len(body) - len(body.rstrip())
        cut = len(self._buffer) - keep
        text, self._buffer = self._buffer[:cut], self._buffer[cut:]
        return Content(text) if text else None

    def _in_call(self, final: bool) -> Part | None:
        at = self._buffer.find(CALL_CLOSING)
        if at < 0:
            if not final:
                return None
            at = len(self._buffer)
        whole, self._buffer = self._buffer[: at + len(CALL_CLOSING)], self._buffer[at + len(CALL_CLOSING) :]
        self._step = self._in_answer
        call = self._read_call(whole)
        if call is None:
            return Content(whole)
        self.calls += 1
        return call

    def _read_call(self, whole: str) -> Call | None:
        assert self.functions is not None
        try:
            call = json.loads(whole.removeprefix(CALL_OPENING).removesuffix(CALL_CLOSING))
        except ValueError:
            return None
        if not isinstance(call, dict) or call.get("name") not in self.functions:
            return None
        arguments = call.get("arguments")
        if not isinstance(arguments, dict):
            return None
        return Call(call["name"], json.dumps(arguments, ensure_ascii=False))
