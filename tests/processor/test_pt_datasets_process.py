from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from datasets import load_from_disk

from small_doge.processor.documents import key_is_test
from small_doge.processor.encoding import Encoder
from small_doge.processor.pretrain_mix import PretrainMix
from small_doge.processor.pt_datasets_process import mix_datasets_by_radio, mix_datasets_by_ratio
from small_doge.processor.report import Report
from small_doge.processor.token_stream import DocumentEncoder


def run(sources, tokenizer, tmp_path, **options):
    return mix_datasets_by_ratio(sources, processing_class=tokenizer, cache_dir=tmp_path / "cache", **options)


def pieces(part, tokenizer):
    """The pieces of all rows, decoded."""
    for row in part:
        ends = np.cumsum(row["seq_lengths"])
        assert ends[-1] == len(row["input_ids"])
        for end, size in zip(ends, row["seq_lengths"], strict=True):
            yield tokenizer.decode(row["input_ids"][end - size : end])


def test_every_document_is_in_train_or_in_test_word_for_word(text_file, tokenizer, tmp_path):
    path = text_file("a.jsonl", 120, words=(5, 60))
    texts = [json.loads(line)["text"] for line in Path(path).read_text(encoding="utf-8").splitlines()]
    mixed = run([{path: 1.0}], tokenizer, tmp_path, max_length=512, test_share=0.2)
    found = {part: set(pieces(mixed[part], tokenizer)) for part in ("train", "test")}
    whole = 0
    for text in texts:
        part = "test" if key_is_test(text, 0.2) else "train"
        whole += f"<|begin_of_text|>{text}<|end_of_text|>" in found[part]
    assert whole >= 0.9 * len(texts)
    joined = {part: "".join(rows) for part, rows in found.items()}
    assert sum(len(part) for part in joined.values()) == sum(map(len, texts)) + len(texts) * len(
        "<|begin_of_text|><|end_of_text|>"
    )


def test_tokens_out_are_tokens_in_plus_one_bos_and_eos_a_document(text_file, tokenizer, tmp_path):
    path = text_file("a.jsonl", 100)
    texts = [json.loads(line)["text"] for line in Path(path).read_text(encoding="utf-8").splitlines()]
    mixed = run([{path: 1.0}], tokenizer, tmp_path, max_length=256, test_share=0)
    ids = np.concatenate([row["input_ids"] for row in mixed["train"]])
    assert len(ids) == sum(len(Encoder(tokenizer).encode(text)) + 2 for text in texts)
    assert (ids == 0).sum() == (ids == 1).sum() == 100
    assert mixed.report.figures["train"]["truncation_rate"] == 0
    assert len(mixed["test"]) == 0
    assert mixed["test"].column_names == ["input_ids", "seq_lengths"]


def test_the_columns_are_what_a_trainer_reads(text_file, tokenizer, tmp_path):
    mixed = run([{text_file("a.jsonl", 60): 1.0}], tokenizer, tmp_path, max_length=128, test_share=0.1)
    for part in mixed.values():
        assert {name: str(feature.feature.dtype) for name, feature in part.features.items()} == {
            "input_ids": "int32",
            "seq_lengths": "int32",
        }
        assert len(part) > 0


def test_shares_are_met_exactly_and_the_rows_are_as_many_as_asked(text_file, tokenizer, tmp_path):
    sources = [{text_file("a.jsonl", 400): 7}, {text_file("b.jsonl", 200): 2}, {text_file("c.jsonl", 60): 1}]
    mixed = run(sources, tokenizer, tmp_path, total_sample_size=150, max_length=256)
    assert len(mixed["train"]) == 150
    assert {len(row["input_ids"]) for row in mixed["train"]} == {256}
    figures = mixed.report.figures["mix"]
    assert figures["largest_relative_error"] < 1e-3
    text = "".join(pieces(mixed["train"], tokenizer))
    names = [text.count(f"<|begin_of_text|>{name}.jsonl") for name in "abc"]
    assert names[0] > names[1] > names[2] > 0


def test_a_source_that_runs_out_bounds_the_mix_and_is_reported(text_file, tokenizer, tmp_path):
    small = text_file("small.jsonl", 20)
    sources = [{text_file("big.jsonl", 300): 0.5}, {small: 0.5}]
    mixed = run(sources, tokenizer, tmp_path, total_sample_size=1000, max_length=128)
    assert any("small.jsonl ran out" in note for note in mixed.report.notes)
    assert mixed.report.figures["mix"]["largest_relative_error"] < 1e-3
    again = run(sources, tokenizer, tmp_path, total_sample_size=300, max_length=128, repeat=True)
    assert len(again["train"]) == 300
    assert any("starts again" in note for note in again.report.notes)


def test_every_row_of_the_input_is_accounted_for(text_file, tokenizer, tmp_path):
    path = text_file("a.jsonl", 200)
    with open(path, "a", encoding="utf-8") as file:
        file.write('{"text": 3}\n{"no": "text"}\n{broken\n')
    mixed = run([{path: 1.0}], tokenizer, tmp_path, max_length=128, test_share=0.3, test_sample_size=10)
    report = mixed.report
    report.check()
    assert report.read[path] == 203
    assert report.dropped[path]["unreadable line"] == 1
    assert report.dropped[path]["test part full"] > 0
    in_rows = report.figures["train"]["sequences"] + report.figures["test"]["sequences"]
    assert in_rows == report.kept[path]
    assert len(mixed["test"]) <= 10


def test_the_counts_add_up_where_only_a_part_is_needed(text_file, tokenizer, tmp_path):
    paths = [text_file("a.jsonl", 500), text_file("b.jsonl", 500)]
    mixed = run([{path: 0.5} for path in paths], tokenizer, tmp_path, total_sample_size=20, max_length=128)
    report = mixed.report
    report.check()
    in_rows = report.figures["train"]["sequences"] + report.figures["test"]["sequences"]
    assert sum(report.kept.values()) == in_rows < 200
    assert all(report.dropped[path]["not needed for the size asked for"] > 300 for path in paths)


def test_a_source_that_starts_again_adds_nothing_to_the_test_part(text_file, tokenizer, tmp_path):
    path = text_file("a.jsonl", 60, words=(5, 60))
    options = {"max_length": 64, "test_share": 0.2}
    once = run([{path: 1.0}], tokenizer, tmp_path, **options)
    mixed = run([{path: 1.0}], tokenizer, tmp_path, total_sample_size=3 * len(once["train"]), repeat=True, **options)
    assert sorted(pieces(mixed["test"], tokenizer)) == sorted(pieces(once["test"], tokenizer))
    mixed.report.check()
    assert mixed.report.dropped[path]["test document met again"] > 0


def test_only_what_is_used_is_tokenized(text_file, tokenizer, tmp_path, monkeypatch):
    encoded = []
    original = Encoder.encode_batch
    monkeypatch.setattr(Encoder, "encode_batch", lambda self, texts: encoded.extend(texts) or original(self, texts))
    path = text_file("a.jsonl", 3000, words=(200, 300))
    run([{path: 1.0}], tokenizer, tmp_path, total_sample_size=5, max_length=128)
    assert len(encoded) < 600


def test_the_arguments_are_left_as_they_are(text_file, tokenizer, tmp_path):
    path = text_file("a.jsonl", 30)
    sources = [{path: 1.0}]
    run(sources, tokenizer, tmp_path)
    assert sources == [{path: 1.0}]
    run(sources, tokenizer, tmp_path)


def test_radio_is_an_alias():
    assert mix_datasets_by_radio is mix_datasets_by_ratio


def test_a_second_call_finds_the_result_and_a_changed_file_does_not(text_file, tokenizer, tmp_path, monkeypatch):
    path = text_file("a.jsonl", 30)
    first = run([{path: 1.0}], tokenizer, tmp_path, max_length=128)
    runs = []
    original = PretrainMix.run
    monkeypatch.setattr(PretrainMix, "run", lambda self, folder: runs.append(1) or original(self, folder))
    second = run([{path: 1.0}], tokenizer, tmp_path, max_length=128, dataset_num_proc=3)
    assert not runs
    assert second["train"][:] == first["train"][:]
    assert second.report.as_dict() == first.report.as_dict()
    with open(path, "a", encoding="utf-8") as file:
        file.write('{"text": "one more document"}\n')
    third = run([{path: 1.0}], tokenizer, tmp_path, max_length=128)
    assert len(runs) == 1
    assert third.report.read[path] == 31


def test_the_saved_folder_holds_both_parts_and_the_report(text_file, tokenizer, tmp_path):
    mixed = run([{text_file("a.jsonl", 50): 1.0}], tokenizer, tmp_path, max_length=128, test_share=0.2)
    mixed.save_to_disk(tmp_path / "saved")
    loaded = load_from_disk(str(tmp_path / "saved"))
    assert loaded["train"][:] == mixed["train"][:]
    assert loaded["test"][:] == mixed["test"][:]
    assert Report.load(tmp_path / "saved").as_dict() == mixed.report.as_dict()


def test_a_part_without_rows_is_saved_and_loaded_too(text_file, tokenizer, tmp_path):
    mixed = run([{text_file("a.jsonl", 10): 1.0}], tokenizer, tmp_path, max_length=128, test_share=0)
    mixed.save_to_disk(tmp_path / "saved")
    assert len(load_from_disk(str(tmp_path / "saved"))["test"]) == 0


def test_without_packing_each_row_is_one_document_or_a_part_of_it(text_file, tokenizer, tmp_path):
    path = text_file("a.jsonl", 60)
    mixed = run([{path: 1.0}], tokenizer, tmp_path, max_length=100, packing=False, test_share=0)
    assert {len(row["seq_lengths"]) for row in mixed["train"]} == {1}
    assert sum(row["input_ids"][0] == 0 for row in mixed["train"]) == 60
    assert sum(row["input_ids"][-1] == 1 for row in mixed["train"]) == 60
    some = run([{path: 1.0}], tokenizer, tmp_path, max_length=100, packing=False, total_sample_size=25)
    assert len(some["train"]) == 25


def test_ratios_by_rows_count_documents(text_file, tokenizer, tmp_path):
    sources = [{text_file("a.jsonl", 300, words=(5, 10)): 0.5}, {text_file("b.jsonl", 300, words=(300, 400)): 0.5}]
    mixed = run(sources, tokenizer, tmp_path, total_sample_size=40, max_length=256, ratio_by="rows", test_share=0)
    figures = mixed.report.figures["mix"]
    rows = [source["rows"] for source in figures["sources"].values()]
    assert abs(rows[0] - rows[1]) <= 1
    assert len(mixed["train"]) == 40


def test_a_formatting_function_and_another_text_column_are_used(write_jsonl, tokenizer, tmp_path):
    path = write_jsonl("a.jsonl", [{"title": "T", "body": f"body {i}"} for i in range(20)])
    by_column = run([{path: 1.0}], tokenizer, tmp_path, dataset_text_field="body", test_share=0)
    by_function = run(
        [{path: 1.0}], tokenizer, tmp_path, formatting_func=lambda row: row["title"] + row["body"], test_share=0
    )
    assert "<|begin_of_text|>body 3<|end_of_text|>" in "".join(pieces(by_column["train"], tokenizer))
    assert "<|begin_of_text|>Tbody 3<|end_of_text|>" in "".join(pieces(by_function["train"], tokenizer))


@pytest.mark.parametrize(
    ("options", "mend"),
    [
        ({"max_length": 1}, "at least 2"),
        ({"ratio_by": "bytes"}, "'tokens' or 'rows'"),
        ({"test_share": 1.0}, "share from 0"),
        ({"dataset_num_proc": 0}, "at least 1"),
        ({"dataset_text_field": "txt"}, "no usable document"),
    ],
    ids=str,
)
def test_arguments_that_cannot_be_meant_are_refused(text_file, tokenizer, tmp_path, options, mend):
    with pytest.raises(ValueError, match=mend):
        run([{text_file("a.jsonl", 10): 1.0}], tokenizer, tmp_path, **options)


def test_a_missing_tokenizer_is_refused(text_file, tmp_path):
    with pytest.raises(ValueError, match="processing_class is missing"):
        run([{text_file("a.jsonl", 10): 1.0}], None, tmp_path)


def make_plan(sources, tokenizer, workers=1, **options):
    return PretrainMix(
        names=list(sources),
        ratios=[0.6, 0.4],
        encoder=DocumentEncoder(Encoder(tokenizer)),
        max_length=64,
        window_rows=32,
        shard_rows=64,
        workers=workers,
        test_share=0.05,
        **options,
    )


def written(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.arrow"))}


def test_one_two_and_eight_workers_write_the_same_bytes(text_file, tokenizer, tmp_path):
    sources = [text_file("a.jsonl", 300), text_file("b.jsonl", 300)]
    results, reports = [], []
    for workers in (1, 2, 8):
        folder = tmp_path / str(workers)
        folder.mkdir()
        reports.append(make_plan(sources, tokenizer, workers).run(folder).as_dict())
        results.append(written(folder))
    assert len(results[0]) > 4
    assert results[0] == results[1] == results[2]
    assert reports[0] == reports[1] == reports[2]


def test_a_file_that_was_moved_gives_the_same_bytes(text_file, tokenizer, tmp_path):
    sources = [text_file("a.jsonl", 300), text_file("b.jsonl", 300)]
    results = []
    for name in ("here", "elsewhere"):
        folder = tmp_path / name
        folder.mkdir()
        sources = [str(Path(source).rename(folder / Path(source).name)) for source in sources]
        make_plan(sources, tokenizer, 1).run(folder / "rows")
        results.append(written(folder))
    assert results[0] == results[1]


@pytest.mark.parametrize("stop_after", [1, 3, 5])
def test_a_run_stopped_at_any_shard_goes_on_to_the_same_bytes(text_file, tokenizer, tmp_path, stop_after):
    sources = [text_file("a.jsonl", 300), text_file("b.jsonl", 300, words=(5, 4000))]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    whole.mkdir()
    stopped.mkdir()
    report = make_plan(sources, tokenizer).run(whole)

    class Stop(Exception):
        pass

    calls = []

    def stop(tokens):
        calls.append(tokens)
        if len(calls) == 2 * stop_after + 1:
            raise Stop

    with pytest.raises(Stop):
        make_plan(sources, tokenizer, progress=stop).run(stopped)
    again = make_plan(sources, tokenizer, workers=2).run(stopped)
    assert written(stopped) == written(whole)
    assert again.as_dict() == report.as_dict()


KILLED = """
import sys, time
from transformers import AutoTokenizer
from small_doge.processor.encoding import Encoder
from small_doge.processor.pretrain_mix import PretrainMix
from small_doge.processor.token_stream import DocumentEncoder
from pathlib import Path
folder, tokenizer, *sources = sys.argv[1:]
encoder = DocumentEncoder(Encoder(AutoTokenizer.from_pretrained(tokenizer)))
plan = PretrainMix(names=sources, ratios=[0.6, 0.4], encoder=encoder, max_length=64, window_rows=32, shard_rows=64,
                   test_share=0.05, progress=lambda tokens: time.sleep(0.05))
plan.run(Path(folder))
"""


@pytest.mark.slow
def test_kill_9_at_random_moments_leaves_no_duplicate_and_no_hole(text_file, tokenizer, tmp_path):
    sources = [text_file("a.jsonl", 400), text_file("b.jsonl", 400)]
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    make_plan(sources, tokenizer).run(whole)
    rng = random.Random(0)
    for _ in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(killed), str(tmp_path / "tokenizer"), *sources], env=dict(os.environ)
        )
        before = len(written(killed))
        while len(written(killed)) <= before and process.poll() is None:
            time.sleep(0.02)
        time.sleep(rng.random() * 0.2)
        process.send_signal(signal.SIGKILL)
        process.wait()
    make_plan(sources, tokenizer).run(killed)
    assert written(killed) == written(whole)
