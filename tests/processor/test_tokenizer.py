from __future__ import annotations

import random

import pytest
from transformers import AutoTokenizer
from trl.chat_template_utils import (
    get_training_chat_template,
    is_chat_template_prefix_preserving,
    is_chat_template_stop_token_trained,
    supports_tool_calling,
)

from small_doge.processor.tokenizer import (
    CONTROL_TOKENS,
    TAG_TOKENS,
    load_tokenizer,
    smallest_vocab_size,
    special_tokens,
    train_tokenizer,
)

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": "  4\n", "reasoning_content": "two and two\n\nare four"},
    {"role": "user", "content": "And 3 + 3?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"type": "function", "function": {"name": "add", "arguments": {"a": 3, "b": 3}}},
            {"type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": 5}'}},
        ],
    },
    {"role": "tool", "name": "add", "content": "6"},
    {"role": "tool", "name": "add", "content": "6"},
    {"role": "assistant", "content": "Both give 6."},
]


def spoken(tokenizer, messages, **options):
    """What the mask marks as said by the assistant."""
    out = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True, **options)
    marked = [i for i, mask in zip(out["input_ids"], out["assistant_masks"], strict=True) if mask]
    return tokenizer.decode(marked)


def test_special_tokens_take_the_first_ids_in_order(tokenizer):
    assert [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id] == [0, 1, 2]
    names = special_tokens(400)
    assert tokenizer.convert_tokens_to_ids(names) == list(range(len(names)))
    assert names[:10] == [*CONTROL_TOKENS, *TAG_TOKENS]


def test_larger_vocabularies_reserve_more_tokens():
    assert len(special_tokens(400)) == 14
    assert len(special_tokens(32_768)) == 64


def test_the_vocabulary_has_the_size_asked_for(tokenizer):
    assert len(tokenizer) == 400


def test_the_saved_folder_loads_with_plain_auto_tokenizer(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "<think> The median of 1234 values is not a list.\n\n\t狗"
    assert loaded(text).input_ids == tokenizer(text).input_ids
    assert loaded.apply_chat_template(CHAT, tokenize=False) == tokenizer.apply_chat_template(CHAT, tokenize=False)
    assert (loaded.bos_token_id, loaded.eos_token_id, loaded.pad_token_id) == (0, 1, 2)


def test_bos_can_be_switched_on_for_plain_prompts(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    plain, with_bos = (
        AutoTokenizer.from_pretrained(tmp_path),
        AutoTokenizer.from_pretrained(tmp_path, add_bos_token=True),
    )
    assert with_bos("a list").input_ids == [0, *plain("a list").input_ids]


def test_training_twice_gives_the_same_tokenizer():
    texts = ["the list of the values", "a list of values and a mean of values"] * 20
    first, second = (train_tokenizer(texts, 300).backend_tokenizer.to_str() for _ in range(2))
    assert first == second


def test_any_unicode_text_comes_back_exactly(tokenizer):
    rng = random.Random(1)
    for _ in range(300):
        text = "".join(
            chr(rng.choice([rng.randrange(0x20, 0x7F), rng.randrange(0xD800), rng.randrange(0xE000, 0x110000)]))
            for _ in range(40)
        )
        assert tokenizer.decode(tokenizer(text).input_ids) == text


@pytest.mark.parametrize(
    "text", ["", " ", "\n\n\n", "\x00\x01", "a\r\nb", "e\u0301 é", "👩‍👩‍👧‍👦", "  two  spaces  ", "\u200b\ufeff"]
)
def test_awkward_text_comes_back_exactly(tokenizer, text):
    assert tokenizer.decode(tokenizer(text).input_ids) == text


@pytest.mark.parametrize("vocab_size", [0, smallest_vocab_size() - 1])
def test_a_vocabulary_too_small_is_refused_with_the_least_size(vocab_size):
    with pytest.raises(ValueError, match=f"need {smallest_vocab_size()}"):
        train_tokenizer(["text"], vocab_size)


def test_no_text_is_refused():
    with pytest.raises(ValueError, match="no text"):
        train_tokenizer([])


def test_too_little_text_warns_and_gives_fewer_tokens(caplog):
    small = train_tokenizer(["ab ab ab"], 1000)
    assert len(small) < 300
    assert "fewer" in caplog.text or "only" in caplog.text


def test_loading_from_nowhere_names_the_mend(tmp_path):
    with pytest.raises(ValueError, match="give a folder"):
        load_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="processing_class is missing"):
        load_tokenizer(None)


class TestChatTemplate:
    def test_it_reads_as_written(self, tokenizer):
        assert tokenizer.apply_chat_template(CHAT, tokenize=False) == (
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>Be brief.<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>What is 2 + 2?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|><think>\ntwo and two\n\nare four\n</think>\n\n"
            "  4\n<|end_of_text|><|start_header_id|>user<|end_header_id|>And 3 + 3?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>"
            '<tool_call>{"name": "add", "arguments": {"a": 3, "b": 3}}</tool_call>'
            '<tool_call>{"name": "add", "arguments": {"a": 1, "b": 5}}</tool_call><|end_of_text|>'
            "<|start_header_id|>tool<|end_header_id|>6<|eot_id|><|start_header_id|>tool<|end_header_id|>6<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>Both give 6.<|end_of_text|>"
        )

    def test_rendering_then_encoding_gives_exactly_one_bos(self, tokenizer):
        direct = tokenizer.apply_chat_template(CHAT)["input_ids"]
        assert tokenizer(tokenizer.apply_chat_template(CHAT, tokenize=False)).input_ids == direct
        assert direct.count(tokenizer.bos_token_id) == 1
        assert direct[0] == tokenizer.bos_token_id

    def test_the_mask_covers_thought_answer_and_end_of_turn_and_nothing_else(self, tokenizer):
        assert spoken(tokenizer, CHAT) == (
            "<think>\ntwo and two\n\nare four\n</think>\n\n  4\n<|end_of_text|>"
            '<tool_call>{"name": "add", "arguments": {"a": 3, "b": 3}}</tool_call>'
            '<tool_call>{"name": "add", "arguments": {"a": 1, "b": 5}}</tool_call><|end_of_text|>'
            "Both give 6.<|end_of_text|>"
        )

    def test_earlier_turns_read_the_same_whatever_follows(self, tokenizer):
        whole = tokenizer.apply_chat_template(CHAT)["input_ids"]
        for turns in range(2, len(CHAT)):
            assert (
                tokenizer.apply_chat_template(CHAT[:turns])["input_ids"]
                == whole[: len(tokenizer.apply_chat_template(CHAT[:turns])["input_ids"])]
            )

    def test_the_generation_prompt_is_how_an_answer_begins(self, tokenizer):
        prompt = tokenizer.apply_chat_template(CHAT[:2], add_generation_prompt=True)["input_ids"]
        thinking = tokenizer.apply_chat_template(CHAT[:2], add_generation_prompt=True, enable_thinking=True)[
            "input_ids"
        ]
        whole = tokenizer.apply_chat_template(CHAT[:3])["input_ids"]
        assert whole[: len(prompt)] == prompt
        assert whole[: len(thinking)] == thinking
        assert tokenizer.decode(thinking[len(prompt) :]) == "<think>\n"

    def test_an_empty_thought_is_what_thinking_switched_off_prompts_with(self, tokenizer):
        prompt = tokenizer.apply_chat_template(CHAT[:2], add_generation_prompt=True, enable_thinking=False)["input_ids"]
        answer = {"role": "assistant", "content": "4", "reasoning_content": ""}
        whole = tokenizer.apply_chat_template([*CHAT[:2], answer])["input_ids"]
        assert whole[: len(prompt)] == prompt
        assert tokenizer.decode(whole[len(prompt) :]) == "4<|end_of_text|>"

    def test_documents_and_tools_stand_in_the_system_turn(self, tokenizer):
        text = tokenizer.apply_chat_template(
            CHAT[1:2],
            tokenize=False,
            documents=[{"title": "Sums", "text": "2 + 2 = 4"}, {"text": "no title"}],
            tools=[
                {"type": "function", "function": {"name": "add"}},
                {"type": "function", "function": {"name": "mul"}},
            ],
        )
        system = text.split("<|eot_id|>")[0]
        assert system.startswith(
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>Documents to rely on:\n\n[1] Sums\n2 + 2 = 4"
        )
        assert "[2] Untitled\nno title" in system
        assert '{"type": "function", "function": {"name": "mul"}}' in system

    def test_a_chat_without_system_tools_or_documents_has_no_system_turn(self, tokenizer):
        assert "system" not in tokenizer.apply_chat_template(CHAT[1:2], tokenize=False)

    def test_content_in_parts_is_joined_and_pictures_are_refused(self, tokenizer):
        parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
        assert "<|end_header_id|>ab<|eot_id|>" in tokenizer.apply_chat_template(parts, tokenize=False)
        with pytest.raises(Exception, match="reads text only"):
            tokenizer.apply_chat_template([{"role": "user", "content": [{"type": "image"}]}], tokenize=False)

    def test_an_unknown_role_is_refused(self, tokenizer):
        with pytest.raises(Exception, match="Unknown role"):
            tokenizer.apply_chat_template([{"role": "wizard", "content": "x"}], tokenize=False)

    def test_trl_can_train_on_it_as_it_is(self, tokenizer):
        assert get_training_chat_template(tokenizer) is None
        assert supports_tool_calling(tokenizer)
        assert is_chat_template_prefix_preserving(tokenizer)
        assert is_chat_template_stop_token_trained(tokenizer)

    def test_tags_stay_visible_when_special_tokens_are_skipped(self, tokenizer):
        ids = tokenizer.apply_chat_template(CHAT[:3])["input_ids"]
        assert "<think>\ntwo and two" in tokenizer.decode(ids, skip_special_tokens=True)
        assert ids.count(tokenizer.convert_tokens_to_ids("<think>")) == 1
