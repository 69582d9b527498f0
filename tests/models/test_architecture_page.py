"""What docs/architecture.md names is there: files, recipes, figures and verbs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer

from small_doge.cli import app

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:src|recipes|benchmarks)/[^`\s]+)`", PAGE))))
def test_a_named_file_exists(path):
    assert list(ROOT.glob(path))


@pytest.mark.parametrize("figure", re.findall(r"\]\((assets/[^)]+)\)", PAGE))
def test_a_shown_figure_exists_and_code_draws_it(figure):
    assert (ROOT / "docs" / figure).is_file()
    assert f"def {Path(figure).stem}()" in (ROOT / "docs" / "figures" / "architecture.py").read_text(encoding="utf-8")


@pytest.mark.parametrize("verb", sorted(set(re.findall(r"small-doge ([a-z]+)", PAGE))))
def test_a_named_verb_exists(verb):
    assert verb in typer.main.get_command(app).commands
