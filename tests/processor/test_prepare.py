from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import yaml

from small_doge.processor.prepare import inspect_folder, list_sources, prepare, show_source
from small_doge.processor.report import Report


@pytest.fixture
def recipe(text_file, tokenizer, tmp_path):
    """Writes a pretraining recipe and returns its path."""
    tokenizer.save_pretrained(tmp_path / "tokenizer")

    def write(**changes):
        settings = {
            "stage": "pt",
            "output": str(tmp_path / "out"),
            "tokenizer": str(tmp_path / "tokenizer"),
            "datasets_and_ratios": [{text_file("a.jsonl", 100): 0.7}, {text_file("b.jsonl", 100): 0.3}],
            "total_sample_size": 20,
            "max_length": 128,
            **changes,
        }
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in settings.items() if value is not None}))
        return path

    return write


def test_a_recipe_becomes_a_folder_with_its_report_and_nothing_else(recipe, tmp_path):
    report = prepare(recipe())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "data_report.json",
        "dataset_dict.json",
        "test",
        "train",
    ]
    assert Report.load(tmp_path / "out").as_dict() == report.as_dict()
    shown = inspect_folder(tmp_path / "out", str(tmp_path / "tokenizer"), rows=20)
    assert shown["parts"]["train"]["rows"] == 20
    assert shown["parts"]["train"]["tokens"] == 20 * 128
    pieces = [piece for row in shown["parts"]["train"]["first_rows"] for piece in row]
    assert sum(piece.startswith("<|begin_of_text|>") for piece in pieces) > 5
    assert shown["report"]["mix"]["unit"] == "tokens"


def test_overrides_win_over_the_recipe(recipe, tmp_path):
    prepare(recipe(), {"total_sample_size": 7})
    assert inspect_folder(tmp_path / "out")["parts"]["train"]["rows"] == 7


def test_environment_variables_stand_for_their_values(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("WHERE", str(tmp_path))
    prepare(recipe(datasets_and_ratios=[{"${WHERE}/a.jsonl": 0.5}, {"$WHERE/b.jsonl": 0.5}], output="$WHERE/out"))
    assert inspect_folder(tmp_path / "out")["parts"]["train"]["rows"] == 20
    with pytest.raises(ValueError, match="export NOWHERE="):
        prepare(recipe(output="$NOWHERE/out"))


def test_a_pattern_of_files_is_one_source(recipe, tmp_path):
    report = prepare(recipe(datasets_and_ratios=[{f"{tmp_path}/[ab].jsonl": 1.0}], total_sample_size=None))
    assert list(report.read.values()) == [200]
    with pytest.raises(ValueError, match="correct the pattern"):
        prepare(recipe(datasets_and_ratios=[{f"{tmp_path}/*.zst": 1.0}]))


def every_byte(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_preparing_again_with_other_workers_gives_the_same_folder_byte_for_byte(recipe, tmp_path):
    path = recipe()
    prepare(path)
    first = every_byte(tmp_path / "out")
    prepare(path, {"dataset_num_proc": 2})
    assert every_byte(tmp_path / "out") == first


# As `small-doge data prepare RECIPE`, with small shards and a pause after each, so that a kill meets a run under way.
SLOW_PREPARE = """
import sys, time
from small_doge.processor import pretrain_mix
from small_doge.processor.prepare import prepare

class Slow(pretrain_mix.PretrainMix):
    def __init__(self, **arguments):
        super().__init__(**arguments, window_rows=32, shard_rows=64, progress=lambda tokens: time.sleep(0.2))

import small_doge.processor.pt_datasets_process as process
process.PretrainMix = Slow
prepare(sys.argv[1], {"output": sys.argv[2]})
"""


@pytest.mark.slow
def test_kill_9_during_preparation_and_starting_again_gives_the_same_folder(recipe, text_file, tmp_path):
    sources = [{text_file("a.jsonl", 1500): 0.7}, {text_file("b.jsonl", 700): 0.3}]
    path = recipe(datasets_and_ratios=sources, max_length=64, total_sample_size=None, test_share=0.05)
    whole, killed = tmp_path / "whole", tmp_path / "killed"

    def start(folder):
        return subprocess.Popen([sys.executable, "-c", SLOW_PREPARE, str(path), str(folder)], env=dict(os.environ))

    assert start(whole).wait() == 0
    rng, kills = random.Random(0), 0
    for _ in range(3):
        process, before = start(killed), set(killed.rglob("*.arrow"))
        while process.poll() is None and not set(killed.rglob("*.arrow")) - before:
            time.sleep(0.02)
        time.sleep(rng.random() * 0.3)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills == 3
    assert not (killed / "dataset_dict.json").exists()
    assert start(killed).wait() == 0
    assert len(list((killed / "train").glob("*.arrow"))) > 4
    assert every_byte(killed) == every_byte(whole)


def test_what_the_assistant_says_is_shown_in_brackets(write_jsonl, recipe, tmp_path):
    path = write_jsonl("chats.jsonl", [{"prompt": f"q{i}", "response": f"a{i}"} for i in range(5)])
    changes = {
        "stage": "ft",
        "apply_chat_template": True,
        "datasets_and_ratios": [{path: 1.0}],
        "total_sample_size": None,
    }
    prepare(recipe(**changes, test_share=0.0))
    text = inspect_folder(tmp_path / "out", str(tmp_path / "tokenizer"))["parts"]["train"]["first_rows"][0][0]
    assert text.endswith("<|end_of_text|>⟧")
    assert "assistant<|end_header_id|>⟦a" in text


@pytest.mark.parametrize(
    ("changes", "mend"),
    [
        ({"max_lenght": 3}, "did you mean 'max_length'"),
        ({"zzzz": 3}, "known are stage"),
        ({"stage": "dpo"}, "one of pt, ft"),
        ({"output": None}, "add `output"),
        ({"datasets_and_ratios": None}, "names no sources"),
        ({"tokenizer": None}, "processing_class is missing"),
    ],
    ids=str,
)
def test_a_recipe_with_a_mistake_names_the_mend(recipe, changes, mend):
    with pytest.raises(ValueError, match=mend):
        prepare(recipe(**changes))


def test_files_that_are_no_data_set_are_not_deleted(recipe, tmp_path):
    prepare(recipe())
    notes = tmp_path / "out" / "train" / "notes.txt"
    notes.write_text("mine")
    with pytest.raises(ValueError, match=r"notes\.txt is no part of a data set"):
        prepare(recipe())
    assert notes.read_text() == "mine"


@pytest.mark.parametrize(
    ("text", "mend"), [("a: [", "not valid YAML"), ("- 1", "holds no settings"), (None, "no recipe")]
)
def test_a_recipe_that_cannot_be_read_names_the_mend(tmp_path, text, mend):
    path = tmp_path / "recipe.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=mend):
        prepare(path)


def test_sources_are_listed_and_shown(write_jsonl):
    names = {row["name"]: row for row in list_sources()}
    assert names["finemath"]["license"] == "ODC-By-1.0"
    assert names["builtin:arithmetic"]["from"] == "here"
    assert json.dumps(list_sources())
    shown = show_source(write_jsonl("a.jsonl", [{"text": "x"}] * 5), rows=3)
    assert [row["text"] for row in shown["rows"]] == ["x"] * 3
    assert shown["rows"][0]["origin"].endswith("a.jsonl:1")


def test_a_folder_without_a_data_set_is_refused(tmp_path):
    with pytest.raises(ValueError, match="give the output of"):
        inspect_folder(tmp_path)
