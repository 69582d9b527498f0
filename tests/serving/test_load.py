"""Many clients at once: those that leave, those that wait, and a server that stops."""

from __future__ import annotations

import asyncio
import time

import httpx
import openai
import pytest

LONG = "word " * 300


def messages(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def wait_until(condition, seconds: float = 5.0) -> float:
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, "it did not come about"
        time.sleep(0.002)
    return time.monotonic() - start


def test_a_client_that_leaves_frees_its_row_within_a_token(start):
    server = start(seconds=0.05)
    batcher = server.models["echo"].batcher
    stream = server.client().chat.completions.create(model="echo", messages=messages(LONG), stream=True)
    iterator = iter(stream)
    for _ in range(3):
        next(iterator)
    assert not batcher.idle
    stream.close()
    decoded = len(server.models["echo"].engine.session.log)
    wait_until(lambda: batcher.idle)
    assert len(server.models["echo"].engine.session.log) <= decoded + 3  # the token under way and what races with it
    assert b'small_doge_cancelled_total{model="echo"} 1.0' in httpx.get(f"{server.url}/metrics").content


def test_a_client_that_gives_up_waiting_for_a_whole_answer_frees_its_row(start):
    server = start(seconds=0.02)
    with pytest.raises(openai.APITimeoutError):
        server.client(timeout=0.3).chat.completions.create(model="echo", messages=messages(LONG))
    wait_until(lambda: server.models["echo"].batcher.idle)


def test_a_full_queue_answers_429_with_retry_after(start):
    server = start(seconds=0.02, limits={"rows": 1, "queue": 1, "cache_rows": 0})

    async def flood() -> list[object]:
        async with server.async_client() as client:
            calls = [client.chat.completions.create(model="echo", messages=messages("word " * 5)) for _ in range(8)]
            return await asyncio.gather(*calls, return_exceptions=True)

    answers = asyncio.run(flood())
    refused = [answer for answer in answers if isinstance(answer, openai.RateLimitError)]
    answered = [answer for answer in answers if not isinstance(answer, Exception)]
    assert 1 <= len(answered) <= 3 and len(answered) + len(refused) == 8
    assert refused[0].code == "queue_full" and int(refused[0].response.headers["retry-after"]) >= 1


def test_requests_are_decoded_side_by_side(start):
    server = start(seconds=0.01)

    async def together() -> None:
        async with server.async_client() as client:
            calls = [client.chat.completions.create(model="echo", messages=messages(f"say {i}")) for i in range(4)]
            for i, answer in enumerate(await asyncio.gather(*calls)):
                assert answer.choices[0].message.content == f"say {i}"

    asyncio.run(together())
    assert max(len(rows) for name, rows, _ in server.models["echo"].engine.session.log if name == "decode") > 1


def test_the_engines_sampling_and_the_servers_go_side_by_side(start):
    server = start(seconds=0.01)

    async def together() -> list[str]:
        async with server.async_client() as client:
            options = [{}, {"presence_penalty": 0.1}, {"logprobs": True}, {"response_format": {"type": "json_object"}}]
            calls = [
                client.chat.completions.create(model="echo", messages=messages('{"a": 1}'), temperature=0, **option)
                for option in options
            ]
            return [answer.choices[0].message.content for answer in await asyncio.gather(*calls)]

    assert asyncio.run(together()) == ['{"a": 1}'] * 4


def test_generation_does_not_hold_up_the_event_loop(start):
    server = start(seconds=0.05)
    stream = server.client().chat.completions.create(model="echo", messages=messages(LONG), stream=True)
    next(iter(stream))
    start_time = time.monotonic()
    assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}
    assert time.monotonic() - start_time < 0.5
    stream.close()


def test_a_request_ends_with_length_when_its_time_is_over(start):
    server = start(seconds=0.02, request_seconds=0.3)
    reply = server.client().chat.completions.create(model="echo", messages=messages(LONG))
    assert reply.choices[0].finish_reason == "length"
    assert 3 < reply.usage.completion_tokens < 40


def test_stopping_lets_a_short_stream_finish(start):
    server = start(seconds=0.01, grace_seconds=10.0)
    stream = server.client().chat.completions.create(model="echo", messages=messages("word " * 30), stream=True)
    iterator = iter(stream)
    chunks = [next(iterator)]
    server.server.should_exit = True
    chunks += list(iterator)
    assert chunks[-1].choices[0].finish_reason == "stop"
    server.thread.join(timeout=10)
    assert not server.thread.is_alive()


def test_stopping_ends_a_long_stream_with_an_error_and_done(start):
    server = start(seconds=0.02, grace_seconds=0.2)
    body = {"model": "echo", "stream": True, "messages": messages(LONG)}
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body) as response:
        lines = response.iter_lines()
        next(lines)
        server.server.should_exit = True
        rest = [line for line in lines if line]
    assert '"code": "shutting_down"' in rest[-2] and rest[-1] == "data: [DONE]"


def test_a_stopping_server_takes_nothing_new(start):
    server = start(seconds=0.02)
    server.app.state.service.stopping = True
    server.models["echo"].batcher.refuse_new()
    with pytest.raises(openai.APIStatusError) as caught:
        server.client().chat.completions.create(model="echo", messages=messages("hello"))
    assert caught.value.status_code == 503 and caught.value.code == "shutting_down"
    assert httpx.get(f"{server.url}/health").status_code == 503
