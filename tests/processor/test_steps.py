from __future__ import annotations

import argparse
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import load_from_disk

from small_doge.processor.documents import iter_documents
from small_doge.processor.report import Report
from small_doge.processor.steps import concatenate, download, process_chats, tokenize_sources

SCRIPTS = Path(__file__).parents[2] / "examples" / "utils"
SEEDS = SCRIPTS / "download_pt_datasets.py"


def test_download_saves_the_rows_and_does_not_fetch_twice(text_file, tmp_path):
    path = text_file("a.jsonl", 25)
    assert download([path], tmp_path / "d", max_rows=20) == {path: 20}
    Path(path).unlink()
    assert download([path], tmp_path / "d") == {path: 20}
    assert [item.name for item in sorted((tmp_path / "d" / "a.jsonl").iterdir())] == [
        "COMPLETE",
        "part-00000.jsonl.zst",
    ]


def test_two_sources_of_one_name_are_refused(tmp_path):
    with pytest.raises(ValueError, match="under one name: download them to different folders"):
        download(["a/rows.jsonl", "b/rows.jsonl"], tmp_path)


def test_a_downloaded_folder_is_read_back_row_for_row_and_what_was_unreadable_is_named(text_file, tmp_path, caplog):
    path = text_file("a.jsonl", 25)
    with open(path, "a", encoding="utf-8") as file:
        file.write("{broken\n")
    download([path], tmp_path / "d")
    assert f"1 rows left out: unreadable line, first at {path}:26" in caplog.text
    report = Report()
    assert len(list(iter_documents(str(tmp_path / "d" / "a.jsonl"), report=report))) == 25
    assert report.dropped_total() == 0


def test_the_three_steps_give_one_shuffled_pretraining_set(text_file, tokenizer, tmp_path):
    d = tmp_path / "d"
    for name in ("a", "b"):
        (d / name).mkdir(parents=True)
        Path(text_file(f"{name}.jsonl", 200)).rename(d / name / "rows.jsonl")
    tokenize_sources({"a": 0.7, "b": 0.3}, d, d, tokenizer, train_examples=60, test_examples=10, max_length=128)
    assert len(load_from_disk(str(d / "a_tokenized"))["train"]) == 42
    rows = concatenate([d / "a_tokenized", d / "b_tokenized"], d / "pretrain", train_examples=50, test_examples=2)
    assert rows["train"] == 50
    assert rows["test"] <= 2
    again = concatenate([d / "a_tokenized", d / "b_tokenized"], d / "again", train_examples=50)
    assert load_from_disk(str(d / "again"))["train"][:] == load_from_disk(str(d / "pretrain"))["train"][:]
    assert again["train"] == 50


def test_chats_are_encoded_and_pairs_kept_apart(write_jsonl, tokenizer, tmp_path):
    write_jsonl(
        "d/smoltalk/a.jsonl",
        [
            {"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "a"}]}
            for i in range(10)
        ],
    )
    write_jsonl(
        "d/ultrafeedback_binarized/a.jsonl", [{"prompt": f"q{i}", "chosen": "a", "rejected": "b"} for i in range(10)]
    )
    d = tmp_path / "d"
    process_chats(["smoltalk", "ultrafeedback_binarized"], d, d, tokenizer)
    assert load_from_disk(str(d / "smoltalk_processed"))["train"].column_names == ["input_ids", "assistant_masks"]
    pairs = load_from_disk(str(d / "ultrafeedback_binarized_processed"))["train"]
    assert pairs.column_names == ["prompt", "chosen", "rejected"]
    with pytest.raises(ValueError, match="different columns"):
        concatenate([d / "smoltalk_processed", d / "ultrafeedback_binarized_processed"], d / "out")


def test_a_missing_step_is_named(tmp_path, tokenizer):
    with pytest.raises(ValueError, match="run the preprocessing first"):
        concatenate([tmp_path / "a_tokenized"], tmp_path / "out")
    with pytest.raises(ValueError, match="download it, or put"):
        tokenize_sources({"a": 1.0}, tmp_path, tmp_path, tokenizer, train_examples=1, test_examples=1)


def script(name, *arguments):
    command = [sys.executable, str(SCRIPTS / name), *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )


@pytest.mark.slow
def test_the_scripts_run_with_the_flags_of_the_guide(text_file, write_jsonl, tokenizer, tmp_path):
    d = tmp_path / "datasets"
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    names = {Path(text_file(f"{name}.jsonl", 100)): ratio for name, ratio in (("a", 0.7), ("b", 0.3))}
    ratios = json.dumps({path.name: ratio for path, ratio in names.items()})
    steps = [
        (
            "download_pt_datasets.py",
            "--save_dir",
            d,
            "--cache_dir",
            tmp_path / "cache",
            "--num_proc",
            1,
            "--is_parallel",
            "False",
            "--names",
            *names,
        ),
        (
            "preprocess_pt_datasets.py",
            "--datasets_dir",
            d,
            "--save_dir",
            d,
            "--tokenizer_name_or_path",
            tmp_path / "tokenizer",
            "--train_examples",
            30,
            "--test_examples",
            4,
            "--max_length",
            128,
            "--num_proc",
            2,
            "--ratios",
            ratios,
        ),
        (
            "concatenate_pt_datasets.py",
            "--datasets_dir",
            d,
            "--save_dir",
            d,
            "--train_examples",
            30,
            "--test_examples",
            4,
            "--num_proc",
            1,
        ),
        (
            "train_tokenizer_from_old.py",
            "--tokenizer_name_or_path",
            tmp_path / "tokenizer",
            "--datasets_dir",
            d,
            "--save_dir",
            tmp_path / "new",
            "--vocab_size",
            350,
            "--ratios",
            ratios,
        ),
    ]
    for step in steps:
        done = script(*step)
        assert done.returncode == 0, done.stderr[-2000:]
    assert len(load_from_disk(str(d / "pretrain"))["train"]) == 30
    assert "350 tokens" in done.stdout


@pytest.mark.slow
def test_the_fine_tuning_scripts_run_with_the_flags_of_the_guide(write_jsonl, tokenizer, tmp_path):
    d = tmp_path / "datasets"
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    chats = write_jsonl("chats.jsonl", [{"prompt": f"q{i}?", "response": "<think>\nso\n</think>a"} for i in range(30)])
    pairs = write_jsonl("pairs.jsonl", [{"prompt": f"q{i}?", "chosen": "a", "rejected": "b"} for i in range(30)])
    names = [Path(chats).name, Path(pairs).name]
    steps = [
        ("download_ft_dataset.py", "--save_dir", d, "--cache_dir", tmp_path / "cache", "--num_proc", 1, "--names"),
        ("preprocess_ft_datasets.py", "--datasets_dir", d, "--save_dir", d, "--num_proc", 8, "--names"),
        ("concatenate_ft_datasets.py", "--datasets_dir", d, "--save_dir", d, "--num_proc", 1),
    ]
    arguments = [[chats, pairs], [*names, "--tokenizer_name_or_path", tmp_path / "tokenizer"], []]
    for step, more in zip(steps, arguments, strict=True):
        done = script(*step, *more)
        assert done.returncode == 0, done.stderr[-2000:]
    text = tokenizer.decode(load_from_disk(str(d / "finetune"))["train"][0]["input_ids"])
    assert "<think>\nso\n</think>\n\na<|end_of_text|>" in text
    assert load_from_disk(str(d / "preference"))["train"].column_names == ["prompt", "chosen", "rejected"]


def test_is_parallel_false_means_false():
    yes_or_no = runpy.run_path(str(SEEDS))["yes_or_no"]
    assert yes_or_no("False") is False
    assert yes_or_no("True") is True
    with pytest.raises(argparse.ArgumentTypeError, match="neither True nor False"):
        yes_or_no("maybe")


@pytest.mark.parametrize(
    ("name", "arguments", "mend"),
    [
        ("download_pt_datasets.py", ["--names", "./nowhere.jsonl"], "correct the path"),
        ("preprocess_pt_datasets.py", ["--datasets_dir", "nowhere"], "download it"),
        ("preprocess_ft_datasets.py", ["--datasets_dir", "nowhere"], "download it"),
        ("concatenate_pt_datasets.py", ["--datasets_dir", "nowhere"], "run the preprocessing first"),
        ("concatenate_ft_datasets.py", ["--datasets_dir", "nowhere"], "run preprocess_ft_datasets.py first"),
        ("train_tokenizer_from_old.py", ["--datasets_dir", "nowhere"], "download it"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_script_answers_a_mistake_with_one_line(name, arguments, mend, tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tokenizer.save_pretrained("tokenizer")
    if name.startswith("preprocess"):
        arguments = [*arguments, "--tokenizer_name_or_path", "./tokenizer"]
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(SCRIPTS / name), run_name="__main__")
    line = str(stopped.value)
    assert line.startswith("error: ") and mend in line and "\n" not in line
