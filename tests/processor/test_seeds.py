"""The calls that the seeds show a person typing, with local stand-ins for the data sets and the tokenizer."""

from __future__ import annotations

import json

import pytest
from datasets import load_from_disk

from small_doge.processor import ft_datasets_process, pt_datasets_process

TEXT = "The list of values is sorted, and the mean of them is returned. "
ANSWER = (
    "<|begin_of_thought|>\n\ntwo and two\n\n<|end_of_thought|>\n\n<|begin_of_solution|>\n\n4\n\n<|end_of_solution|>"
)


def rows_of(name: str, number: int) -> dict:
    question = {"role": "user", "content": f"{name} {number}?"}
    answer = {"role": "assistant", "content": f"It is {number}."}
    if name == "smoltalk":
        return {"messages": [question, answer]}
    if name == "ultrafeedback_binarized":
        worse = {"role": "assistant", "content": "No."}
        return {"prompt": question["content"], "chosen": [question, answer], "rejected": [question, worse]}
    if name == "OpenThoughts-114k":
        turns = [{"from": "user", "value": question["content"]}, {"from": "assistant", "value": ANSWER}]
        return {"system": "Write <|begin_of_thought|> first.", "conversations": turns}
    if name == "OpenR1-Math-220k":
        said = f"<think>\nwhy {number}\n</think>\n\n4"
        return {"problem": "2+2?", "answer": "4", "messages": [question, {"role": "assistant", "content": said}]}
    return {"text": f"{name} {number}: {TEXT * 20}", "prompt": question["content"]}


@pytest.fixture
def stand_ins(tmp_path, monkeypatch):
    names = ("fineweb-edu", "cosmopedia-v2", "python-edu", "finemath", "smoltalk", "ultrafeedback_binarized")
    for name in (*names, "OpenThoughts-114k", "OpenR1-Math-220k"):
        (tmp_path / "sources" / name).mkdir(parents=True)
        lines = [json.dumps(rows_of(name, number)) for number in range(300)]
        (tmp_path / "sources" / name / "part.jsonl").write_text("\n".join(lines))
    monkeypatch.setenv("SMALL_DOGE_SOURCES", str(tmp_path / "sources"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("spelling", ["mix_datasets_by_radio", "mix_datasets_by_ratio"])
def test_the_pretraining_example(stand_ins, tokenizer, spelling):
    datasets_and_ratios = [{"fineweb-edu": 0.7}, {"cosmopedia-v2": 0.2}, {"python-edu": 0.05}, {"finemath": 0.05}]
    mixed_dataset = getattr(pt_datasets_process, spelling)(
        datasets_and_ratios=datasets_and_ratios,
        total_sample_size=128000000,
        dataset_text_field="text",
        processing_class=tokenizer,
        max_length=2048,
        packing=True,
        formatting_func=None,
        dataset_num_proc=16,
        seed=233,
        cache_dir="./cache",
    )
    mixed_dataset.save_to_disk("./datasets/pt_dataset")
    saved = load_from_disk("./datasets/pt_dataset")
    assert set(saved["train"].column_names) == {"input_ids", "seq_lengths"}
    assert mixed_dataset.report.figures["mix"]["largest_relative_error"] < 1e-3
    assert any("fineweb-edu ran out" in note for note in mixed_dataset.report.notes)


@pytest.mark.parametrize("spelling", ["mix_datasets_by_radio", "mix_datasets_by_ratio"])
@pytest.mark.parametrize("size", [1000000, None, -1], ids=["a million rows", "None", "minus one"])
def test_the_instruction_example(stand_ins, tokenizer, spelling, size):
    mixed_dataset = getattr(ft_datasets_process, spelling)(
        datasets_and_ratios=[{"smoltalk": 0.8}, {"ultrafeedback_binarized": 0.2}],
        total_sample_size=size,
        dataset_text_field="text",
        processing_class=tokenizer,
        max_length=2048,
        apply_chat_template=True,
        packing=False,
        formatting_func=None,
        dataset_num_proc=8,
        seed=42,
        cache_dir="./cache",
    )
    mixed_dataset.save_to_disk("./datasets/ft_dataset")
    row = load_from_disk("./datasets/ft_dataset")["train"][0]
    assert row["input_ids"].count(tokenizer.bos_token_id) == 1
    assert 0 < sum(row["assistant_masks"]) < len(row["input_ids"])


def custom_formatting_func(example):
    return {
        "conversation": [
            {"role": "user", "content": "Who are you?"},
            {"role": "assistant", "content": "I am an AI assistant named Doge."},
            {"role": "user", "content": example["messages"][0]["content"]},
            {"role": "assistant", "content": example["messages"][1]["content"]},
        ]
    }


def test_the_identity_example(stand_ins, tokenizer):
    mixed = ft_datasets_process.mix_datasets_by_radio(
        datasets_and_ratios=[{"smoltalk": 1.0}],
        formatting_func=custom_formatting_func,
        processing_class=tokenizer,
        apply_chat_template=True,
        cache_dir="./cache",
    )
    assert "I am an AI assistant named Doge.<|end_of_text|>" in tokenizer.decode(mixed["train"][0]["input_ids"])


def test_the_reasoning_example(stand_ins, tokenizer):
    mixed_dataset = ft_datasets_process.mix_datasets_by_radio(
        datasets_and_ratios=[{"OpenThoughts-114k": 0.7}, {"OpenR1-Math-220k": 0.3}],
        total_sample_size=500000,
        processing_class=tokenizer,
        max_length=4096,
        apply_chat_template=True,
        apply_thinking_template=True,
        packing=False,
        dataset_num_proc=8,
        seed=123,
        cache_dir="./cache",
    )
    mixed_dataset.save_to_disk("./datasets/reasoning_dataset")
    said = {
        tokenizer.decode([i for i, m in zip(row["input_ids"], row["assistant_masks"], strict=True) if m])
        for row in mixed_dataset["train"]
    }
    assert "<think>\ntwo and two\n</think>\n\n4<|end_of_text|>" in said
    assert all(text.startswith("<think>\n") for text in said)
