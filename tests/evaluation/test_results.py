"""Scores become rows with honest intervals, and models are compared on the same items."""

import json
import math

import pytest

from small_doge.evaluation.results import (
    comparison_rows,
    difference,
    make_result,
    mean_with_interval,
    read_result,
    short_names,
    shown,
    task_rows,
    to_markdown,
    write_result,
)

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'small-doge[eval]'")

from small_doge.evaluation.harness import TaskScores


def result(model="a", acc=(1.0, 0.0, 1.0, 1.0), seed=0, **changes):
    scores = TaskScores(
        task="quiz",
        shots=5,
        items={"acc": list(acc), "perplexity": [math.log(0.5)] * 4},
        chance=0.25,
        official=9,
        primary="acc",
        groups=["x", "x", "y", "y"],
        **changes,
    )
    return make_result({"model": model, "seed": seed}, [scores])


def test_a_share_has_wilsons_interval_and_chance_beside_it():
    row = result()["rows"][0]
    assert row["value"] == 0.75 and row["stderr"] == pytest.approx(0.25)
    assert row["ci95"] == pytest.approx([0.3006, 0.9544], abs=1e-3)
    cells = shown(row)
    assert cells[0] == "quiz" and cells[1] == "5" and cells[3] == "75.00"
    assert cells[-2:] == ["25.00", "4 of 9"]


def test_a_perplexity_is_the_exponential_of_the_mean():
    row = result()["rows"][1]
    assert row["value"] == pytest.approx(2.0)
    assert row["ci95"][0] <= row["value"] <= row["ci95"][1]
    assert row["chance"] is None


def test_one_item_has_no_standard_error():
    assert math.isnan(mean_with_interval([1.0])[1])
    (row,) = task_rows(TaskScores("quiz", 0, {"acc": [1.0]}, 0.5, 9, "acc"))
    assert row["stderr"] is None and shown(row)[4] == "-"
    json.dumps(row, allow_nan=False)


def test_a_perplexity_beyond_all_floats_is_still_a_number():
    (row,) = task_rows(TaskScores("quiz", 0, {"perplexity": [-2000.0, -1000.0]}, None, 9, "acc"))
    assert row["value"] > 1e300


def test_groups_are_told_apart():
    assert result()["groups"]["quiz"] == {"x": {"value": 0.5, "n": 2}, "y": {"value": 1.0, "n": 2}}


def test_a_difference_on_the_same_items_is_paired():
    first, other = result(acc=[1.0, 0.0] * 50), result("b", acc=[1.0, 1.0] * 50)
    value, low, high, paired = difference(first, other, "quiz", "acc")
    assert paired and value == 0.5
    assert (low, high) == pytest.approx((0.4015, 0.5985), abs=1e-3)
    *_, unpaired = difference(first, result("b", seed=1), "quiz", "acc")
    assert not unpaired


def test_a_comparison_shows_both_and_their_difference():
    columns, rows = comparison_rows([result(), result("b", acc=[1.0] * 4)])
    assert columns[2:] == ["a", "b", "b less a, 95 % interval"]
    assert rows[0][2] == "75.00 (n 4, 5 shots)" and rows[0][4].startswith("+25.00")


def test_results_are_written_and_read_back(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'small-doge[train]'")
    written = result()
    write_result(written, tmp_path / "out")
    assert read_result(tmp_path / "out") == json.loads(json.dumps(written))
    assert "| quiz | 5 | acc | 75.00 |" in (tmp_path / "out" / "results.md").read_text()
    assert (tmp_path / "out" / "results.png").stat().st_size > 1000
    assert to_markdown(written).startswith("# Evaluation of a")


@pytest.mark.parametrize("text", [None, "[]"], ids=["no file", "another file"])
def test_what_is_no_result_is_refused(tmp_path, text):
    if text is not None:
        (tmp_path / "results.json").write_text(text)
    with pytest.raises(ValueError, match=r"results\.json"):
        read_result(tmp_path)


def test_models_are_called_by_what_tells_them_apart():
    assert short_names(["runs/a/checkpoints/sft", "runs/a/checkpoints/grpo"]) == ["sft", "grpo"]
    assert short_names(["runs/a/sft", "runs/b/sft/"]) == ["a/sft", "b/sft"]
    assert short_names(["/models/one", "SmallDoge/Doge-20M"]) == ["/models/one", "SmallDoge/Doge-20M"]
