from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from small_doge.processor.chat_encoding import ChatEncoder

CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
CONVERSATIONS = [
    [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}],
    [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "小狗 🐶 e\u0301?"},
        {"role": "assistant", "content": "狗 🐶", "reasoning_content": "why\n\n🐶"},
        {"role": "user", "content": "and <|eot_id|> then"},
        {"role": "assistant", "content": None, "tool_calls": [CALL, CALL]},
        {"role": "tool", "content": "2"},
        {"role": "assistant", "content": " 2\n"},
    ],
]


@pytest.mark.parametrize("messages", CONVERSATIONS, ids=["plain", "everything"])
@pytest.mark.parametrize("tools", [None, [{"name": "add"}]], ids=["no tools", "tools"])
def test_ids_and_mask_are_those_of_the_chat_template(tokenizer, messages, tools):
    found = ChatEncoder(tokenizer)(messages, None if tools is None else json.dumps(tools))
    wanted = tokenizer.apply_chat_template(messages, tools=tools, return_dict=True, return_assistant_tokens_mask=True)
    assert found["input_ids"].tolist() == wanted["input_ids"]
    assert found["assistant_masks"].tolist() == wanted["assistant_masks"]


def test_several_threads_may_encode_at_once(tokenizer):
    encoder = ChatEncoder(tokenizer)
    chats = [
        [{"role": "user", "content": "q"}, {"role": "assistant", "content": f"list of {n} " * 99}] for n in range(300)
    ]
    alone = [encoder(chat)["input_ids"].tolist() for chat in chats]
    with ThreadPoolExecutor(8) as pool:
        assert [found["input_ids"].tolist() for found in pool.map(encoder, chats)] == alone
