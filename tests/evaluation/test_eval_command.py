"""`small-doge eval` as a user types it: tasks, domains, comparison, speed, and mistakes."""

import json
import math
import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'small-doge[eval]'")

from small_doge.cli import app
from small_doge.cli.console import console
from small_doge.evaluation.likelihood import bits_per_byte
from small_doge.evaluation.lists import named_tasks, task_names
from small_doge.inference import load
from small_doge.models.loading import load_checkpoint

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _wide_console(monkeypatch):
    """Tables unbroken, whatever terminal the console was made for."""
    monkeypatch.setattr(console, "_width", 240)


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["eval", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Files of a few tasks, with answers that a model of nothing can still be scored on."""
    folder = tmp_path_factory.mktemp("eval")
    choices = [
        {"query": f"Question: What is {i}?", "choices": ["four", "a dog", "rain"], "gold": i % 3} for i in range(12)
    ]
    files = {
        "arc_easy_test": choices,
        "winogrande_foundry": [
            {"context_options": ["The cat", "The dog"], "continuation": f"sits on mat {i}.", "gold": i % 2}
            for i in range(8)
        ],
        "lambada_openai": [{"context": "The cat sits on the", "continuation": "mat"} for _ in range(4)],
        "gsm8k_test": [{"question": f"What is {i} and 1?", "answer": f"It is.\n#### {i + 1}"} for i in range(8)],
    }
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(folder)


def test_tasks_are_scored_written_and_compared(checkpoint, data_dir, tmp_path):
    tasks = "arc_easy,winogrande,lambada"
    out = str(tmp_path / "a")
    shown = run(checkpoint, "--tasks", tasks, "--data-dir", data_dir, "--device", "cpu", "--output", out)
    assert "7 of 2,376" in shown
    result = json.loads((tmp_path / "a" / "results.json").read_text())
    rows = {(row["task"], row["metric"]): row for row in result["rows"]}
    assert rows["arc_easy", "acc_norm"]["shots"] == 5
    assert rows["arc_easy", "acc"]["chance"] == pytest.approx(1 / 3)
    assert rows["winogrande", "acc"]["n"] == 8 and rows["winogrande", "acc"]["shots"] == 0
    assert rows["lambada", "acc"]["value"] in (0.0, 1.0) and rows["lambada", "perplexity"]["value"] > 1
    again = str(tmp_path / "b")
    run(
        checkpoint,
        "--tasks",
        tasks,
        "--data-dir",
        data_dir,
        "--device",
        "cpu",
        "--output",
        again,
        "--batch-tokens",
        "64",
    )
    compared = run("compare", out, again, "--output", str(tmp_path / "c"))
    assert "+0.00" in compared
    assert (tmp_path / "c" / "compare.png").is_file() and (tmp_path / "c" / "compare.md").is_file()


def test_a_limit_and_a_number_of_shots_hold(checkpoint, data_dir, tmp_path):
    options = ("--tasks", "arc_easy", "--data-dir", data_dir, "--device", "cpu", "--limit", "3", "--shots", "2")
    run(checkpoint, *options, "--output", str(tmp_path))
    (row, _) = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert (row["n"], row["shots"]) == (3, 2)


def test_a_chat_model_is_asked_through_its_template_with_shots_of_its_own(checkpoint, data_dir, tmp_path):
    options = ("--tasks", "arc_easy", "--data-dir", data_dir, "--device", "cpu", "--limit", "2", "--chat")
    run(checkpoint, *options, "--output", str(tmp_path))
    result = json.loads((tmp_path / "results.json").read_text())
    assert result["chat"] is True
    assert result["rows"][0]["shots"] == 0


def test_a_task_of_generation_is_scored(checkpoint, data_dir):
    assert "exact_match" in run(
        checkpoint,
        *("--tasks", "gsm8k", "--data-dir", data_dir, "--device", "cpu", "--limit", "1", "--shots", "0"),
    )


def test_bits_per_byte_are_given_for_every_file_of_a_folder(checkpoint, tmp_path):
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "cats.txt").write_text("The cat sits on the mat.")
    texts = ["A river runs down from the hills.", "Numbers such as 12 and 7."]
    (folder / "rivers.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    run(
        checkpoint, "--domains", str(folder), "--device", "cpu", "--max-length", "32", "--output", str(tmp_path / "out")
    )
    rows = {row["task"]: row for row in json.loads((tmp_path / "out" / "results.json").read_text())["rows"]}
    assert set(rows) == {"cats", "rivers"}
    tokenizer = load(checkpoint).tokenizer
    expected = bits_per_byte(load_checkpoint(checkpoint), tokenizer, texts, 32)
    assert rows["rivers"]["value"] == pytest.approx(expected, rel=1e-5)
    low, high = rows["rivers"]["ci95"]
    assert low < expected < high and math.isfinite(high)


def test_text_and_problems_work_as_before(checkpoint, tmp_path):
    (tmp_path / "a.txt").write_text("The cat sits on the mat. " * 20)
    shown = run(checkpoint, "--text", str(tmp_path / "a.txt"), "--device", "cpu", "--output", str(tmp_path / "o.json"))
    assert "bits per byte" in shown
    assert json.loads((tmp_path / "o.json").read_text())[0]["metric"] == "bits per byte"


def test_speed_is_measured_with_the_device_named(checkpoint, tmp_path):
    options = ("--device", "cpu", "--prompt", "8", "--new-tokens", "3", "--rounds", "2")
    run("speed", checkpoint, *options, "--output", str(tmp_path / "s.json"))
    rows = json.loads((tmp_path / "s.json").read_text())
    assert [row["metric"] for row in rows] == [
        "prefill tokens/s",
        "decode tokens/s",
        "milliseconds to the first token",
        "peak memory, MiB",
    ]
    for row in rows:
        assert {"name", "variant", "size", "device", "metric", "value", "n", "min", "max", "command", "commit"} <= set(
            row
        )
        assert row["min"] <= row["value"] <= row["max"] and "threads" in row["device"]


@pytest.mark.parametrize(
    ("arguments", "mend"),
    [
        (("CHECKPOINT", "--tasks", "nope"), "choose from"),
        (("CHECKPOINT", "--tasks", "piqa", "--data-dir", "/nowhere"), "no folder"),
        (("CHECKPOINT", "--tasks", "piqa", "--data-dir", str(ROOT)), "no piqa_valid.jsonl"),
        (("CHECKPOINT", "--tasks", "piqa", "--problems", "3"), "by themselves"),
        (("CHECKPOINT", "--tasks", "needle", "--dtype", "int8"), "choose one of"),
        (("CHECKPOINT", "--domains", "/nowhere"), "holds no text"),
        (("compare", "only-one"), "at least two"),
        (("speed", "20M", "--dtype", "int3"), "choose one of"),
        (("speed", "20M", "--new-tokens", "1"), "at least 2"),
        (("speed", "20M", "--dtype", "int8", "--device", "cuda"), "--device cpu"),
        (("CHECKPOINT",), "nothing to measure"),
    ],
    ids=lambda value: " ".join(value[:3]) if isinstance(value, tuple) else value,
)
def test_a_mistake_is_named_with_the_mend(checkpoint, arguments, mend):
    with pytest.raises(ValueError, match=mend):
        run(*(checkpoint if argument == "CHECKPOINT" else argument for argument in arguments))


@pytest.mark.parametrize("page", ["docs/evaluation.md"])
def test_every_command_of_the_page_exists(page):
    """Parsed, not run: the page's checkpoints are the reader's."""
    eval_command = get_command(app).commands["eval"]
    lines = re.findall(r"^small-doge eval (.+)$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE)
    assert len(lines) >= 6
    for line in lines:
        arguments = shlex.split(line, comments=True)
        name = arguments.pop(0) if arguments[0] in eval_command.commands else "checkpoint"
        eval_command.commands[name].make_context(name, arguments)
        if "--tasks" in arguments:
            assert named_tasks(arguments[arguments.index("--tasks") + 1])


def test_lists_name_the_tables_of_the_released_models():
    assert named_tasks("base,piqa")[:2] == ["mmlu", "triviaqa"]
    assert named_tasks("list") == task_names()
    assert set(named_tasks("base,instruct")) <= set(task_names())
