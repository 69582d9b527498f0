"""What `make quickstart` shows, on its own settings: a quarter of an hour of two cores."""

from __future__ import annotations

from pathlib import Path

import pytest

from small_doge.quickstart.road import Road


@pytest.mark.slow
def test_each_stage_shows_what_the_readme_says(tmp_path: Path) -> None:
    results = Road(tmp_path).run().values["results"]
    assert results["pretrain"]["bits_per_byte"] <= 0.7 * results["pretrain"]["gzip_bits_per_byte"]
    assert results["sft"]["answer_loss_after"] <= results["sft"]["answer_loss_before"] - 0.5
    dpo = results["dpo"]
    assert dpo["accuracy_after"] > dpo["accuracy_before"]
    assert dpo["reward_margin_ci95"][0] > 0
    assert dpo["answer_loss_after"] <= 1.05 * dpo["answer_loss_before"]
    assert results["distill"]["format_rate"] >= 0.9
    grpo = results["grpo"]
    assert grpo["n"] >= 400
    assert grpo["accuracy_after"] >= grpo["accuracy_before"] + 0.1
