"""The chat in the terminal, with an engine that says what it is told."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from transformers import AutoTokenizer

from small_doge.chat import Chat
from small_doge.inference.sampling import SamplingParams


class ScriptedEngine:
    """Gives its replies one after another, a character at a time, and remembers the prompts."""

    def __init__(self, tokenizer: Any, replies: Sequence[str]) -> None:
        self.tokenizer, self.replies = tokenizer, list(replies)
        self.prompts: list[str] = []
        self.interrupt_after: int | None = None

    def stream(self, prompt: list[int], params: SamplingParams):
        self.prompts.append(self.tokenizer.decode(prompt))
        for i, character in enumerate(self.replies.pop(0)):
            if i == self.interrupt_after:
                raise KeyboardInterrupt
            yield character


@pytest.fixture
def talk(tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Run a chat over lines of input: the chat and what it printed."""

    def run(lines: list[str], replies: Sequence[str] = (), interrupt_after: int | None = None) -> tuple[Chat, str]:
        engine = ScriptedEngine(AutoTokenizer.from_pretrained(str(tokenizer_folder)), replies)
        engine.interrupt_after = interrupt_after
        output = io.StringIO()
        chat = Chat(engine, SamplingParams(), Console(file=output, width=200))
        waiting = iter(lines)

        def next_line(prompt: str = "") -> str:
            try:
                return next(waiting)
            except StopIteration:
                raise EOFError from None

        monkeypatch.setattr(chat.console, "input", next_line)
        chat.run()
        return chat, output.getvalue()

    return run


def test_an_answer_is_printed_and_the_next_question_has_it_in_its_prompt(talk):
    chat, printed = talk(["hello", "and now?"], ["hi there", "bye"])
    assert "hi there" in printed and "tokens/s" in printed
    assert "hello" in chat.engine.prompts[1] and "hi there" in chat.engine.prompts[1]


def test_a_thought_is_folded_until_it_is_asked_for(talk):
    _, printed = talk(["why?"], ["<think>\na hidden reason\n</think>\n\nbecause"])
    assert "because" in printed and "a hidden reason" not in printed and "thought of 3 words" in printed
    _, printed = talk(["why?", "/think"], ["<think>\na hidden reason\n</think>\n\nbecause"])
    assert "a hidden reason" in printed


def test_several_lines_between_triple_quotes_are_one_message(talk):
    chat, _ = talk(['"""first', "second", '"""'], ["ok"])
    assert chat.messages[0]["content"] == "first\nsecond"


def test_the_system_message_comes_first_and_reset_forgets_the_rest(talk):
    chat, _ = talk(["/system be brief", "one", "/reset", "two"], ["1", "2"])
    assert "be brief" in chat.engine.prompts[1] and "one" not in chat.engine.prompts[1]


def test_params_are_shown_changed_and_checked(talk):
    chat, printed = talk(
        ["/params temperature=0.5 top_k=3 thinking=on", "/params top_p=7", "/params colour=1", "/params thinking=so"]
    )
    assert (chat.params.temperature, chat.params.top_k, chat.params.top_p) == (0.5, 3, 1.0)
    assert chat.thinking == "on" and "temperature=0.5" in printed
    assert "top_p is 7" in printed and "there is no colour" in printed and "choose on, off or auto" in printed


def test_thinking_on_opens_the_thought_in_the_prompt(talk):
    chat, _ = talk(["/params thinking=on", "why?"], ["a reason\n</think>\n\nbecause"])
    assert chat.engine.prompts[0].endswith("<think>\n")
    assert chat.messages[1] == {"role": "assistant", "content": "because", "reasoning_content": "a reason"}


@pytest.mark.parametrize("name", ["chat.json", "chat.md"])
def test_a_conversation_is_saved(talk, tmp_path, name):
    talk(["hello", f"/save {tmp_path / name}"], ["hi"])
    text = (tmp_path / name).read_text()
    if name.endswith("json"):
        assert [message["role"] for message in json.loads(text)] == ["user", "assistant"]
    else:
        assert text == "## user\n\nhello\n\n## assistant\n\nhi\n\n"


def test_control_c_stops_the_answer_and_not_the_chat(talk):
    chat, printed = talk(["hello", "/help"], ["hi there"], interrupt_after=2)
    assert chat.messages[-1]["content"] == "hi" and "stopped" in printed and "/save" in printed


def test_an_unknown_command_is_no_question(talk):
    chat, printed = talk(["/nonsense"])
    assert "there is no command /nonsense" in printed and not chat.messages
