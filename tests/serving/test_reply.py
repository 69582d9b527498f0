"""A reply taken apart gives the same parts however it is cut into pieces."""

from __future__ import annotations

import pytest

from small_doge.serving.reply import Call, Content, Reasoning, ReplyParser

CALL = '<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>'


def parse(text: str, size: int, **options) -> tuple[str, str, list[tuple[str, str]]]:
    parser = ReplyParser(**options)
    parts = [part for i in range(0, len(text), size) for part in parser.push(text[i : i + size])]
    parts += parser.finish()
    return (
        "".join(part.text for part in parts if isinstance(part, Reasoning)),
        "".join(part.text for part in parts if isinstance(part, Content)),
        [(part.name, part.arguments) for part in parts if isinstance(part, Call)],
    )


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("plain", {}, ("", "plain", [])),
        ("  plain  ", {"functions": ["f"]}, ("", "  plain  ", [])),
        ("<think>\nwhy\n</think>\n\nanswer\n", {}, ("why", "answer\n", [])),
        ("<thinking>why</thinking>answer", {}, ("why", "answer", [])),
        ("<|begin_of_thought|>why<|end_of_thought|>answer", {}, ("why", "answer", [])),
        ("<think>a</think><think>b</think>c", {}, ("a\n\nb", "c", [])),
        ("<think>\n\n</think>\n\nanswer", {}, ("", "answer", [])),
        ("why\n\nnot\n</think>\n\nanswer", {"thinking": True}, ("why\n\nnot", "answer", [])),
        ("<think>cut short", {}, ("cut short", "", [])),
        ("<thin", {}, ("", "<thin", [])),
        ("2 <think> 3", {}, ("", "2 <think> 3", [])),
        (CALL, {}, ("", CALL, [])),
        (f"ok\n{CALL}\n{CALL}", {"functions": ["f"]}, ("", "ok", [("f", '{"x": 1}')] * 2)),
        (f"<think>a</think>\n{CALL}", {"functions": ["f"]}, ("a", "", [("f", '{"x": 1}')])),
        (CALL, {"functions": ["g"]}, ("", CALL, [])),
        ('a <tool_call>{"na', {"functions": ["f"]}, ("", 'a<tool_call>{"na', [])),
        ("a <b> c", {"functions": ["f"]}, ("", "a <b> c", [])),
    ],
    ids=[
        "plain text",
        "white space around an answer",
        "our thought",
        "a thinking tag",
        "a thought token",
        "two thoughts",
        "an empty thought",
        "a thought that the prompt opened",
        "a thought that never ends",
        "a beginning of a tag",
        "a tag inside the answer",
        "a call that nobody looks for",
        "two calls after words",
        "a call after a thought",
        "a call of an unknown function",
        "a call that never ends",
        "other tags",
    ],
)
def test_the_parts_do_not_depend_on_the_pieces(text, options, expected, size):
    assert parse(text, size, **options) == expected


def test_a_thought_is_given_while_it_comes():
    parser = ReplyParser()
    assert [part.text for part in parser.push("<think>\none two")] == ["one two"]
