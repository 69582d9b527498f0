"""Peak memory of preference optimization at a recipe's own settings, beside what the formula says.

    PYTHONPATH=src python benchmarks/dpo_memory.py [--size 160M] [--steps 3] [--option value of the recipe ...]

Everything is made here: random weights, a tokenizer trained on the documentation, and pairs that fill the recipe's
`max_length`, so that every step is as large as a step can be. The peak is torch's, of allocated memory; a card must
hold CUDA's own memory besides. On a CPU the stage runs, and there is no peak. The last line printed is JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from datasets import Dataset, DatasetDict
from rollouts_trl import ROOT, save_random_model
from transformers import AutoTokenizer

from small_doge import DogeConfig
from small_doge.trainer.doge import dpo
from small_doge.trainer.footprint import activation_bytes_per_token, state_bytes
from small_doge.utils.hardware import default_device, device_name


def save_pairs(folder: Path, model: Path, pairs: int, length: int) -> None:
    """Pairs of answers that are each longer than `length` tokens, and are cut there."""
    words = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(str(model))
    words *= length // len(tokenizer(words)["input_ids"]) + 1
    row = {
        "prompt": [{"role": "user", "content": "Say something."}],
        "chosen": [{"role": "assistant", "content": words}],
        "rejected": [{"role": "assistant", "content": words[::-1]}],
    }
    DatasetDict(train=Dataset.from_list([row] * pairs)).save_to_disk(str(folder))


def derived_gib(recipe: dict[str, Any], config: DogeConfig, checkpointing: bool) -> float:
    """Weights, gradients and moments, and the activations of a micro-batch's chosen and rejected rows."""
    tokens = 2 * recipe["per_device_train_batch_size"] * recipe["max_length"]
    return (state_bytes(config) + tokens * activation_bytes_per_token(config, checkpointing)) / 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="160M")
    parser.add_argument("--steps", type=int, default=3)
    args, others = parser.parse_known_args()
    path = ROOT / "recipes" / "doge" / f"Doge-{args.size}-Instruct" / "dpo" / "config_full.yaml"
    recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    given = dict(zip((name.removeprefix("--") for name in others[::2]), map(yaml.safe_load, others[1::2]), strict=True))
    recipe |= given
    device = default_device().type
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_random_model(folder / "model", args.size)
        rows = recipe["per_device_train_batch_size"] * recipe["gradient_accumulation_steps"]
        save_pairs(folder / "data", folder / "model", rows, recipe["max_length"])
        options = {
            "model_name_or_path": str(folder / "model"),
            "dataset": str(folder / "data"),
            "output_dir": str(folder / "out"),
            "max_steps": args.steps,
            "logging_steps": 1,
            "save_strategy": "no",
            "eval_strategy": "no",
            "eval_on_start": False,
            "report_to": "none",
            "bf16": device == "cuda",
            "use_cpu": device == "cpu",
            "dataloader_pin_memory": device == "cuda",
        }
        dpo.main(["--config", str(path)] + [f"--{key}={json.dumps(value)}" for key, value in (options | given).items()])
        lines = [json.loads(line) for line in (folder / "out" / "log.jsonl").read_text().splitlines()]
        config = DogeConfig.from_pretrained(folder / "model")
    steps = [line for line in lines if "loss" in line]
    found = {
        "size": args.size,
        "device": device_name(str(default_device())),
        "pairs": recipe["per_device_train_batch_size"],
        "max_length": recipe["max_length"],
        "tokens a pair": steps[-1]["num_tokens"] / (rows * len(steps)),
        "derived GiB": round(derived_gib(recipe, config, bool(recipe.get("gradient_checkpointing"))), 2),
        "peak GiB": max((line.get("peak_memory_gib", 0.0) for line in steps), default=0.0) or None,
        "card GiB": torch.cuda.get_device_properties(0).total_memory / 2**30 if device == "cuda" else None,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
