"""Each verb does what its help says; a mistake is one line and exit code 2."""

from __future__ import annotations

import io
import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from small_doge import __version__
from small_doge.cli import main
from small_doge.cli.console import console

ROOT = Path(__file__).parents[1]


class Run(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def small_doge(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Run]:
    """What the shell sees of `small-doge ARGUMENTS`, without a process that loads the libraries again."""
    monkeypatch.setattr(console, "_width", 200)

    def run(*arguments: str, stdin: str = "") -> Run:
        monkeypatch.setattr(sys, "argv", ["small-doge", *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        return Run(int(left.value.code or 0), *capsys.readouterr())

    return run


def test_help_names_every_verb(small_doge: Callable[..., Run]) -> None:
    result = small_doge("--help")
    assert result.returncode == 0
    for verb in ("quickstart", "tokenizer", "data", "train", "eval", "chat", "info", "upcycle", "convert"):
        assert verb in result.stdout


def test_info_prints_the_exact_counts(small_doge: Callable[..., Run]) -> None:
    result = small_doge("info", "20M")
    assert result.returncode == 0, result.stderr
    assert "13,118,728" in result.stdout


def test_a_tokenizer_is_trained_and_inspected(small_doge: Callable[..., Run], tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("The quick brown fox jumps over the lazy dog. " * 200)
    trained = small_doge(
        "tokenizer", "train", str(tmp_path / "a.txt"), "--out", str(tmp_path / "t"), "--vocab-size", "320"
    )
    assert trained.returncode == 0, trained.stderr
    shown = small_doge("tokenizer", "inspect", str(tmp_path / "t"), "--text", "The fox")
    assert "2 for 7 bytes" in shown.stdout


def test_tokenizers_are_measured_side_by_side_and_a_bilingual_one_shows_both(
    small_doge: Callable[..., Run], tmp_path: Path
) -> None:
    for name, text in (("en", "The dog runs home. "), ("zh", "小狗跑回家。")):
        lines = [json.dumps({"text": f"{number} {text * 30}"}, ensure_ascii=False) for number in range(60)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    english, chinese = str(tmp_path / "en.jsonl"), str(tmp_path / "zh.jsonl")
    options = ("--vocab-size", "300", "--test-share", "0.1")
    plain = small_doge("tokenizer", "train", english, "--out", str(tmp_path / "plain"), *options)
    assert plain.returncode == 0, plain.stderr
    both = small_doge(
        *("tokenizer", "train", f"{english}=1", "--chinese", chinese, "--out", str(tmp_path / "both"), *options),
        *("--from", str(tmp_path / "plain" / "tokenizer.json")),
    )
    assert both.returncode == 0, both.stderr
    assert "zh.jsonl" in both.stdout
    shown = small_doge(
        *("tokenizer", "eval", str(tmp_path / "plain"), str(tmp_path / "both"), "--on", f"chinese={chinese}"),
        *("--test-share", "0.1"),
    )
    row = next(line for line in shown.stdout.splitlines() if "chinese" in line).replace("│", " ").split()
    assert float(row[-1]) > 2 * float(row[-2])


def test_data_is_listed_shown_prepared_and_inspected(
    small_doge: Callable[..., Run], tmp_path: Path, tokenizer_folder: Path
) -> None:
    assert "OpenThoughts-114k" in small_doge("data", "list").stdout
    assert "hub_id: HuggingFaceTB/finemath" in small_doge("data", "show", "finemath", "--rows", "0").stdout
    lines = [json.dumps({"text": f"document {number} " * 9}) for number in range(40)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    assert f"{tmp_path}/a.jsonl:1" in small_doge("data", "show", str(tmp_path / "a.jsonl")).stdout
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"stage: pt\noutput: {tmp_path}/out\ntokenizer: {tokenizer_folder}\nmax_length: 32\n"
        f"datasets_and_ratios:\n  - {tmp_path}/a.jsonl: 1.0\n"
    )
    made = small_doge("data", "prepare", str(recipe), "--set", "total_sample_size=5")
    assert made.returncode == 0, made.stderr
    assert "train: 5 rows, 160 tokens, padding 0.00%, truncation 0.00%" in made.stdout
    looked = small_doge("data", "inspect", str(tmp_path / "out"), "--tokenizer", str(tokenizer_folder))
    assert "train: 5 rows, 160 tokens" in looked.stdout
    assert "document" in looked.stdout


def test_eval_measures_and_writes_json(small_doge: Callable[..., Run], model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "held.txt").write_text("Some held-out text about foxes. " * 20)
    output = tmp_path / "eval.json"
    result = small_doge(
        "eval", str(model_folder), "--text", str(tmp_path / "held.txt"), "--problems", "4", "--output", str(output)
    )
    assert result.returncode == 0, result.stderr
    rows = json.loads(output.read_text())
    assert [row["metric"] for row in rows] == ["bits per byte", "accuracy, greedy", "well-formed thinking"]
    assert rows[1]["n"] == 4


def test_chat_answers_and_obeys(small_doge: Callable[..., Run], model_folder: Path) -> None:
    result = small_doge("chat", str(model_folder), "--max-new-tokens", "4", stdin="/params\nHi\n/nonsense\n/exit\n")
    assert result.returncode == 0, result.stderr
    assert "max_new_tokens=4" in result.stdout
    assert "tokens/s" in result.stdout
    assert "there is no command /nonsense" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "ptt"), "choose one of pt, sft, dpo, distill, grpo"),
        (("train", "pt", "--config", "none.yaml"), "there is no recipe none.yaml"),
        (("info", "21M"), "there is no size '21M'"),
        (("chat", "."), "holds no model"),
        (("eval", "."), "nothing to measure"),
        (("quickstart", "--data", "/nowhere"), "There is no file or folder /nowhere"),
        (("train", "pt"), "give --config RECIPE.yaml"),
        (("chat", "MODEL", "--device", "tpu"), "which torch does not see here: choose cpu"),
        (("eval", "MODEL", "--problems", "1", "--device", "cuda:99"), "which torch does not see here"),
        (("eval", "speed", "MODEL", "--device", "tpu"), "which torch does not see here"),
        (("chat", "./nowhere"), "there is no folder ./nowhere"),
        (("chat", __file__), "is a file without a checkpoint beside it"),
        (("info", "./nowhere"), "there is no folder ./nowhere"),
        (("upcycle", "./nowhere", "./out"), "there is no folder ./nowhere"),
        (("eval", "nowhere", "--problems", "1"), "there is no folder nowhere"),
        (("eval", "speed", "nowhere"), "there is no folder nowhere"),
        (("tokenizer", "inspect", "nowhere"), "There is no tokenizer nowhere"),
        (("serve", "nowhere"), "there is no folder nowhere"),
        (("serve", "MODEL", "--api-key-file", "/nowhere"), "there is no file /nowhere"),
        (("serve", "MODEL", "--host", "192.0.2.1", "--open-to-all"), "cannot listen on 192.0.2.1"),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, tuple) else "",
)
def test_a_mistake_is_one_line(
    arguments: tuple[str, ...], message: str, small_doge: Callable[..., Run], model_folder: Path
) -> None:
    words = (str(model_folder) if word == "MODEL" else word for word in arguments)
    assert_one_line(small_doge(*words), message)


@pytest.mark.parametrize(
    "arguments",
    [
        ("info", "20M", "--length", "0"),
        ("scaling", "20M", "--tokens-per-second", "0"),
        ("upcycle", "a", "b", "--num-experts-per-tok", "0"),
        ("eval", "a", "--tasks", "piqa", "--limit", "0"),
        ("eval", "a", "--problems", "-3"),
        ("serve", "a", "--port", "99999"),
    ],
    ids=" ".join,
)
def test_a_number_out_of_its_range_is_refused(arguments: tuple[str, ...], small_doge: Callable[..., Run]) -> None:
    result = small_doge(*arguments)
    assert result.returncode == 2
    assert f"Invalid value for '{arguments[-2]}'" in result.stderr


def test_a_port_that_is_taken_is_named_before_a_model_is_loaded(small_doge: Callable[..., Run]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert_one_line(small_doge("serve", "nowhere", "--port", str(port)), f"cannot listen on 127.0.0.1, port {port}")


def test_a_stage_lists_its_options_and_the_verb_its_stages(small_doge: Callable[..., Run]) -> None:
    assert "pt, sft, dpo, distill or grpo" in small_doge("train", "--help").stdout
    shown = small_doge("train", "dpo", "--help")
    assert shown.returncode == 0
    assert "--model_name_or_path  [default: None]\n      Checkpoint folder or hub id to start from." in shown.stdout
    assert "--use_peft" in shown.stdout
    assert "and those of trl's DPOConfig" in shown.stdout and "learning_rate," in shown.stdout


def test_the_version_is_printed(small_doge: Callable[..., Run]) -> None:
    assert small_doge("--version").stdout == f"small-doge {__version__}\n"


def test_the_figures_of_all_sizes_fit_80_columns_uncut(
    small_doge: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "_width", 80)
    shown = small_doge("info").stdout
    assert "1,417,880,704" in shown and "13,118,728" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_a_process_ends_so_too() -> None:
    command = [sys.executable, "-m", "small_doge.cli", "info", "21M"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert_one_line(Run(done.returncode, done.stdout, done.stderr), "there is no size '21M'")


def assert_one_line(result: Run, message: str) -> None:
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


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
