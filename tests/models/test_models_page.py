"""The commands of docs/models.md run, and its tables say what the code counts."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from small_doge import DogeConfig
from small_doge.cli import app
from small_doge.evaluation.summary import describe_model
from small_doge.models.doge.accounting_doge import count_parameters
from small_doge.models.doge.configuration_doge import SIZES

PAGE = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
COUNTED = (
    "parameters",
    "not embedding",
    "training FLOPs a token",
    "bf16 weights",
    "training memory",
    "full cache a sequence",
)


@pytest.mark.parametrize("size", [name for name, size in SIZES.items() if not size.experts])
def test_the_table_of_sizes_says_what_info_counts(size):
    counted = describe_model(size, 2048)
    assert f"| Doge-{size} | {' | '.join(counted[column] for column in COUNTED)} |" in PAGE


@pytest.mark.parametrize("size", [name for name, size in SIZES.items() if size.experts])
def test_the_table_of_mixtures_says_what_is_counted(size):
    config = DogeConfig.from_size(size)
    count = count_parameters(config)
    experts = f"{config.num_experts:,}, {config.num_experts_per_tok}"
    assert re.search(rf"\| Doge-{size} \| \w+ \| {experts} \| {count.total:,} \| {count.active:,} \|", PAGE)


def test_every_block_of_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for language, text in re.findall(r"```(bash|python)\n(.*?)```", PAGE, flags=re.DOTALL):
        if language == "python":
            exec(compile(text, "docs/models.md", "exec"), {})
            continue
        for line in text.splitlines():
            program, *arguments = shlex.split(line)
            assert program == "small-doge"
            result = CliRunner().invoke(app, arguments)
            assert result.exit_code == 0, f"{line}\n{result.output}"
