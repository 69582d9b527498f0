"""The commands and Python blocks of the data pages, run as they stand on a small part of the data."""

from __future__ import annotations

import io
import itertools
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

ROOT = Path(__file__).parents[2]
ROWS = {"eval": 5, "sft": 30, "preference": 30, "reasoning": 30, "pretrain": 60}
BLOCK = re.compile(r"```(bash|python)\n(.*?)```", re.DOTALL)


@pytest.fixture(scope="module")
def small_data(data_folder, tmp_path_factory):
    """A folder like the data folder, with the first rows of each file."""
    import zstandard

    small = tmp_path_factory.mktemp("data")
    for part, count in ROWS.items():
        (small / part).mkdir()
        for file in (data_folder / part).glob("*.jsonl.zst"):
            with open(file, "rb") as stream:
                lines = io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(stream), encoding="utf-8")
                text = "".join(itertools.islice(lines, count))
            (small / part / file.name).write_bytes(zstandard.compress(text.encode()))
    (small / "doge_tokenizer.json").symlink_to(data_folder / "doge_tokenizer.json")
    return small


@pytest.mark.data
@pytest.mark.parametrize("page", ["data.md", "tokenizer.md"])
def test_every_block_of_the_page_runs(page, small_data, tmp_path, monkeypatch):
    from small_doge.cli import app

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SMALL_DOGE_DATA", str(small_data))
    for name in ("recipes", "docs", "README.md"):
        (tmp_path / name).symlink_to(ROOT / name)
    commands = 0
    for language, text in BLOCK.findall((ROOT / "docs" / page).read_text(encoding="utf-8")):
        if language == "python":
            exec(compile(text, f"docs/{page}", "exec"), {})
            continue
        for line in filter(None, map(str.strip, text.splitlines())):
            program, *arguments = shlex.split(line.replace("$SMALL_DOGE_DATA", str(small_data)))
            assert program == "small-doge", line
            result = CliRunner().invoke(app, arguments)
            assert result.exit_code == 0, f"{line}\n{result.output}\n{result.exception!r}"
            commands += 1
    assert commands >= 4
