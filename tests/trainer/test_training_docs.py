"""Every command of the training pages runs, on a tiny model and a few rows; those for a GPU run reduced on the CPU."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from small_doge.cli import app
from small_doge.trainer.doge.pt import main

ROOT = Path(__file__).parents[2]
PAGES = ("docs/training.md", "recipes/doge/README.md", "recipes/doge/README_zh.md")
SCRIPT = "./src/small_doge/trainer/doge/pt.py"


def commands() -> list[str]:
    """The distinct commands of the pages' bash blocks."""
    found = {}
    for page in PAGES:
        for block in re.findall(r"```bash\n(.*?)```", (ROOT / page).read_text(), re.S):
            for line in block.replace("\\\n", " ").splitlines():
                if line.strip() and not line.startswith("#"):
                    found[" ".join(line.split())] = None
    return list(found)


def reduced(words: list[str], recipe, folder: Path) -> list[str]:
    """The same options with a tiny model, a few rows and two steps, writing below `folder`."""
    fields = recipe.values
    model = [] if "--continue-from" in words else ["--model_config", json.dumps(fields["model_config"])]
    small = {
        "tokenizer_name_or_path": fields["tokenizer_name_or_path"],
        "dataset": fields["dataset"],
        "output_dir": str(folder / "out"),
        "max_length": 32,
        "max_steps": 2,
        "per_device_train_batch_size": 1,
        # A budget brings its own.
        **({} if "--tokens" in words else {"gradient_accumulation_steps": 2}),
        "bf16": False,
        "use_cpu": True,
        "compile_layers": False,
        "report_to": "none",
        "eval_strategy": "no",
        "dataloader_num_workers": 0,
    }
    return [*words, *model, *(text for name, value in small.items() for text in (f"--{name}", str(value)))]


@pytest.fixture(scope="module")
def stable_checkpoint(tmp_path_factory, new_recipe) -> Path:
    """A checkpoint of the stable phase, as the pages' first command leaves one."""
    recipe = new_recipe(tmp_path_factory.mktemp("stable"))
    main(recipe("run", max_steps=4, save_steps=2, warmup_steps=1, decay_steps=1))
    return recipe.folder / "run" / "checkpoint-2"


@pytest.mark.parametrize("command", commands())
def test_command_runs(command: str, recipe, stable_checkpoint: Path, tmp_path: Path, monkeypatch) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / "recipes").symlink_to(ROOT / "recipes")
    (work / "src").symlink_to(ROOT / "src")
    shutil.copytree(stable_checkpoint, work / "runs/Doge-20M/checkpoint-4000")
    monkeypatch.chdir(work)
    words = shlex.split(command)
    if words[:2] == ["accelerate", "launch"]:
        assert words[2] == "--config_file"
        assert Path(words[3]).is_file()
        assert words[4] == SCRIPT
        assert Path(SCRIPT).is_file()
        main(reduced(words[5:], recipe, tmp_path))
    elif words[:3] == ["small-doge", "train", "pt"]:
        main(reduced(words[3:], recipe, tmp_path))
    else:
        assert words[0] == "small-doge"
        result = CliRunner().invoke(app, words[1:], catch_exceptions=False)
        assert result.exit_code == 0
        return
    assert (tmp_path / "out" / "model.safetensors").is_file()
