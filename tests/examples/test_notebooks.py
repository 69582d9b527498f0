"""The notebook says the same in both languages, and its cells run from top to bottom on a smaller setting."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALLER = {
    "PRETRAIN_ROWS": 24,
    "CONVERSATIONS": 96,
    "WIDTH": 64,
    "LAYERS": 2,
    "VOCABULARY": 512,
    "EVERY": 20,
}


def cells(name: str, kind: str) -> list[dict]:
    """The cells of one kind, in order."""
    notebook = json.loads((EXAMPLES / name).read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def source(cell: dict) -> str:
    """What is written in a cell."""
    return "".join(cell["source"])


def printed(cell: dict) -> str:
    """What a code cell printed when it was run last."""
    return "".join("".join(output["text"]) for output in cell["outputs"])


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> dict:
    """The names that the code cells leave, run in one namespace below a folder of the test's, home folder included."""
    names: dict = {}
    logger = logging.getLogger("small_doge")
    level = logger.level  # The notebook quietens it.
    folder = tmp_path_factory.mktemp("notebook")
    (folder / "home").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(folder))
        patch.setenv("HOME", str(folder / "home"))
        patch.chdir(folder)
        for number, cell in enumerate(cells("notebook.ipynb", "code")):
            exec(compile(source(cell), f"cell {number}", "exec"), names)
            if "parameters" in cell["metadata"].get("tags", ()):
                assert names.keys() >= SMALLER.keys()
                names |= SMALLER
    logger.setLevel(level)
    return names


def test_both_languages_have_the_same_code_and_outputs():
    english, chinese = (cells(name, "code") for name in ("notebook.ipynb", "notebook_zh.ipynb"))
    assert [source(cell) for cell in english] == [source(cell) for cell in chinese]
    assert [printed(cell) for cell in english] == [printed(cell) for cell in chinese]


def test_each_markdown_cell_is_translated():
    english, chinese = (cells(name, "markdown") for name in ("notebook.ipynb", "notebook_zh.ipynb"))
    assert len(english) == len(chinese)
    assert all(re.search(r"[\u4e00-\u9fff]", source(cell)) for cell in chinese)
    assert not any(re.search(r"[\u4e00-\u9fff]", source(cell)) for cell in english)


def test_every_code_cell_but_the_constants_shows_what_it_printed():
    first, *others = cells("notebook.ipynb", "code")
    assert "parameters" in first["metadata"]["tags"]
    assert all(printed(cell) for cell in others)


def test_the_cells_run_and_the_cache_stays_bounded_and_exact(run):
    assert run["cache"].get_seq_length() == 96
    assert run["cache"].slots == run["config"].keep_window_size == 16
    assert run["difference"] < 1e-4
    assert (run["by_hand"] - run["fast"]).abs().max() < 1e-5


def test_the_horizons_rebuild_the_mask(run):
    assert (run["mask"] == run["from_horizons"]).all()
    assert run["mask"].sum(-1).tolist() == [1, 2, 3] + [4] * 13


def test_training_leaves_two_models_and_their_figures(run):
    assert 0 < run["ours"] < 8
    assert run["after"] < run["before"]
    assert run["reply"].prompt_tokens > 0
    for stage in ("base", "chat"):
        assert (run["FOLDER"] / stage / "model.safetensors").is_file()


def test_nothing_is_written_outside_the_named_folder(run):
    folder = run["FOLDER"].parent
    # PyTorch's compiler has a temporary folder of its own.
    written = sorted(path.name for path in folder.iterdir() if not path.name.startswith("torchinductor"))
    assert written == ["home", run["FOLDER"].name]
    assert not list((folder / "home").iterdir())
