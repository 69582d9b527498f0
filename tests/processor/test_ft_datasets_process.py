from __future__ import annotations

import json

import numpy as np
import pytest
from datasets import load_from_disk

from small_doge.processor.documents import key_is_test
from small_doge.processor.ft_datasets_process import mix_datasets_by_radio, mix_datasets_by_ratio


def run(sources, tmp_path, **options):
    return mix_datasets_by_ratio(sources, cache_dir=tmp_path / "cache", **options)


def chats(count, name="q", words=3):
    return [
        {"prompt": f"{name} {i}?", "response": f"{name} answer {i} " + "list of values " * words} for i in range(count)
    ]


@pytest.fixture
def chat_file(write_jsonl):
    return write_jsonl("chats.jsonl", chats(200))


def test_messages_come_out_as_they_went_in(chat_file, tmp_path):
    mixed = run([{chat_file: 1.0}], tmp_path, test_share=0.1)
    rows = {json.dumps(row["messages"]) for part in mixed.values() for row in part}
    assert rows == {
        json.dumps([{"role": "user", "content": c["prompt"]}, {"role": "assistant", "content": c["response"]}])
        for c in chats(200)
    }
    assert mixed["train"].column_names == ["messages"]


def test_the_same_question_is_never_on_both_sides(write_jsonl, tmp_path):
    rows = [{"prompt": f"q {i % 50}", "response": f"answer {i}"} for i in range(200)]
    mixed = run([{write_jsonl("a.jsonl", rows): 1.0}], tmp_path, test_share=0.2)
    asked = {part: {row["messages"][0]["content"] for row in mixed[part]} for part in mixed}
    assert asked["test"] == {f"q {i}" for i in range(50) if key_is_test(f"user: q {i}", 0.2)}
    assert not asked["train"] & asked["test"]


def test_encoded_rows_carry_the_mask_of_what_the_assistant_says(chat_file, tokenizer, tmp_path):
    mixed = run([{chat_file: 1.0}], tmp_path, processing_class=tokenizer, apply_chat_template=True)
    assert mixed["train"].column_names == ["input_ids", "assistant_masks"]
    for row in mixed["train"].select(range(20)):
        text = tokenizer.decode(row["input_ids"])
        said = tokenizer.decode([i for i, m in zip(row["input_ids"], row["assistant_masks"], strict=True) if m])
        assert text.startswith("<|begin_of_text|><|start_header_id|>user")
        assert row["input_ids"].count(tokenizer.bos_token_id) == 1
        assert row["input_ids"][-1] == tokenizer.eos_token_id
        assert text.endswith(said)
        assert said.startswith("q answer")


def test_packed_rows_hold_whole_conversations(chat_file, tokenizer, tmp_path):
    options = {"processing_class": tokenizer, "apply_chat_template": True, "test_share": 0}
    packed = run([{chat_file: 1.0}], tmp_path, max_length=256, packing=True, **options)["train"]
    loose = run([{chat_file: 1.0}], tmp_path, max_length=256, **options)["train"]
    found = set()
    for row in packed:
        ends = np.cumsum(row["seq_lengths"])
        assert ends[-1] == len(row["input_ids"]) == len(row["assistant_masks"]) <= 256
        for end, size in zip(ends, row["seq_lengths"], strict=True):
            found.add((tuple(row["input_ids"][end - size : end]), tuple(row["assistant_masks"][end - size : end])))
    assert found == {(tuple(row["input_ids"]), tuple(row["assistant_masks"])) for row in loose}
    assert len(packed) < len(loose) / 2


def test_a_conversation_longer_than_a_row_is_left_out_and_counted_never_cut(write_jsonl, tokenizer, tmp_path):
    path = write_jsonl("a.jsonl", [*chats(20), *chats(5, "long", words=200)])
    mixed = run([{path: 1.0}], tmp_path, processing_class=tokenizer, apply_chat_template=True, max_length=128)
    assert mixed.report.dropped[path] == {"longer than max_length 128": 5}
    assert sorted(mixed.report.examples["longer than max_length 128"]) == [f"{path}:{n}" for n in range(21, 26)]


def test_thoughts_are_rendered_whole_and_learnt(write_jsonl, tokenizer, tmp_path):
    rows = [
        {"prompt": f"q {i}", "response": f"<thinking>\nfirst\n\nthen {i}\n</thinking>\n\nit is {i}"} for i in range(30)
    ]
    options = {"processing_class": tokenizer, "apply_chat_template": True, "apply_thinking_template": True}
    mixed = run([{write_jsonl("a.jsonl", rows): 1.0}], tmp_path, test_share=0, **options)
    said = {
        tokenizer.decode([i for i, m in zip(row["input_ids"], row["assistant_masks"], strict=True) if m])
        for row in mixed["train"]
    }
    assert said == {f"<think>\nfirst\n\nthen {i}\n</think>\n\nit is {i}<|end_of_text|>" for i in range(30)}


def test_preferences_come_out_as_prompt_chosen_rejected(write_jsonl, tmp_path):
    user = {"role": "user", "content": "Why?"}
    rows = [
        {
            "chosen": [user, {"role": "assistant", "content": f"good {i}"}],
            "rejected": [user, {"role": "assistant", "content": "bad"}],
        }
        for i in range(10)
    ]
    mixed = run([{write_jsonl("a.jsonl", rows): 1.0}], tmp_path, test_share=0)
    assert mixed["train"].column_names == ["prompt", "chosen", "rejected"]
    assert mixed["train"][0]["prompt"] == [user]
    assert {row["chosen"][0]["content"] for row in mixed["train"]} == {f"good {i}" for i in range(10)}


def test_preferences_alone_stay_pairs_where_a_chat_template_is_asked_for(write_jsonl, tokenizer, tmp_path):
    pairs = write_jsonl("pairs.jsonl", [{"prompt": f"p {i}", "chosen": "good", "rejected": "bad"} for i in range(50)])
    options = {"processing_class": tokenizer, "apply_chat_template": True}
    mixed = run([{pairs: 1.0}], tmp_path, total_sample_size=20, **options)
    assert mixed["train"].column_names == ["prompt", "chosen", "rejected"]
    assert len(mixed["train"]) == 20
    assert mixed.report.figures["mix"]["unit"] == "rows"


def test_preferences_among_conversations_give_their_chosen_answers_and_a_note(write_jsonl, chat_file, tmp_path):
    pairs = write_jsonl("pairs.jsonl", [{"prompt": f"p {i}", "chosen": "good", "rejected": "bad"} for i in range(50)])
    mixed = run([{chat_file: 0.8}, {pairs: 0.2}], tmp_path, total_sample_size=100)
    answers = [row["messages"][-1]["content"] for row in mixed["train"]]
    assert len(answers) == 100
    assert answers.count("good") == 20
    assert "bad" not in answers
    assert any("chosen answers are used" in note for note in mixed.report.notes)


def test_tools_travel_with_their_conversations(write_jsonl, tmp_path):
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    rows = [
        {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]},
        {
            "messages": [
                {"role": "user", "content": "add"},
                {"role": "assistant", "content": None, "tool_calls": [call]},
            ],
            "tools": [{"name": "add"}],
        },
    ]
    mixed = run([{write_jsonl("a.jsonl", rows): 1.0}], tmp_path, test_share=0)
    by_prompt = {row["messages"][0]["content"]: row for row in mixed["train"]}
    assert json.loads(by_prompt["add"]["tools"]) == [{"name": "add"}]
    assert by_prompt["add"]["messages"][1]["tool_calls"][0]["function"] == {"name": "add", "arguments": '{"a": 1}'}
    assert by_prompt["hi"]["tools"] is None


def test_columns_asked_for_are_kept(write_jsonl, tokenizer, tmp_path):
    rows = [{"question": f"{i}+{i}?", "answer": str(2 * i)} for i in range(20)]
    path = write_jsonl("a.jsonl", rows)
    plain = run([{path: 1.0}], tmp_path, keep_columns=["answer"], test_share=0)["train"]
    assert {(row["messages"][0]["content"], row["answer"]) for row in plain} == {
        (r["question"], r["answer"]) for r in rows
    }
    encoded = run(
        [{path: 1.0}],
        tmp_path,
        keep_columns=["answer"],
        processing_class=tokenizer,
        apply_chat_template=True,
        test_share=0,
    )["train"]
    assert {row["answer"] for row in encoded} == {r["answer"] for r in rows}


def test_a_dictionary_is_kept_as_json_whose_fields_may_differ_between_rows(write_jsonl, tmp_path):
    metadata = [{"task": "sum", "terms": [1, 2]}, {"task": "name", "terms": "none"}] * 10
    rows = [{"question": f"{i}?", "answer": "1", "metadata": about} for i, about in enumerate(metadata)]
    kept = run([{write_jsonl("a.jsonl", rows): 1.0}], tmp_path, keep_columns=["metadata"], test_share=0)["train"]
    found = {row["messages"][0]["content"]: json.loads(row["metadata"]) for row in kept}
    assert found == {row["question"]: row["metadata"] for row in rows}


def test_the_seeds_formatting_functions_work(write_jsonl, tmp_path):
    def with_identity(example):
        return {
            "conversation": [
                {"role": "user", "content": "Who are you?"},
                {"role": "assistant", "content": "I am Doge."},
                {"role": "user", "content": example["prompt"]},
                {
                    "role": "assistant",
                    "content": f"<thinking>\n{example['thinking']}\n</thinking>\n\n{example['response']}",
                },
            ]
        }

    path = write_jsonl("a.jsonl", [{"prompt": "p", "thinking": "t", "response": "r"}])
    mixed = run([{path: 1.0}], tmp_path, formatting_func=with_identity, apply_thinking_template=True, test_share=0)
    messages = mixed["train"][0]["messages"]
    assert messages[1]["content"] == "I am Doge."
    assert (messages[3]["reasoning_content"], messages[3]["content"]) == ("t", "r")


def test_every_row_is_accounted_for(write_jsonl, tmp_path):
    path = write_jsonl("a.jsonl", [*chats(30), {"prompt": "only"}, {"messages": [{"role": "user", "content": "x"}]}])
    with open(path, "a", encoding="utf-8") as file:
        file.write("{broken\n")
    report = run([{path: 1.0}], tmp_path).report
    report.check()
    assert report.read[path] == 33
    assert report.dropped_total(path) == 3
    assert report.figures["train"]["rows"] + report.figures["test"]["rows"] == 30


def test_one_two_and_eight_workers_give_the_same_rows_and_report(write_jsonl, tokenizer, tmp_path):
    sources = [{write_jsonl(f"{name}.jsonl", chats(300, name)): ratio} for name, ratio in [("a", 0.7), ("b", 0.3)]]
    options = {"processing_class": tokenizer, "apply_chat_template": True, "max_length": 60, "total_sample_size": 90}
    made = [
        mix_datasets_by_ratio(sources, cache_dir=tmp_path / str(n), dataset_num_proc=n, **options) for n in (1, 2, 8)
    ]
    assert len(made[0]["train"]) == 90
    for other in made[1:]:
        assert other["train"][:] == made[0]["train"][:]
        assert other["test"][:] == made[0]["test"][:]
        assert other.report.as_dict() == made[0].report.as_dict()


def test_messages_come_before_tools_whichever_row_is_first(write_jsonl, tmp_path):
    without, other = chats(2)
    with_tools = {**other, "tools": [{"name": "f"}]}
    for number, rows in enumerate([[with_tools, without], [without, with_tools]]):
        mixed = run([{write_jsonl(f"{number}.jsonl", rows): 1.0}], tmp_path, shuffle=False, test_share=0.0)
        assert mixed["train"].column_names == ["messages", "tools"]


def test_a_source_that_starts_again_adds_nothing_to_the_test_part(write_jsonl, tmp_path):
    path = write_jsonl("a.jsonl", chats(40))
    mixed = run([{path: 1.0}], tmp_path, total_sample_size=100, repeat=True, test_share=0.2)
    asked = [row["messages"][0]["content"] for row in mixed["test"]]
    assert len(asked) == len(set(asked)) > 0
    assert len(mixed["train"]) == 100
    mixed.report.check()


def test_quality_blocks_judge_the_text_of_all_messages(write_jsonl, tmp_path):
    question = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
    held = write_jsonl("eval.jsonl", [{"question": question}])
    rows = [*chats(30), *chats(10), {"prompt": f"Tell me: {question}?", "response": "no"}]
    path = write_jsonl("a.jsonl", rows)
    quality = {"exact_duplicates": True, "decontaminate": [held]}
    report = run([{path: 1.0}], tmp_path, quality=quality).report
    assert report.dropped[path] == {
        "exact duplicate": 10,
        "shares 13 words in a row with evaluation data": 1,
    }
    assert report.examples["shares 13 words in a row with evaluation data"] == [f"{path}:41"]


def test_ratios_by_rows_are_exact(write_jsonl, tmp_path):
    sources = [{write_jsonl(f"{name}.jsonl", chats(300, name)): ratio} for name, ratio in [("a", 0.7), ("b", 0.3)]]
    mixed = run(sources, tmp_path, total_sample_size=200)
    names = [row["messages"][0]["content"][0] for row in mixed["train"]]
    assert (names.count("a"), names.count("b")) == (140, 60)


def test_the_saved_folder_holds_the_report(chat_file, tmp_path):
    mixed = run([{chat_file: 1.0}], tmp_path, test_share=0.1)
    mixed.save_to_disk(tmp_path / "saved")
    assert load_from_disk(str(tmp_path / "saved"))["test"][:] == mixed["test"][:]
    assert json.loads((tmp_path / "saved" / "data_report.json").read_text())["kind"] == "conversation"


def test_radio_is_an_alias():
    assert mix_datasets_by_radio is mix_datasets_by_ratio


@pytest.mark.parametrize(
    ("options", "mend"),
    [
        ({"packing": True}, "apply_chat_template=True"),
        ({"ratio_by": "tokens"}, "apply_chat_template=True"),
        ({"apply_chat_template": True, "packing": True, "keep_columns": ["id"]}, "cannot keep columns"),
        ({"kind": "chat"}, "'conversation', 'preference'"),
        ({"apply_chat_template": True}, "processing_class is missing"),
        ({"kind": "preference"}, "no usable training row"),
        ({"formatting_func": str}, "let it return a dict"),
    ],
    ids=str,
)
def test_arguments_that_cannot_be_meant_are_refused(chat_file, tmp_path, options, mend):
    with pytest.raises(ValueError, match=mend):
        run([{chat_file: 1.0}], tmp_path, **options)


def test_a_template_without_generation_marks_is_refused(chat_file, tokenizer, tmp_path):
    import copy

    other = copy.deepcopy(tokenizer)
    other.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(ValueError, match="does not mark what the assistant says"):
        run([{chat_file: 1.0}], tmp_path, processing_class=other, apply_chat_template=True)


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("sft/oasst_en_100", ["messages"]),
        ("sft/llamafactory_glaive_toolcall_zh", ["messages", "tools"]),
        ("preference/llamafactory_dpo_zh", ["prompt", "chosen", "rejected"]),
        ("reasoning/gsm8k_train", ["messages"]),
        ("reasoning/math_train7500", ["messages"]),
    ],
)
def test_real_files_are_read_without_loss(data_folder, tmp_path, name, columns):
    path = str(data_folder / f"{name}.jsonl.zst")
    mixed = run([{path: 1.0}], tmp_path, apply_thinking_template=True)
    assert mixed["train"].column_names == columns
    assert mixed.report.dropped_total() <= 0.01 * mixed.report.read[path]
