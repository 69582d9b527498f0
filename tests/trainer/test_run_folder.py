"""A run's folder says what ran and how it went; its progress line shows what a person asks for."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import yaml

from small_doge.trainer.doge.pt import main


@pytest.fixture(scope="module")
def finished(tmp_path_factory, new_recipe):
    recipe = new_recipe(tmp_path_factory.mktemp("finished"))
    argv = recipe("run", eval_strategy="steps", eval_steps=2, max_steps=4, report_to="tensorboard")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TENSORBOARD_LOGGING_DIR", str(recipe.folder / "board"))
        main(argv)
    return recipe


def test_the_exact_recipe_versions_and_source_are_kept(finished) -> None:
    folder = finished.folder / "run"
    assert yaml.safe_load((folder / "recipe.yaml").read_text())["learning_rate"] == 1e-2
    (start,) = json.loads((folder / "run.json").read_text())["starts"]
    assert start["step"] == 0
    assert start["processes"] == 1
    assert start["versions"]["torch"].startswith("2.")
    assert start["source"] is None or re.fullmatch(r"[0-9a-f]{40}(-dirty)?", start["source"])


def test_held_out_bits_per_byte_are_the_loss_over_the_bytes_of_its_rows(
    finished, rows_folder, tokenizer_folder
) -> None:
    from datasets import load_from_disk
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(tokenizer_folder))
    rows = load_from_disk(str(rows_folder))["test"]["input_ids"]
    size = sum(len(tokenizer.decode(row, skip_special_tokens=True).encode()) for row in rows) / sum(
        len(row) for row in rows
    )
    losses, bits = finished.log("run", "eval_loss"), finished.log("run", "eval_bits_per_byte")
    assert set(bits) == {2, 4}
    assert bits[4] == pytest.approx(losses[4] / math.log(2) / size)


def test_the_page_shows_every_curve_and_stands_alone(finished) -> None:
    page = (finished.folder / "run" / "report.html").read_text()
    for title in ("training loss", "held-out bits per byte", "gradient norm", "learning rate", "tokens/s"):
        assert title in page
    assert page.count("<svg") == 6
    assert "<script" not in page


def test_tensorboard_gets_the_figures_that_we_add(finished) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (file,) = finished.folder.rglob("events.out.tfevents*")
    events = EventAccumulator(str(file))
    events.Reload()
    names = " ".join(events.Tags()["scalars"])
    for name in ("loss", "grad_norm", "learning_rate", "tokens_per_second", "bits_per_byte"):
        assert name in names


def test_the_progress_line_tells_all(recipe, capfd) -> None:
    main(recipe("shown", eval_strategy="steps", eval_steps=2, max_steps=4, save_strategy="no"))
    line = " ".join(capfd.readouterr().err.split())
    pattern = (
        r"step 4 of 4: loss [\d.]+, held-out [\d.]+ bits/byte, grad norm [\d.]+, LR [\d.e-]+, [\d,]+ tokens/s, "
        r"MFU n/a, 0:00 left"
    )
    assert re.search(pattern, line)
    assert (Path(recipe.folder) / "shown" / "report.html").exists()
