"""Each verb does what its help says, as a process of its own; a mistake is one line and exit code 2."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def small_doge(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"COLUMNS": "200", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "small_doge.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, input=stdin, env=environment, timeout=300)


def test_help_names_every_verb() -> None:
    result = small_doge("--help")
    assert result.returncode == 0
    for verb in ("quickstart", "tokenizer", "data", "train", "eval", "chat", "info"):
        assert verb in result.stdout


def test_info_prints_the_exact_counts() -> None:
    result = small_doge("info", "20M")
    assert result.returncode == 0, result.stderr
    assert "13,118,728" in result.stdout


def test_a_tokenizer_is_trained_and_inspected(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("The quick brown fox jumps over the lazy dog. " * 200)
    trained = small_doge(
        "tokenizer", "train", str(tmp_path / "a.txt"), "--out", str(tmp_path / "t"), "--vocab-size", "320"
    )
    assert trained.returncode == 0, trained.stderr
    shown = small_doge("tokenizer", "inspect", str(tmp_path / "t"), "--text", "The fox")
    assert "2 for 7 bytes" in shown.stdout


def test_eval_measures_and_writes_json(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "held.txt").write_text("Some held-out text about foxes. " * 20)
    output = tmp_path / "eval.json"
    result = small_doge(
        "eval", str(model_folder), "--text", str(tmp_path / "held.txt"), "--problems", "4", "--output", str(output)
    )
    assert result.returncode == 0, result.stderr
    rows = json.loads(output.read_text())
    assert [row["metric"] for row in rows] == ["bits per byte", "accuracy, greedy", "well-formed thinking"]
    assert rows[1]["n"] == 4


def test_chat_answers_and_obeys(model_folder: Path) -> None:
    result = small_doge("chat", str(model_folder), "--max-new-tokens", "4", stdin="/params\nHi\n/nonsense\n/exit\n")
    assert result.returncode == 0, result.stderr
    assert "max_new_tokens=4" in result.stdout
    assert "a second" in result.stdout
    assert "there is no command /nonsense" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "ptt"), "choose one of pt, sft, dpo, grpo"),
        (("train", "pt", "--config", "none.yaml"), "there is no recipe none.yaml"),
        (("info", "21M"), "there is no size '21M'"),
        (("chat", "."), "holds no model"),
        (("eval", "."), "nothing to measure"),
        (("quickstart", "--data", "/nowhere"), "There is no file or folder /nowhere"),
    ],
    ids=["unknown stage", "missing recipe", "unknown size", "no model", "nothing to measure", "missing data"],
)
def test_a_mistake_is_one_line(arguments: tuple[str, ...], message: str) -> None:
    result = small_doge(*arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_accelerate_launches_a_stage_as_the_guides_show(tokenizer_folder: Path, tmp_path: Path) -> None:
    from small_doge.processor.pt_datasets_process import mix_datasets_by_ratio

    (tmp_path / "a.txt").write_text("The quick brown fox jumps over the lazy dog. " * 400)
    data = mix_datasets_by_ratio(
        [{str(tmp_path / "a.txt"): 1.0}],
        processing_class=str(tokenizer_folder),
        max_length=64,
        test_share=0.0,
        cache_dir=tmp_path / "cache",
    )
    from datasets import DatasetDict

    DatasetDict({"train": data["train"]}).save_to_disk(str(tmp_path / "data"))
    model = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    result = subprocess.run(
        [
            *(sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"),
            str(ROOT / "src/small_doge/trainer/doge/pt.py"),
            *("--config", str(ROOT / "recipes/doge/Doge-20M/config_full.yaml")),
            *("--model_config", json.dumps(model), "--tokenizer_name_or_path", str(tokenizer_folder)),
            *("--dataset", str(tmp_path / "data"), "--output_dir", str(tmp_path / "out"), "--max_steps", "2"),
            *("--bf16", "false", "--use_cpu", "true", "--compile_layers", "false", "--eval_strategy", "no"),
            *("--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "1", "--report_to", "none"),
            *("--dataloader_num_workers", "0", "--save_steps", "1"),
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert (tmp_path / "out" / "model.safetensors").exists()
