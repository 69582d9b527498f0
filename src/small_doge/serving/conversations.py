"""The conversations of one browser: plain data that goes to the browser and comes back with each event."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from small_doge.serving.reply import Content, Part, Reasoning

# What the page shows as one bubble: {"role", "content", "metadata"}; a thought is an assistant's bubble with a title.
Bubble = dict[str, Any]
THOUGHT = "Thought"
TITLE_LENGTH = 40
MOST_CONVERSATIONS = 50


def new_conversation(store: dict[str, Any] | None) -> dict[str, Any]:
    """The store with an empty conversation in front, which is the current one; the oldest beyond 50 go."""
    chats = [chat for chat in (store["chats"] if store else []) if chat["bubbles"]]
    fresh = {"id": uuid.uuid4().hex[:12], "bubbles": []}
    return {"current": fresh["id"], "chats": [fresh, *chats][:MOST_CONVERSATIONS]}


def save(store: dict[str, Any], bubbles: Sequence[Bubble]) -> dict[str, Any]:
    """The store with the current conversation as it is shown."""
    chats = [
        {**chat, "bubbles": [_plain(bubble) for bubble in bubbles]} if chat["id"] == store["current"] else chat
        for chat in store["chats"]
    ]
    return {**store, "chats": chats}


def delete_current(store: dict[str, Any]) -> dict[str, Any]:
    """The store without the current conversation; the next one, or an empty one, takes its place."""
    chats = [chat for chat in store["chats"] if chat["id"] != store["current"]]
    return {"current": chats[0]["id"], "chats": chats} if chats else new_conversation(None)


def open_conversation(store: dict[str, Any], identifier: str) -> list[Bubble]:
    """The bubbles of a conversation; none for one that is not there."""
    return next((chat["bubbles"] for chat in store["chats"] if chat["id"] == identifier), [])


def choices(store: dict[str, Any]) -> list[tuple[str, str]]:
    """(title, id) of each conversation; the title is the beginning of the first question."""
    return [(_title(chat["bubbles"]), chat["id"]) for chat in store["chats"]]


def up_to_question(bubbles: Sequence[Bubble], index: int) -> list[Bubble]:
    """The bubbles up to the question at or before `index`, which is then asked again."""
    while index > 0 and bubbles[index]["role"] != "user":
        index -= 1
    return list(bubbles[: index + 1])


def after_edit(bubbles: Sequence[Bubble], index: int, text: str) -> list[Bubble]:
    """The bubbles up to the question at `index`, with a new text; what followed the old one is gone."""
    return [*bubbles[:index], {"role": "user", "content": text, "metadata": {}}]


def add_reply(reply: list[Bubble], parts: Sequence[Part]) -> None:
    """Add parts of a reply to its bubbles: a thought, which folds once the answer begins, and the answer."""
    for part in parts:
        assert isinstance(part, (Reasoning, Content)), "the page offers no functions"
        thought = isinstance(part, Reasoning)
        if not reply or bool(reply[-1]["metadata"]) != thought:
            if reply and not thought:
                reply[-1]["metadata"]["status"] = "done"
            metadata = {"title": THOUGHT, "status": "pending"} if thought else {}
            reply.append({"role": "assistant", "content": "", "metadata": metadata})
        reply[-1]["content"] += part.text


def messages_of(bubbles: Sequence[Bubble], system: str = "") -> list[dict[str, Any]]:
    """The conversation as the API takes it: a thought and the answer after it are one message."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system.strip() else []
    thought: str | None = None
    for bubble in bubbles:
        text = _text(bubble["content"])
        if bubble["role"] == "user":
            if thought is not None:
                messages.append({"role": "assistant", "content": "", "reasoning_content": thought})
            messages.append({"role": "user", "content": text})
        elif bubble.get("metadata"):
            thought = text
            continue
        else:
            reasoning = {} if thought is None else {"reasoning_content": thought}
            messages.append({"role": "assistant", "content": text, **reasoning})
        thought = None
    return messages


def _plain(bubble: Bubble) -> Bubble:
    """A bubble without what the browser adds to it."""
    metadata = bubble.get("metadata") or {}
    kept = {"title": metadata["title"], "status": "done"} if metadata.get("title") else {}
    return {"role": bubble["role"], "content": _text(bubble["content"]), "metadata": kept}


def _text(content: Any) -> str:
    """A bubble's text; the browser sends it back as a list of parts."""
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content if isinstance(part, dict))


def _title(bubbles: Sequence[Bubble]) -> str:
    first = next((_text(bubble["content"]) for bubble in bubbles if bubble["role"] == "user"), "")
    line = " ".join(first.split())
    if not line:
        return "Empty chat"
    return line if len(line) <= TITLE_LENGTH else line[: TITLE_LENGTH - 1] + "…"
