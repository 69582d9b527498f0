"""The whole road on a smaller setting: every stage runs on real input, is measured, and survives an interruption."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from small_doge.quickstart.figures import figures_of
from small_doge.quickstart.report import make_report
from small_doge.quickstart.road import STAGE_NAMES, Road
from small_doge.quickstart.settings import Settings

TINY = Settings(
    vocab_size=1024,
    row_length=128,
    tokenizer_megabytes=0.2,
    tokenizer_problems=200,
    pretrain_rows=96,
    held_out_kilobytes=12,
    conversations=120,
    preferences=48,
    problems=144,
    comparisons=16,
    reminders=16,
    reinforcement_problems=32,
    held_out_conversations=12,
    held_out_preferences=12,
    held_out_problems=12,
    model={
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    },
    overrides={
        "pretrain": {"compile_layers": False, "save_steps": 4},
        "sft": {"per_device_train_batch_size": 8},
        "dpo": {"per_device_train_batch_size": 8},
        "grpo": {"max_steps": 2, "per_device_train_batch_size": 16, "max_completion_length": 16, "save_steps": 1},
    },
)


def stdlib_folder(tmp_path: Path) -> Path:
    """Real text that is on every machine, small: some of Python's own documentation."""
    from small_doge.processor.builtin import iter_conversations, iter_documents, iter_preferences

    documents = list(iter_documents(packages=False))[:600]
    folder = tmp_path / "text"
    folder.mkdir()
    for name, rows in (
        ("docs", documents),
        ("qa", iter_conversations(documents)),
        ("pairs", iter_preferences(documents)),
    ):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stdlib_folder(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def walked(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A road that is interrupted in the middle of pretraining, then walked to the end; and its report."""
    out = tmp_path_factory.mktemp("run")
    road = Road(out, data=folder, settings=TINY)
    stop = Interrupt(road)
    with pytest.raises(KeyboardInterrupt):
        stop.run_until("sft")
    road = Road(out, data=folder, settings=TINY)
    state = road.run()
    answers = road.sample_answers()
    return out, make_report(out, state, answers, {stage: road.checkpoint(stage) for stage in STAGE_NAMES})


class Interrupt:
    """Walks a road and interrupts it as one stage begins, after the stages before it were saved."""

    def __init__(self, road: Road) -> None:
        self.road = road

    def run_until(self, stage: str) -> None:
        def interrupted() -> dict:
            raise KeyboardInterrupt

        setattr(self.road, stage, interrupted)
        self.road.run()


def test_the_report_has_the_keys_that_scripts_rely_on(walked: tuple[Path, dict]) -> None:
    out, _ = walked
    report = json.loads((out / "report.json").read_text())
    assert {"bits_per_byte", "gzip_bits_per_byte"} <= report["pretrain"].keys()
    assert {"answer_loss_before", "answer_loss_after"} <= report["sft"].keys()
    assert {"accuracy_before", "accuracy_after", "answer_loss_before", "answer_loss_after"} <= report["dpo"].keys()
    assert {"reward_margin", "reward_margin_ci95", "n"} <= report["dpo"].keys()
    assert "format_rate" in report["distill"]
    assert {"accuracy_before", "accuracy_after", "n", "ci95"} <= report["grpo"].keys()
    assert set(STAGE_NAMES) <= report["seconds"].keys()
    assert all((Path(path) / "model.safetensors").exists() for path in report["checkpoints"].values())


def test_each_stage_moved_its_figure_the_right_way(walked: tuple[Path, dict]) -> None:
    _, report = walked
    assert report["pretrain"]["bits_per_byte"] < 5.5
    assert report["sft"]["answer_loss_after"] < report["sft"]["answer_loss_before"] - 0.05
    assert report["dpo"]["answer_loss_after"] < 1.05 * report["dpo"]["answer_loss_before"]
    assert report["grpo"]["n"] == 12


def test_an_interrupted_road_goes_on_and_says_so(walked: tuple[Path, dict]) -> None:
    out, report = walked
    begun = json.loads((out / "state.json").read_text())["begun"]
    assert begun["pretrain"] == 1
    assert begun["sft"] == 2
    assert report["restarts"] == {"sft": 1}


def test_the_page_stands_alone_and_shows_every_stage(walked: tuple[Path, dict], loads_of) -> None:
    out, report = walked
    page = (out / "report.html").read_text()
    assert loads_of(page) == []
    assert page.count("<svg") == len(STAGE_NAMES), "one curve for each stage, however few its steps"
    twin = (out / "report.md").read_text()
    for figure in figures_of(report):
        assert f"| {figure.stage} | {figure.what} | {figure.before} | {figure.after} |" in twin
        assert figure.after in page


def test_no_held_out_item_is_trained_on(walked: tuple[Path, dict]) -> None:
    from datasets import load_from_disk

    out, _ = walked
    held_out = json.loads((out / "data" / "held_out.json").read_text())
    asked = {row["messages"][0]["content"] for row in load_from_disk(str(out / "data" / "sft"))["train"]}
    assert not asked & {messages[0]["content"] for messages in held_out["conversations"]}
    solved = set(load_from_disk(str(out / "data" / "grpo"))["train"]["question"])
    solved |= {row["messages"][0]["content"] for row in load_from_disk(str(out / "data" / "distill"))["train"]}
    assert not solved & {problem["question"] for problem in held_out["problems"]}


def test_other_settings_are_refused_in_the_same_folder(walked: tuple[Path, dict], folder: Path) -> None:
    out, _ = walked
    with pytest.raises(ValueError, match="name another folder"):
        Road(out, data=folder, settings=Settings())
