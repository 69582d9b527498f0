"""What the chat page keeps in the browser."""

from __future__ import annotations

import json

from small_doge.serving.conversations import (
    add_reply,
    after_edit,
    choices,
    delete_current,
    messages_of,
    new_conversation,
    open_conversation,
    save,
    up_to_question,
)
from small_doge.serving.reply import Content, Reasoning

USER = {"role": "user", "content": [{"type": "text", "text": "why\nis it so?"}], "metadata": None, "options": None}


def reply() -> list[dict]:
    bubbles: list[dict] = []
    for part in (Reasoning("be"), Reasoning("cause"), Content("it "), Content("is")):
        add_reply(bubbles, [part])
    return bubbles


def test_a_reply_is_a_folded_thought_and_an_answer():
    thought, answer = reply()
    assert thought["content"] == "because" and thought["metadata"]["status"] == "done"
    assert answer == {"role": "assistant", "content": "it is", "metadata": {}}


def test_bubbles_go_back_to_the_api_with_the_thought_apart():
    assert messages_of([USER, *reply(), USER], "be brief") == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "why\nis it so?"},
        {"role": "assistant", "content": "it is", "reasoning_content": "because"},
        {"role": "user", "content": "why\nis it so?"},
    ]


def test_an_answer_stopped_in_its_thought_is_a_message_too():
    assert messages_of([USER, reply()[0], USER])[1] == {
        "role": "assistant",
        "content": "",
        "reasoning_content": "because",
    }


def test_conversations_are_kept_opened_and_deleted():
    store = save(new_conversation(None), [USER, *reply()])
    first = store["current"]
    store = new_conversation(store)
    assert [title for title, _ in choices(store)] == ["Empty chat", "why is it so?"]
    assert open_conversation(store, first)[0]["content"] == "why\nis it so?"
    assert open_conversation(store, "gone") == []
    assert delete_current(store)["current"] == first
    assert len(new_conversation(store)["chats"]) == 2  # no second empty one
    json.dumps(store)


def test_asking_again_and_editing_cut_what_follows():
    bubbles = [USER, *reply(), USER, *reply()]
    assert up_to_question(bubbles, 2) == [USER]
    assert up_to_question(bubbles, 3) == bubbles[:4]
    assert after_edit(bubbles, 3, "new")[-1]["content"] == "new" and len(after_edit(bubbles, 3, "new")) == 4
