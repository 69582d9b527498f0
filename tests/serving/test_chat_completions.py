"""POST /v1/chat/completions through the official client, against a model that says what it is told."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import openai
import pytest

ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
            "additionalProperties": False,
        },
    },
}
NOW = {"type": "function", "function": {"name": "now"}}
CALL = '<tool_call>{"name": "add", "arguments": {"a": 1, "b": 2}}</tool_call>'


def ask(client: openai.OpenAI, text: str, **options: Any) -> Any:
    return client.chat.completions.create(model="echo", messages=[{"role": "user", "content": text}], **options)


def test_a_reply_has_the_text_the_reason_and_the_usage(client):
    reply = ask(client, "two words")
    assert reply.object == "chat.completion" and reply.model == "echo" and reply.id.startswith("chatcmpl-")
    assert reply.choices[0].message.role == "assistant"
    assert reply.choices[0].message.content == "two words"
    assert reply.choices[0].finish_reason == "stop"
    usage = reply.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.prompt_tokens > usage.completion_tokens > 2


def test_a_stream_begins_with_the_role_and_ends_with_the_reason_and_done(server):
    body = {"model": "echo", "stream": True, "messages": [{"role": "user", "content": "two words"}]}
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    chunks = [json.loads(line) for line in lines[:-1]]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons[-1] == "stop" and set(reasons[:-1]) == {None}
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == "two words"
    assert all("usage" not in chunk for chunk in chunks)


def test_the_usage_of_a_stream_comes_in_a_last_chunk_without_choices(client):
    chunks = list(ask(client, "two words", stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens > 2
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_max_tokens_ends_a_reply_with_length(client):
    for option in ("max_tokens", "max_completion_tokens"):
        reply = ask(client, "one two three four five", **{option: 2})
        assert reply.choices[0].finish_reason == "length"
        assert reply.usage.completion_tokens == 2


@pytest.mark.parametrize("stop", ["d d", ["zzz", "d d"]], ids=["one string", "the second of two"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_stop_string_across_tokens_ends_the_reply_and_is_not_part_of_it(client, stop, stream):
    reply = ask(client, "abc d d more", stop=stop, stream=stream)
    if stream:
        chunks = list(reply)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        reason = chunks[-1].choices[0].finish_reason
    else:
        text, reason = reply.choices[0].message.content, reply.choices[0].finish_reason
    assert text == "abc " and reason == "stop"


def test_what_only_begins_like_a_stop_string_is_kept(client):
    assert ask(client, "abc d", stop="d d").choices[0].message.content == "abc d"


def test_n_replies_are_told_apart_by_their_index(client):
    reply = ask(client, "same", n=3)
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    assert {choice.message.content for choice in reply.choices} == {"same"}
    chunks = list(ask(client, "same", n=3, stream=True))
    texts = ["", "", ""]
    for chunk in chunks:
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == ["same"] * 3


def test_a_thought_comes_apart_from_the_answer(client):
    message = ask(client, "<think>\nbecause\n</think>\n\nyes").choices[0].message
    assert (message.reasoning_content, message.content) == ("because", "yes")
    deltas = [chunk.choices[0].delta for chunk in ask(client, "<think>\nbecause\n</think>\n\nyes", stream=True)]
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == "because"
    assert "".join(delta.content or "" for delta in deltas) == "yes"


def test_thinking_is_switched_by_the_template(client):
    on = ask(client, "because\n</think>\n\nyes", extra_body={"chat_template_kwargs": {"enable_thinking": True}})
    assert (on.choices[0].message.reasoning_content, on.choices[0].message.content) == ("because", "yes")
    off = ask(client, "yes", extra_body={"chat_template_kwargs": {"enable_thinking": False}})
    assert off.choices[0].message.content == "yes"
    assert off.usage.prompt_tokens > ask(client, "yes").usage.prompt_tokens


def test_calls_are_parsed_and_end_with_tool_calls(client):
    reply = ask(client, f"Let me see.\n{CALL}{CALL}", tools=[ADD, NOW]).choices[0]
    assert reply.finish_reason == "tool_calls" and reply.message.content == "Let me see."
    assert [json.loads(call.function.arguments) for call in reply.message.tool_calls] == [{"a": 1, "b": 2}] * 2
    assert len({call.id for call in reply.message.tool_calls}) == 2


def test_streamed_calls_have_an_index_an_id_a_name_and_arguments(client):
    chunks = list(ask(client, CALL + CALL, tools=[ADD], stream=True))
    calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
    assert [call.index for call in calls] == [0, 1]
    assert all(call.id and call.type == "function" and call.function.name == "add" for call in calls)
    assert json.loads(calls[0].function.arguments) == {"a": 1, "b": 2}
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    assert not any(chunk.choices[0].delta.content for chunk in chunks)


def test_without_parallel_calls_the_reply_ends_after_the_first(client):
    reply = ask(client, CALL + CALL, tools=[ADD], parallel_tool_calls=False).choices[0]
    assert len(reply.message.tool_calls) == 1 and reply.finish_reason == "tool_calls"


@pytest.mark.parametrize(
    "text",
    [CALL.replace("add", "sub"), CALL.replace('{"name"', "{name"), "<tool_call>[]</tool_call>"],
    ids=["an unknown function", "broken JSON", "no object"],
)
def test_what_is_no_call_stays_text(client, text):
    reply = ask(client, text, tools=[ADD]).choices[0]
    assert reply.message.tool_calls is None and reply.message.content == text and reply.finish_reason == "stop"


def test_tool_choice_none_hides_the_tools(client):
    reply = ask(client, CALL, tools=[ADD], tool_choice="none")
    assert reply.choices[0].message.content == CALL
    assert reply.usage.prompt_tokens == ask(client, CALL).usage.prompt_tokens


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "add"}}], ids=["any function", "a named one"]
)
def test_a_required_call_is_made_whatever_the_model_wants(client, choice):
    reply = ask(
        client, "I would rather talk.", tools=[ADD], tool_choice=choice, parallel_tool_calls=False, temperature=0
    ).choices[0]
    assert reply.finish_reason == "tool_calls"
    arguments = json.loads(reply.message.tool_calls[0].function.arguments)
    assert set(arguments) == {"a", "b"} and all(isinstance(value, int) for value in arguments.values())


def test_the_result_of_a_call_goes_back_to_the_model(client):
    call = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'}}
    reply = client.chat.completions.create(
        model="echo",
        tools=[ADD],
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "1 + 2?"}]},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_1", "content": "3"},
        ],
    )
    assert reply.choices[0].message.content == "3"  # the echo's last turn is the tool's


def test_a_json_schema_is_followed(client):
    schema = {
        "type": "object",
        "properties": {"answer": {"type": "integer"}, "sure": {"type": "boolean"}},
        "required": ["answer", "sure"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "reply", "schema": schema, "strict": True}}
    reply = ask(client, "I would rather talk.", response_format=form, temperature=0, max_tokens=200)
    answer = json.loads(reply.choices[0].message.content)
    assert isinstance(answer["answer"], int) and isinstance(answer["sure"], bool)
    assert reply.choices[0].finish_reason == "stop"


def test_json_object_gives_an_object(client):
    reply = ask(client, '{"a": [1, 2]}', response_format={"type": "json_object"}, temperature=0)
    assert json.loads(reply.choices[0].message.content) == {"a": [1, 2]}


def test_the_grammar_waits_for_the_end_of_the_thought(client):
    reply = ask(
        client,
        'a thought, in words\n</think>{"a": 1}',
        response_format={"type": "json_object"},
        temperature=0,
        extra_body={"chat_template_kwargs": {"enable_thinking": True}},
    ).choices[0]
    assert reply.message.reasoning_content == "a thought, in words"
    assert json.loads(reply.message.content) == {"a": 1}


def test_log_probabilities_come_for_every_token(client):
    reply = ask(client, "two words", logprobs=True, top_logprobs=2, temperature=0)
    items = reply.choices[0].logprobs.content
    assert len(items) == reply.usage.completion_tokens
    assert "".join(item.token for item in items[:-1]) == "two words" and items[-1].token == "<|end_of_text|>"
    for item in items:
        assert item.top_logprobs[0].token == item.token and len(item.top_logprobs) == 2
        assert item.logprob == item.top_logprobs[0].logprob > item.top_logprobs[1].logprob
    streamed = [
        item
        for chunk in ask(client, "two words", logprobs=True, temperature=0, stream=True)
        if chunk.choices[0].logprobs
        for item in chunk.choices[0].logprobs.content
    ]
    assert [item.token for item in streamed] == [item.token for item in items]


def test_logit_bias_rules_a_token_in_and_out(client, tokenizer):
    apple = tokenizer(" apples", add_special_tokens=False)["input_ids"][0]
    reply = ask(client, "two words", logit_bias={str(apple): 100}, max_tokens=3, temperature=0)
    assert reply.choices[0].message.content == tokenizer.decode([apple] * 3)
    first = tokenizer("two", add_special_tokens=False)["input_ids"][0]
    reply = ask(client, "two words", logit_bias={str(first): -100}, max_tokens=1, temperature=0)
    assert not reply.choices[0].message.content.startswith(tokenizer.decode([first]))


def test_the_async_client_streams(server):
    async def talk() -> str:
        async with server.async_client() as client:
            stream = await client.chat.completions.create(
                model="echo", messages=[{"role": "user", "content": "two words"}], stream=True
            )
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    assert asyncio.run(talk()) == "two words"


def test_the_clients_own_stream_helper_understands_the_stream(client):
    with client.chat.completions.stream(
        model="echo", messages=[{"role": "user", "content": CALL}], tools=[ADD], stream_options={"include_usage": True}
    ) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.tool_calls[0].function.name == "add"
    assert final.usage.completion_tokens > 0
