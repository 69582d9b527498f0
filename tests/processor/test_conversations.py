from __future__ import annotations

import json

import pytest

from small_doge.processor.conversations import RowError, prompt_key, to_conversation, to_preference
from small_doge.processor.reasoning_tags import split_thought

USER = {"role": "user", "content": "Why?"}
ANSWER = {"role": "assistant", "content": "Because."}


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, ANSWER]},
        {"conversation": [USER, ANSWER]},
        {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Because."}]},
        {"conversations": [USER, ANSWER]},
        {"prompt": "Why?", "response": "Because."},
        {"prompt": [USER], "completion": [ANSWER]},
        {"prompt": [USER], "completion": "Because."},
        {"instruction": "Why?", "input": "", "output": "Because."},
        {"question": "Why?", "answer": "Because."},
        {"problem": "Why?", "solution": "Because.", "answer": None},
        {"query": "Why?", "response": "Because."},
        {"prompt": "Why?", "text": "Because."},
        {"prompt": "Why?", "messages": [USER, ANSWER], "extra": 1},
    ],
    ids=lambda row: "+".join(row),
)
def test_every_known_shape_becomes_the_same_messages(row):
    before = json.dumps(row)
    assert to_conversation(row) == {"messages": [USER, ANSWER]}
    assert json.dumps(row) == before


def test_an_input_is_joined_to_its_instruction():
    row = {"instruction": "Translate.", "input": "Hund", "output": "dog"}
    assert to_conversation(row)["messages"][0]["content"] == "Translate.\n\nHund"


def test_a_system_column_comes_first_and_never_twice():
    row = {"system": "Be kind.", "conversations": [USER, ANSWER]}
    system = {"role": "system", "content": "Be kind."}
    assert to_conversation(row)["messages"] == [system, USER, ANSWER]
    assert to_conversation({**row, "conversations": [system, USER, ANSWER]})["messages"] == [system, USER, ANSWER]


def test_a_column_named_by_the_caller_holds_the_answer():
    assert to_conversation({"prompt": "Why?", "body": "Because."}, text_field="body")["messages"] == [USER, ANSWER]


def test_tool_calls_of_sharegpt_and_of_openai_become_the_same():
    tools = [{"name": "add", "parameters": {}}]
    call = {"name": "add", "arguments": {"a": 1}}
    sharegpt = {
        "conversations": [
            {"from": "human", "value": "1+1?"},
            {"from": "function_call", "value": json.dumps(call)},
            {"from": "observation", "value": "2"},
            {"from": "gpt", "value": "2"},
        ],
        "tools": json.dumps(tools),
    }
    openai = {
        "messages": [
            {"role": "user", "content": "1+1?"},
            {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": call}]},
            {"role": "tool", "content": "2"},
            {"role": "assistant", "content": "2"},
        ],
        "tools": tools,
    }
    assert to_conversation(sharegpt) == to_conversation(openai)
    made = to_conversation(openai)
    assert made["messages"][1]["tool_calls"] == [
        {"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    ]
    assert json.loads(made["tools"]) == tools


def test_a_name_of_the_conversation_is_no_conversation():
    found = to_conversation({"conversation": "chat-17", "prompt": "Why?", "response": "So."})
    assert [message["content"] for message in found["messages"]] == ["Why?", "So."]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"text": "plain"}, "no conversation"),
        ({"prompt": "Why?"}, "no conversation"),
        ({"messages": []}, "no conversation"),
        ({"messages": [USER]}, "no assistant turn"),
        ({"messages": [USER, {"role": "assistant", "content": " "}]}, "an answer is empty"),
        ({"messages": [USER, {"role": "wizard", "content": "x"}]}, "unknown role"),
        ({"messages": ["hello"]}, "not an object"),
        ({"messages": [{"role": "user", "content": 5}, ANSWER]}, "not text"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}, ANSWER]}, "not text"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}, ANSWER]}, "not text"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": None}]}, ANSWER]}, "not text"),
        ({"messages": [{"role": "user", "content": "\ud800"}, ANSWER]}, "invalid UTF-8"),
        ({"messages": [USER, ANSWER], "thinking": "\ud800"}, "invalid UTF-8"),
        ({"conversations": [{"from": "function_call", "value": "add(1)"}]}, "not JSON"),
        ({"messages": [USER, {"role": "assistant", "tool_calls": [{"function": {}}]}]}, "no name"),
        ({"messages": [USER, {"role": "assistant", "content": "<think>on and on"}]}, "never closed"),
        ({"messages": [USER, ANSWER], "tools": "[broken"}, "tools are not JSON"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_row_that_is_no_conversation_says_why(row, reason):
    with pytest.raises(RowError, match=reason):
        to_conversation(row)


class TestThoughts:
    @pytest.mark.parametrize(
        "text",
        [
            "<think>\nlong\n\nthought\n</think>\n\nanswer",
            "<thinking>\nlong\n\nthought\n</thinking>\n\nanswer",
            "<|begin_of_thought|>\n\nlong\n\nthought\n\n<|end_of_thought|>\n\n<|begin_of_solution|>\n\nanswer\n\n<|end_of_solution|>",
            "<reasoning>long\n\nthought</reasoning>answer",
            "  <think>long\n\nthought</think> answer",
            "long\n\nthought\n</think>\n\nanswer",
        ],
    )
    def test_every_family_of_tags_gives_the_same_thought_and_answer(self, text):
        assert split_thought(text) == ("long\n\nthought", "answer")

    def test_several_thoughts_are_kept_whole(self):
        assert split_thought("<think>one</think>\n<think>two</think>\nanswer") == ("one\n\ntwo", "answer")

    def test_text_without_a_thought_is_left_as_it_is(self):
        assert split_thought("  plain answer \n") == (None, "  plain answer \n")
        assert split_thought("say <think> in the middle") == (None, "say <think> in the middle")

    def test_an_empty_thought_stays_a_thought(self):
        assert split_thought("<think>\n\n</think>\n\nanswer") == ("", "answer")

    def test_a_thought_never_closed_is_an_error(self):
        with pytest.raises(ValueError, match="never closed"):
            split_thought("<think>on and on")

    @pytest.mark.parametrize("column", ["thinking", "reasoning", "reasoning_content"])
    def test_a_column_of_thoughts_goes_to_the_last_answer(self, column):
        row = {"prompt": "Why?", "response": "Because.", column: "hm\n\nhm"}
        assert to_conversation(row)["messages"][1] == {**ANSWER, "reasoning_content": "hm\n\nhm"}

    def test_without_thinking_text_is_left_as_it_is(self):
        text = "<think>hm</think>Because."
        assert to_conversation({"prompt": "Why?", "response": text}, thinking=False)["messages"][1]["content"] == text

    def test_a_system_prompt_about_tags_goes_with_the_tags(self):
        system = {"role": "system", "content": "Answer between <|begin_of_solution|> ... after <|begin_of_thought|>"}
        assert to_conversation({"messages": [system, USER, ANSWER]})["messages"] == [USER, ANSWER]
        assert to_conversation({"messages": [system, USER, ANSWER]}, thinking=False)["messages"][0] == system

    def test_reasoning_content_that_is_there_stays(self):
        message = {**ANSWER, "reasoning_content": "hm"}
        assert to_conversation({"messages": [USER, message]})["messages"][1] == message


class TestPreferences:
    OTHER = {"role": "assistant", "content": "No idea."}
    PAIR = {"prompt": [USER], "chosen": [ANSWER], "rejected": [OTHER]}

    @pytest.mark.parametrize(
        "row",
        [
            PAIR,
            {"prompt": "Why?", "chosen": "Because.", "rejected": "No idea."},
            {"chosen": [USER, ANSWER], "rejected": [USER, OTHER]},
            {"prompt": "Why?", "chosen": [USER, ANSWER], "rejected": [USER, OTHER]},
            {"question": "Why?", "chosen": "Because.", "rejected": "No idea.", "system": ""},
            {
                "conversations": [{"from": "human", "value": "Why?"}],
                "chosen": {"from": "gpt", "value": "Because."},
                "rejected": {"from": "gpt", "value": "No idea."},
            },
        ],
        ids=lambda row: "+".join(row),
    )
    def test_every_known_shape_becomes_the_same_pair(self, row):
        assert to_preference(row) == self.PAIR

    def test_a_longer_implicit_prompt_is_split_out_whole(self):
        start = [USER, ANSWER, {"role": "user", "content": "Really?"}]
        row = {"chosen": [*start, ANSWER], "rejected": [*start, self.OTHER]}
        assert to_preference(row)["prompt"] == start

    def test_a_preference_row_in_a_mix_of_conversations_gives_its_chosen_answer(self):
        assert to_conversation(self.PAIR) == {"messages": [USER, ANSWER]}

    @pytest.mark.parametrize(
        ("row", "reason"),
        [
            ({"chosen": "a", "rejected": "b"}, "no prompt"),
            ({"prompt": "Why?", "chosen": "a", "rejected": "a"}, "the same"),
            ({"chosen": [USER, ANSWER], "rejected": [USER, ANSWER]}, "the same"),
            ({"prompt": "Why?", "chosen": "", "rejected": "b"}, "empty"),
            ({"prompt": "Why?", "chosen": 3, "rejected": "b"}, "not text"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_a_row_that_compares_nothing_says_why(self, row, reason):
        with pytest.raises(RowError, match=reason):
            to_preference(row)


def test_the_key_of_a_conversation_is_all_before_the_first_answer():
    assert prompt_key([USER, ANSWER]) == prompt_key([USER, {**ANSWER, "content": "other"}])
    assert prompt_key([USER, ANSWER]) != prompt_key([{**USER, "content": "What?"}, ANSWER])
