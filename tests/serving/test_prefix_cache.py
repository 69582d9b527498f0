"""Prompts that begin alike: less to prefill, and the same tokens."""

from __future__ import annotations

import pytest
from engines import TinyEngine
from servers import running

from small_doge.serving.prefix_cache import SHORTEST, PrefixCache

LONG = list(range(100, 160))


def test_a_row_helps_only_prompts_that_begin_with_all_of_it():
    cache = PrefixCache([7, 8])
    assert cache.plan(LONG).row is None
    assert cache.keep(LONG[:40]) == 8
    assert (cache.plan(LONG).row, cache.plan(LONG).length) == (8, 40)
    assert cache.plan(LONG[:30]).row is None
    assert cache.plan([*LONG[:39], 5]).row is None


def test_the_last_token_is_always_left_to_prefill():
    cache = PrefixCache([7])
    cache.keep(LONG)
    assert cache.plan(LONG).row is None and cache.plan(LONG).snapshots == (len(LONG) - 1,)


def test_where_prompts_part_the_common_beginning_is_kept():
    cache = PrefixCache([7, 8])
    cache.keep(LONG)
    assert cache.plan([*LONG[:30], 1, 2, 3]).snapshots == (30, 32)


def test_the_least_recently_used_row_is_given_away():
    cache = PrefixCache([7, 8])
    first, second, third = LONG[:20], LONG[20:40], LONG[40:60]
    cache.keep(first), cache.keep(second)
    cache.plan([*first, 1])
    assert cache.keep(third) == 7
    assert cache.plan([*first, 1]).row == 8 and cache.plan([*second, 1]).row is None


def test_short_sequences_and_a_cache_without_rows_are_left_alone():
    assert PrefixCache([7]).keep(LONG[: SHORTEST - 1]) is None
    assert PrefixCache([]).keep(LONG) is None and PrefixCache([]).plan(LONG).snapshots == ()


@pytest.mark.parametrize("options", [{}, {"presence_penalty": 0.5}], ids=["the engine draws", "the server draws"])
def test_answers_are_the_same_with_and_without_the_cache(model_folder, options):
    system = {"role": "system", "content": "You are a helpful dog that knows about apples and foxes. " * 4}

    def converse(server) -> tuple[list[str], list[int]]:
        client, texts, cached = server.client(), [], []
        for questions in (["one"], ["two"], ["one", "more"]):
            messages = [system]
            for question in questions:
                messages.append({"role": "user", "content": question})
                reply = client.chat.completions.create(
                    model="tiny", messages=messages, temperature=0.8, seed=1, max_tokens=12, n=2, **options
                )
                messages.append({"role": "assistant", "content": reply.choices[0].message.content})
                texts += [choice.message.content for choice in reply.choices]
                cached.append(reply.usage.prompt_tokens_details.cached_tokens)
        return texts, cached

    from dataclasses import replace

    from servers import LIMITS

    with running({"tiny": TinyEngine(model_folder)}, batch=replace(LIMITS, cache_rows=0)) as server:
        plain, nothing = converse(server)
    with running({"tiny": TinyEngine(model_folder)}, batch=replace(LIMITS, cache_rows=8)) as server:
        assert converse(server)[0] == plain
        texts, cached = converse(server)  # now everything has been seen
    assert texts == plain
    assert nothing == [0, 0, 0, 0] and min(cached) > 50
