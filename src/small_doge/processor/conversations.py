"""Rows of any common shape to conversations and preference pairs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from small_doge.processor.reasoning_tags import mentions_thought_tags, split_thought

Message = dict[str, Any]

ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "function_response": "tool",
    "observation": "tool",
    "ipython": "tool",
}
MESSAGE_COLUMNS = ("messages", "conversation", "conversations")
PROMPT_COLUMNS = ("prompt", "instruction", "question", "problem", "query")
ANSWER_COLUMNS = ("response", "completion", "output", "answer", "solution")
THOUGHT_COLUMNS = ("reasoning_content", "thinking", "reasoning", "thought")


class RowError(ValueError):
    """A row that cannot be read as a conversation; the message is the reason it is counted under."""


def is_preference(row: Mapping[str, Any]) -> bool:
    """Whether a row compares two answers."""
    return row.get("chosen") is not None and row.get("rejected") is not None


def to_conversation(row: Mapping[str, Any], thinking: bool = True, text_field: str = "text") -> dict[str, Any]:
    """A row as `{"messages": [...]}`, and `tools` (a JSON string) where the row brings tools.

    Known shapes: `messages` or `conversation` (role and content), `conversations` (ShareGPT's from and value, or role
    and content), a prompt column with an answer column (`prompt`/`response`, `question`/`answer`,
    `problem`/`solution`, ...), and `instruction`/`input`/`output`. A `system` column becomes the first message. Of a
    preference row the chosen answer is taken.

    With `thinking`, a thought in the last answer's tags or in a column of its own becomes `reasoning_content`, and a
    system prompt that only explains such tags is left out.

    Raises:
        RowError: the row has none of these shapes, or holds no answer.
    """
    if is_preference(row):
        pair = to_preference(row, thinking)
        return {"messages": pair["prompt"] + pair["chosen"], **_tools(row)}
    messages = _messages_column(row) or _from_columns(row, text_field)
    messages = _with_system(messages, row.get("system"))
    messages = _with_thoughts(messages, row, thinking)
    _check(messages)
    return {"messages": messages, **_tools(row)}


def to_preference(row: Mapping[str, Any], thinking: bool = True) -> dict[str, Any]:
    """A row with `chosen` and `rejected` as `{"prompt": [...], "chosen": [...], "rejected": [...]}`.

    Where the answers are whole conversations, what they have in common at the start is the prompt (the implicit
    prompt); a prompt that is there already is not repeated.

    Raises:
        RowError: there is no prompt, or an answer is empty, or both are the same.
    """
    prompt = _messages_column(row) or _prompt_column(row)
    chosen, rejected = _answer_messages(row["chosen"]), _answer_messages(row["rejected"])
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    if shared:
        implicit, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
        prompt = implicit if not prompt or _ends_with(implicit, prompt) else [*prompt, *implicit]
    prompt = _with_system(prompt, row.get("system"))
    if not any(message["role"] == "user" for message in prompt):
        raise RowError("no prompt")
    if not chosen or not rejected:
        raise RowError("chosen and rejected are the same")
    prompt = _without_tag_prompts(prompt) if thinking else prompt
    chosen, rejected = _with_thoughts(chosen, {}, thinking), _with_thoughts(rejected, {}, thinking)
    if chosen == rejected:
        raise RowError("chosen and rejected are the same")
    _check(chosen)
    _check(rejected)
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def prompt_key(messages: Sequence[Message]) -> str:
    """What comes before the first answer, as a string: rows that ask the same fall on the same side of the split."""
    parts = []
    for message in messages:
        if message["role"] == "assistant":
            break
        parts.append(f"{message['role']}: {message['content']}")
    return "\n".join(parts)


def _message(item: Any) -> Message:
    if not isinstance(item, Mapping):
        raise RowError("a message is not an object")
    name = item.get("role", item.get("from"))
    role = ROLES.get(str(name).lower())
    if role is None:
        raise RowError(f"unknown role {name!r}")
    content = item.get("content", item.get("value"))
    calls = item.get("tool_calls")
    if str(name).lower() == "function_call":
        calls, content = _parse_calls(content), ""
    message: Message = {"role": role, "content": _text(content, optional=bool(calls))}
    if item.get("reasoning_content") is not None:
        message["reasoning_content"] = _text(item["reasoning_content"])
    if calls:
        message["tool_calls"] = [_call(call) for call in calls]
    return message


def _text(content: Any, optional: bool = False) -> str:
    if content is None and optional:
        return ""
    if _is_list(content):
        texts = [part.get("text") for part in content if isinstance(part, Mapping) and part.get("type") == "text"]
        words = [text for text in texts if isinstance(text, str)]
        if len(words) < len(content):
            raise RowError("a message has parts that are not text")
        content = "".join(words)
    if not isinstance(content, str):
        raise RowError(f"the content of a message is {type(content).__name__}, not text")
    try:
        content.encode("utf-8")
    except UnicodeEncodeError:
        raise RowError("invalid UTF-8") from None
    return content


def _parse_calls(content: Any) -> list[Any]:
    try:
        calls = json.loads(content)
    except (TypeError, json.JSONDecodeError):
        raise RowError("a function call is not JSON") from None
    return calls if isinstance(calls, list) else [calls]


def _call(call: Any) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise RowError("a tool call has no name")
    arguments = function.get("arguments", function.get("parameters", {}))
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return {"type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _tools(row: Mapping[str, Any]) -> dict[str, str]:
    tools = row.get("tools")
    if not tools:
        return {}
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except json.JSONDecodeError:
            raise RowError("the tools are not JSON") from None
        if not tools:
            return {}
    return {"tools": json.dumps(tools, ensure_ascii=False)}


def _from_columns(row: Mapping[str, Any], text_field: str) -> list[Message]:
    prompt = next((name for name in PROMPT_COLUMNS if row.get(name)), None)
    answer = next((name for name in (*ANSWER_COLUMNS, text_field) if row.get(name) is not None), None)
    if prompt is None or answer is None:
        raise RowError(f"no conversation in the columns {', '.join(sorted(map(str, row)))}"[:120])
    return [*_prompt_column(row), *_answer_messages(row[answer])]


def _messages_column(row: Mapping[str, Any]) -> list[Message]:
    columns = [row[name] for name in MESSAGE_COLUMNS if row.get(name) and _is_list(row[name])]
    return [_message(item) for item in columns[0]] if columns else []


def _prompt_column(row: Mapping[str, Any]) -> list[Message]:
    column = next((name for name in PROMPT_COLUMNS if row.get(name)), None)
    if column is None:
        return []
    value = row[column]
    if _is_list(value):
        return [_message(item) for item in value]
    content = _text(value)
    if column == "instruction" and row.get("input"):
        content = f"{content}\n\n{_text(row['input'])}"
    return [{"role": "user", "content": content}]


def _answer_messages(value: Any) -> list[Message]:
    if isinstance(value, Mapping):
        value = [value]
    if _is_list(value):
        return [_message(item) for item in value]
    return [{"role": "assistant", "content": _text(value)}]


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _ends_with(messages: list[Message], end: list[Message]) -> bool:
    return len(end) <= len(messages) and messages[len(messages) - len(end) :] == end


def _with_system(messages: list[Message], system: Any) -> list[Message]:
    if not system or (messages and messages[0]["role"] == "system"):
        return messages
    return [{"role": "system", "content": _text(system)}, *messages]


def _without_tag_prompts(messages: list[Message]) -> list[Message]:
    return [m for m in messages if m["role"] != "system" or not mentions_thought_tags(m["content"])]


def _with_thoughts(messages: list[Message], row: Mapping[str, Any], thinking: bool) -> list[Message]:
    if not thinking:
        return messages
    column = next((name for name in THOUGHT_COLUMNS if isinstance(row.get(name), str) and row[name].strip()), None)
    answers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    result = list(messages)
    for number in answers:
        message = messages[number]
        if "reasoning_content" in message:
            continue
        try:
            thought, answer = split_thought(message["content"])
        except ValueError as error:
            raise RowError(str(error)) from None
        if thought is None and column is not None and number == answers[-1]:
            thought, answer = _text(row[column]).strip("\n"), message["content"]
        if thought is not None:
            result[number] = {**message, "content": answer, "reasoning_content": thought}
    return _without_tag_prompts(result)


def _check(messages: list[Message]) -> None:
    answers = [message for message in messages if message["role"] == "assistant"]
    if not answers:
        raise RowError("no assistant turn")
    if any(not message["content"].strip() and not message.get("tool_calls") for message in answers):
        raise RowError("an answer is empty")
