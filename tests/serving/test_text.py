"""Tokens to text while they come: the same text as all at once, and never part of a stop string."""

from __future__ import annotations

import random

import pytest

from small_doge.serving.text import TextCodec, TextStream, partial_suffix


@pytest.fixture(scope="module")
def codec(tokenizer) -> TextCodec:
    return TextCodec(tokenizer)


def test_the_pieces_of_random_tokens_are_the_tokenizers_text(codec, tokenizer):
    draw = random.Random(0)
    for _ in range(200):
        ids = [draw.randrange(len(tokenizer)) for _ in range(30)]
        stream = TextStream(codec)
        assert "".join(map(stream.push, ids)) + stream.finish() == tokenizer.decode(ids, skip_special_tokens=True)


def test_a_character_of_several_tokens_comes_whole(codec, tokenizer):
    ids = tokenizer("日", add_special_tokens=False)["input_ids"]
    assert len(ids) == 3
    stream = TextStream(codec)
    assert [stream.push(token) for token in ids] == ["", "", "日"]


@pytest.mark.parametrize("stops", [["fox"], ["zzz", "own f"], ["quick brown"]])
def test_nothing_of_a_stop_string_comes_out_at_any_time(codec, tokenizer, stops):
    text = "The quick brown fox jumps"
    stream, shown = TextStream(codec, stops), ""
    expected = text[: min(text.index(stop) for stop in stops if stop in text)]
    for token in tokenizer(text, add_special_tokens=False)["input_ids"]:
        shown += stream.push(token)
        assert expected.startswith(shown)
    assert stream.stopped and shown + stream.finish() == expected


def test_the_longest_beginning_of_a_word_at_the_end_of_a_text():
    assert partial_suffix("abc<to", "<tool>") == 3
    assert partial_suffix("<tool>", "<tool>") == 0
    assert partial_suffix("aab", "aabaab") == 3


def test_a_conversation_renders_as_the_tokenizer_does_it(codec, tokenizer):
    messages = [{"role": "user", "content": "hi"}]
    ids, thinking = codec.render(messages, None, None)
    encoded = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
    assert ids == encoded["input_ids"] and not thinking
    assert codec.render(messages, None, True)[1]
