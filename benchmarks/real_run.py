"""A base, a chat and a reasoning model on real data: the recipes' commands one after another, and what each stage did.

    small-doge tokenizer train ... && for r in pretrain sft preference reasoning arithmetic; do
        small-doge data prepare recipes/data/$r.yaml; done        # makes ./tokenizer and ./datasets
    python benchmarks/real_run.py --size 20M --tokens 400M --out runs/real-20M [--options FILE.yaml] [--until sft]

Every stage is `python -m small_doge.trainer.doge.STAGE --config RECIPE --option value ...`: the size's recipes with the
options of STAGES for one GPU of 80 GB, and those of --options ({stage: {option: value}}) over them. After a stage its
model is measured on what no stage has seen: loss on answers, preference pairs, and problems answered greedily by the
engine. A finished stage is not run again. Results go to OUT/real_run.json; the last line printed is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from datasets import load_from_disk
from rows import commit
from torch import nn
from transformers import AutoTokenizer

from small_doge.evaluation.likelihood import Scored, log_likelihoods, preference_scores
from small_doge.evaluation.problems import solve
from small_doge.evaluation.statistics import mean_interval, paired_difference_interval, wilson_interval
from small_doge.inference import load
from small_doge.inference.engine import Engine
from small_doge.models.loading import load_checkpoint
from small_doge.processor.builtin import BUILTIN_SOURCES
from small_doge.utils.hardware import default_device, device_name
from small_doge.utils.provenance import versions

ROOT = Path(__file__).resolve().parents[1]
MUON: dict[str, Any] = {
    "optimizer": "muon",
    "muon_momentum": 0.9,
    "adam_beta2": 0.95,
    "lr_scheduler_type": "linear",
    "lr_scheduler_kwargs": None,
}
ONE_GPU: dict[str, Any] = {"per_device_train_batch_size": 128, "gradient_accumulation_steps": 1}
STAGES: dict[str, dict[str, Any]] = {
    "pretrain": {
        "module": "pt",
        "recipe": "{size}/config_muon.yaml",
        "dataset": "pt_dataset",
        "per_device_train_batch_size": 64,
    },
    "sft": {
        "module": "sft",
        "recipe": "{size}-Instruct/sft/config_full.yaml",
        "dataset": "ft_dataset",
        "train_sampling_strategy": "group_by_length",
        **ONE_GPU,
    },
    "dpo": {
        "module": "dpo",
        "recipe": "{size}-Instruct/dpo/config_full.yaml",
        "dataset": "preference_dataset",
        "per_device_train_batch_size": 64,
        "gradient_accumulation_steps": 1,
    },
    "distill": {
        "module": "sft",
        "recipe": "{size}-Reason/sft/config_full.yaml",
        "dataset": "reasoning_dataset",
        "max_length": 2048,
        "train_sampling_strategy": "group_by_length",
        "muon_learning_rate": 0.02,
        "learning_rate": 0.005,
        **ONE_GPU,
        **MUON,
    },
    "grpo": {
        "module": "grpo",
        "recipe": "{size}-Reason/grpo/config_full.yaml",
        "dataset": "arithmetic_dataset",
        "reward_weights": [1.0, 0.1],
        "per_device_train_batch_size": 512,
        "gradient_accumulation_steps": 1,
        "max_completion_length": 64,
        "max_steps": 150,
        "muon_learning_rate": 0.005,
        "learning_rate": 0.001,
        **MUON,
    },
}
"""What each stage runs, and the options that differ from its recipe."""
TASKS: dict[str, dict[str, Any]] = {
    "comparisons": {"n": 1000, "kinds": ["larger", "smaller"], "max_value": 99},
    "sums": {"n": 500, "kinds": ["chain", "bare", "difference", "total"], "steps": [1, 2, 3, 4], "max_value": 99},
}
"""Held-out problems of `builtin:arithmetic`: those that GRPO reinforces, and others that it does not."""
QUESTIONS = (
    "Who are you?",
    "What is photosynthesis?",
    "Write a Python function that adds two numbers.",
    "Tom has 12 apples. Tom gives away 5. Tom buys 7 more. How many apples does Tom have now?",
)


class Run:
    """The stages of one size, their figures and what they left on disk."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.out: Path = args.out
        self.device = default_device()
        self.file = self.out / "real_run.json"
        self.out.mkdir(parents=True, exist_ok=True)
        self.options = yaml.safe_load(args.options.read_text()) if args.options else {}
        done = json.loads(self.file.read_text()) if self.file.exists() else {}
        self.results: dict[str, Any] = done.get("stages", {})
        self.about = {
            "device": device_name(str(self.device)),
            "command": " ".join(sys.argv),
            "commit": commit(),
            "versions": versions(),
        }

    def walk(self) -> None:
        """Train and measure stage after stage."""
        for name, stage in STAGES.items():
            if name not in self.results:
                seconds = self.train(name, stage)
                figures = self.measure(name)
                self.results[name] = {"seconds": round(seconds, 1), **self.logged(name), **figures}
                self.file.write_text(json.dumps({"stages": self.results, **self.about}, indent=1) + "\n")
                print(name, json.dumps(self.results[name])[:1500], flush=True)
            if name == self.args.until:
                break
        print(json.dumps({"stages": self.results, **self.about}))

    def train(self, name: str, stage: dict[str, Any]) -> float:
        """Run the stage's command; seconds."""
        before = {"sft": "pretrain", "dpo": "sft", "distill": "dpo", "grpo": "distill"}.get(name)
        options = {key: value for key, value in stage.items() if key not in ("module", "recipe", "dataset")}
        options |= {"dataset": str(self.args.datasets / stage["dataset"]), "output_dir": str(self.out / name)}
        options |= {"stage": name, "save_strategy": "no"}
        if before:
            # What the recipes would evaluate is measured here, after the stage.
            options |= {"model_name_or_path": str(self.out / before), "eval_strategy": "no", "eval_on_start": False}
        else:
            options |= {"tokens": self.args.tokens, "tokenizer_name_or_path": str(self.args.tokenizer)}
        options |= self.options.get(name, {})
        recipe = stage["recipe"].format(size=f"Doge-{self.args.size}")
        return self.launch(name, stage["module"], recipe, options)

    def launch(self, name: str, module: str, recipe: str, options: dict[str, Any]) -> float:
        """Run a stage's command with a recipe of recipes/doge and options over it; seconds."""
        command = [sys.executable, "-m", f"small_doge.trainer.doge.{module}"]
        command += ["--config", str(ROOT / "recipes" / "doge" / recipe)]
        for key, value in options.items():
            command += [f"--{key}", json.dumps(value)]
        print(" ".join(command), flush=True)
        start = time.monotonic()
        path = self.out / f"{name}.log"
        with path.open("w") as log:
            if subprocess.run(command, stdout=log, stderr=log, cwd=self.out).returncode:
                sys.exit("".join(path.read_text().splitlines(keepends=True)[-30:]))
        return time.monotonic() - start

    def logged(self, name: str) -> dict[str, Any]:
        """Speed and the last figures of the stage's own log."""
        lines = [json.loads(line) for line in (self.out / name / "log.jsonl").read_text().splitlines()]
        rates = [line["tokens_per_second"] for line in lines if line.get("tokens_per_second")]
        figures: dict[str, Any] = {"steps": max((line.get("step", 0) for line in lines), default=0)}
        if rates:
            figures["tokens_per_second"] = round(statistics.median(rates))
        for key in ("eval_bits_per_byte", "rollouts/tokens_per_second"):
            found = [line[key] for line in lines if key in line]
            if found:
                figures[key] = round(found[-1], 4)
        return figures

    def measure(self, name: str) -> dict[str, Any]:
        """What the stage's model scores on held-out data, beside the stage before where both are measured."""
        path = str(self.out / name)
        model, tokenizer = nn.Module.to(load_checkpoint(path), self.device), AutoTokenizer.from_pretrained(path)
        figures: dict[str, Any] = {"parameters": model.num_parameters()}
        thought = tokenizer.convert_tokens_to_ids("<think>")
        for label, folder in (("chat", "ft_dataset"), ("reasoning", "reasoning_dataset")):
            rows = list(load_from_disk(str(self.args.datasets / folder))["test"])
            if label == "reasoning":  # Not the conversations that are mixed in.
                rows = [row for row in rows if thought in row["input_ids"]]
            sequences = [
                Scored(row["input_ids"], [bool(mask) for mask in row["assistant_masks"]])
                for row in rows[: self.args.held_out]
            ]
            scored = log_likelihoods(model, sequences)
            figures[f"{label}_answer_loss"] = round(-sum(s for s, _ in scored) / sum(n for _, n in scored), 4)
            figures[f"{label}_n"] = len(scored)
        pairs = list(load_from_disk(str(self.args.datasets / "preference_dataset"))["test"])[: self.args.held_out]
        scores = preference_scores(model, tokenizer, pairs)
        figures["preference_n"] = len(pairs)
        figures["prefers_chosen"] = round(sum(scores.prefers_chosen) / len(pairs), 4)
        figures["prefers_chosen_ci95"] = wilson_interval(sum(scores.prefers_chosen), len(pairs))
        figures["chosen_loss"] = round(scores.chosen_loss, 4)
        torch.save(scores.log_ratios, self.out / f"{name}.log_ratios")
        if name == "dpo":
            margins = (scores.log_ratios - torch.load(self.out / "sft.log_ratios")).tolist()
            figures["reward_margin_nats"] = round(statistics.mean(margins), 4)
            figures["reward_margin_ci95"] = mean_interval(margins)
            figures["reward_accuracy"] = round(sum(margin > 0 for margin in margins) / len(margins), 4)
        del model
        engine = load(path, device=str(self.device), dtype="bfloat16" if self.device.type == "cuda" else "float32")
        if name != "pretrain":
            figures |= {task: self.answer(name, engine, task) for task in TASKS}
        prompts: list[Any] = [[{"role": "user", "content": question}] for question in QUESTIONS]
        if name == "pretrain":
            prompts = ["The capital of France is", "Photosynthesis is"]
        answers = engine.generate(prompts, max_new_tokens=96)
        figures["samples"] = [[str(p), answer.text] for p, answer in zip(prompts, answers, strict=True)]
        return figures

    def answer(self, name: str, engine: Engine, task: str) -> dict[str, Any]:
        """Accuracy on a task, and for the last stage its change from the one before on the same problems."""
        options = TASKS[task] | {"n": min(TASKS[task]["n"], self.args.problems), "seed": 11, "split": "test"}
        solved = solve(
            engine, list(BUILTIN_SOURCES["builtin:arithmetic"](**options)), max_new_tokens=128, batch_size=500
        )
        file = f"{task}.right.json"
        (self.out / f"{name}.{file}").write_text(json.dumps(solved.right))
        figures = {
            "n": len(solved.right),
            "right": round(solved.accuracy, 4),
            "ci95": solved.ci95,
            "well_formed": round(solved.format_rate, 4),
        }
        if name == "grpo":
            before = json.loads((self.out / f"distill.{file}").read_text())
            figures["change_ci95"] = paired_difference_interval(before, solved.right)
        return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="20M")
    parser.add_argument("--tokens", default="400M")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--datasets", type=Path, default=Path("datasets"), help="what `small-doge data prepare` made")
    parser.add_argument("--tokenizer", type=Path, default=Path("tokenizer"))
    parser.add_argument("--options", type=Path, help="YAML: {stage: {option: value}}")
    parser.add_argument("--until", choices=STAGES, help="the last stage to run")
    parser.add_argument("--problems", type=int, default=1000, help="the most of a task to answer")
    parser.add_argument("--held-out", type=int, default=500, help="the most rows to measure a loss on")
    args = parser.parse_args()
    for name in ("out", "datasets", "tokenizer"):
        setattr(args, name, getattr(args, name).resolve())
    Run(args).walk()


if __name__ == "__main__":
    main()
