"""Several processes train what one does: the same losses for the same batch, also through `accelerate launch`."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from launching import CONFIGS, launch, start
from stage_process import exchange_after


def compare(recipe, stage, train_two: Callable[[list[str]], None], rel: float = 1e-5, **changes) -> None:
    assert stage.run(recipe("one", max_steps=4, **changes)) == 0
    train_two(recipe("two", max_steps=4, gradient_accumulation_steps=1, **changes))
    (record,) = json.loads((recipe.folder / "two" / "run.json").read_text())["starts"]
    assert record["processes"] == 2
    for figure in ("loss", "grad_norm"):
        assert recipe.log("two", figure) == pytest.approx(recipe.log("one", figure), rel=rel)


def test_two_processes_train_as_one_with_two_micro_batches(recipe, stage) -> None:
    compare(recipe, stage, stage.run_two)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_two_processes_that_exchange_after_the_backward_pass_train_as_one(optimizer: str, recipe, stage) -> None:
    compare(recipe, stage, partial(stage.run_two, change=exchange_after), optimizer=optimizer)


def test_two_processes_that_exchange_after_the_backward_pass_evaluate_and_resume_alike(recipe, stage) -> None:
    changes = {"max_steps": 9, "lr_scheduler_type": "constant", "eval_strategy": "steps", "eval_steps": 2}
    stage.run_two(recipe("whole", **changes), exchange_after)
    for steps in (6, 9):
        stage.run_two(recipe("parted", **changes | {"max_steps": steps}), exchange_after)
    for figure in ("loss", "eval_loss"):
        assert recipe.log("parted", figure) == recipe.log("whole", figure)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_two_processes_of_the_launcher_train_as_one(optimizer: str, recipe, stage) -> None:
    compare(recipe, stage, partial(launch, "ddp.yaml"), optimizer=optimizer)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs `pip install deepspeed`, which no extra installs")
@pytest.mark.parametrize(("zero", "rel"), [(2, 1e-5), (3, 1e-3)], ids=["ZeRO-2", "ZeRO-3"])
def test_two_processes_train_as_one_from_a_checkpoint(
    zero: int, rel: float, recipe, stage, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    # A new model's weights are other draws under ZeRO-3, which makes them in parts.
    start = {"model_config": None, "tokenizer_name_or_path": None, "model_name_or_path": str(model_folder)}
    compare(recipe, stage, partial(launch, f"deepspeed_zero{zero}.yaml"), rel, **start)


@pytest.mark.slow
def test_two_processes_resume_alike(recipe) -> None:
    changes = {"gradient_accumulation_steps": 1, "max_steps": 9, "lr_scheduler_type": "constant"}
    launch("ddp.yaml", recipe("whole", **changes))
    # A run of six steps is one of nine that was stopped after its second checkpoint.
    launch("ddp.yaml", recipe("parted", **changes | {"max_steps": 6}))
    saved = recipe.folder / "parted" / "checkpoint-6"
    assert {path.name for path in saved.glob("rng_state_*")} == {"rng_state_0.pth", "rng_state_1.pth"}
    launch("ddp.yaml", recipe("parted", **changes))
    assert recipe.log("parted") == recipe.log("whole")


@pytest.mark.slow
def test_sigterm_to_the_launcher_saves_one_checkpoint_of_all_processes(recipe) -> None:
    changes = {"gradient_accumulation_steps": 1, "save_steps": 1000, "max_steps": 400}
    process = start("ddp.yaml", recipe("stopped", **changes))
    log = recipe.folder / "stopped" / "log.jsonl"
    while not log.exists() or not log.read_text():
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    (saved,) = (recipe.folder / "stopped").glob("checkpoint-*")
    step = int(saved.name.removeprefix("checkpoint-"))
    assert max(recipe.log("stopped")) == step < 400
    assert {path.name for path in saved.glob("rng_state_*")} == {"rng_state_0.pth", "rng_state_1.pth"}


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_is_one_that_accelerate_reads(path: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    kind = {"ddp": "MULTI_GPU", "fsdp": "FSDP", "single_gpu": "NO"}.get(path.stem, "DEEPSPEED")
    assert str(config.distributed_type.value) == kind
    # The recipe alone says the precision.
    assert config.mixed_precision == "no"
    plugin = yaml.safe_load(path.read_text())
    assert plugin.get("fsdp_config", {}).get("fsdp_version", 2) == 2
    if kind == "DEEPSPEED":
        assert plugin["deepspeed_config"]["zero_stage"] == int(path.stem[-1])


def test_the_seeds_configs_are_all_there() -> None:
    names = {path.stem for path in CONFIGS.glob("*.yaml")}
    assert names >= {"single_gpu", "ddp", "fsdp", "deepspeed_zero2", "deepspeed_zero3"}
