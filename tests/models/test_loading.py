"""A checkpoint is loaded whole or refused in one line that names the mend."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from small_doge.models.loading import load_checkpoint

WEIGHTS = "model.safetensors"
GATE = "model.layers.1.mlp.gate_proj.weight"


@pytest.fixture
def checkpoint(make_model: Callable, tmp_path: Path) -> Path:
    make_model().save_pretrained(tmp_path)
    return tmp_path


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def without_norms(weights: dict[str, torch.Tensor]) -> None:
    for name in [name for name in weights if "q_norm" in name or "k_norm" in name]:
        del weights[name]


def as_first_named(weights: dict[str, torch.Tensor]) -> None:
    for name in list(weights):
        weights[name.replace("embed_tokens", "word_embed").replace(".mlp.", ".feed_forward.")] = weights.pop(name)


def configure(folder: Path, **fields: int) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: rewrite(folder, lambda weights: weights.pop(GATE)), f"{GATE}.*copy the checkpoint again"),
        (
            lambda folder: rewrite(folder, lambda weights: weights.update({GATE: torch.zeros(3, 4)})),
            rf"{GATE} \[3, 4\].*put back the config",
        ),
        (lambda folder: configure(folder, intermediate_size=40), r"gate_proj.*put back the config"),
        (lambda folder: (folder / "config.json").unlink(), "no config.json.*name the folder"),
        (lambda folder: (folder / WEIGHTS).unlink(), "holds no weights.*copy the checkpoint again"),
        (
            lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:5000]),
            "cannot be read.*copy the checkpoint again",
        ),
        (lambda folder: rewrite(folder, without_norms), "earlier release of Doge.*small-doge convert"),
        (lambda folder: rewrite(folder, as_first_named), "earlier release of Doge.*small-doge convert"),
    ],
    ids=[
        "a missing weight",
        "a misshapen weight",
        "a config of other sizes",
        "no config",
        "no weights",
        "a file that breaks off",
        "no norms on queries and keys",
        "the names of the first releases",
    ],
)
def test_a_checkpoint_that_is_not_whole_is_refused_in_one_line(
    checkpoint: Path, spoil: Callable[[Path], object], message: str
) -> None:
    load_checkpoint(str(checkpoint))
    spoil(checkpoint)
    with pytest.raises(ValueError, match=message) as error:
        load_checkpoint(str(checkpoint))
    assert "\n" not in str(error.value)
    assert str(checkpoint) in str(error.value)
