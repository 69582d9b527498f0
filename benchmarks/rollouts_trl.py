"""Steps of the GRPO stage itself: TRL's trainer, our engine as its `rollout_func`, and the size's own recipe.

    PYTHONPATH=src python benchmarks/rollouts_trl.py [--sizes 20M 160M] [--rollouts 512] [--tokens 256] [--out DIR]

Everything is made here: random weights, a tokenizer trained on the documentation, questions of digits, and a reward
for letters, so that there is something to learn. It prints the rollouts' tokens/s as the stage logs them (refresh of
the weights, prefill and drawing), the seconds of a whole step (with tokenizing, rewards, forward, backward and
optimizer), and how far the engine's log-probabilities are from the training forward's. `benchmarks/rollouts.py`
measures the engine without TRL. The first step, which captures graphs and compiles kernels, is not counted.

Rows go to DIR/rollouts-trl_DEVICE_DATE.json (DIR: $OUT, else benchmarks/results). The last line printed is JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, DatasetDict
from rows import RESULTS, ROOT, Table, save

from small_doge import DogeConfig, DogeForCausalLM
from small_doge.processor.tokenizer import train_tokenizer
from small_doge.rewards import REWARDS, Group, Judgement
from small_doge.trainer.doge import grpo
from small_doge.utils.hardware import default_device, device_name

TOLERANCE = {"cuda": 0.02, "cpu": 1e-4}
"""Mean difference of a log-probability in nats that is let pass: in bf16 on a GPU, in fp32 on a CPU."""
LINE = "{size:5} {variant} {metric:36} {value:14,.6g}  [{min:,.6g}, {max:,.6g}]"


class TimedTrainer(grpo.ReinforcementTrainer):
    """The stage's trainer, with the time at which each step ended."""

    ends: list[float]

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if self.args.device.type == "cuda":
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())
        super().log(logs, *args, **kwargs)


def letters(group: Group) -> list[Judgement]:
    """Share of a completion that is letters."""
    return [sum(map(str.isalpha, text)) / max(1, len(text)) for text in group.texts]


def save_random_model(folder: Path, size: str) -> None:
    """A model of that size with random weights, and a tokenizer trained on the documentation."""
    texts = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))]
    tokenizer = train_tokenizer(texts, vocab_size=4096)
    tokens = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    torch.manual_seed(0)
    model = DogeForCausalLM(DogeConfig.from_size(size, **tokens))
    for layer in model.model.layers:
        torch.nn.init.normal_(layer.self_attn.A)
    for part in (model, tokenizer):
        part.save_pretrained(folder)


def save_questions(folder: Path, questions: int) -> None:
    """Rows of digits to answer."""
    draw = random.Random(1)
    asked = [" ".join(str(draw.randrange(10)) for _ in range(25)) for _ in range(questions)]
    rows = {"question": asked, "answer": ["0"] * questions}
    DatasetDict(train=Dataset.from_dict(rows)).save_to_disk(str(folder))


def steps_of(size: str, args: argparse.Namespace, folder: Path) -> list[dict[str, float]]:
    """What the stage logged of each counted step, and its `seconds`."""
    device = default_device().type
    micro_batch = min(args.micro_batch, args.rollouts)
    options = {
        "model_name_or_path": str(folder / "model"),
        "dataset": str(folder / "data"),
        "output_dir": str(folder / "out"),
        "reward_functions": ["letters"],
        "reward_weights": [1.0],
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": args.rollouts // micro_batch,
        "gradient_checkpointing": args.checkpointing,
        "max_completion_length": args.tokens,
        "max_steps": args.steps + 1,
        "logging_steps": 1,
        "save_strategy": "no",
        "eval_strategy": "no",
        "eval_on_start": False,
        "report_to": "none",
        "bf16": device == "cuda",
        "use_cpu": device == "cpu",
        "dataloader_pin_memory": device == "cuda",
    }
    recipe = ROOT / "recipes" / "doge" / f"Doge-{size}-Reason" / "grpo" / "config_full.yaml"
    TimedTrainer.ends = []
    grpo.main(["--config", str(recipe)] + [f"--{name}={json.dumps(value)}" for name, value in options.items()])
    lines = [json.loads(line) for line in (folder / "out" / "log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "rollouts/tokens_per_second" in line]
    pairs = zip(TimedTrainer.ends, TimedTrainer.ends[1:], strict=False)
    for step, (start, end) in zip(steps[1:], pairs, strict=False):
        step["seconds"] = end - start
    return steps[1:]


METRICS = {
    "rollouts/tokens_per_second": "rollout tokens/s",
    "seconds": "step seconds",
    "completions/mean_length": "tokens of a completion",
    "rollouts/log_prob_difference": "mean log-probability difference",
    "rollouts/log_prob_difference_max": "largest log-probability difference",
    "reward": "reward",
}


def measure(size: str, args: argparse.Namespace, table: Table) -> None:
    """Add the rows of one size."""
    with tempfile.TemporaryDirectory() as name:
        save_random_model(Path(name) / "model", size)
        save_questions(Path(name) / "data", args.rollouts)
        steps = steps_of(size, args, Path(name))
    device = default_device().type
    mean = max(step["rollouts/log_prob_difference"] for step in steps)
    variant = f"{args.rollouts} x {args.tokens}, TRL, {'bf16' if device == 'cuda' else 'fp32'}"
    found = {title: [step[key] for step in steps] for key, title in METRICS.items()}
    if device == "cuda":
        found["peak GiB"] = [torch.cuda.max_memory_allocated() / 2**30]
    for metric, values in found.items():
        table.add(variant, size, metric, values)
    if mean > TOLERANCE[device]:
        raise SystemExit(f"{size}: log-probabilities differ by {mean:.1e} in the mean: no row is written.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["20M", "160M"])
    parser.add_argument("--rollouts", type=int, default=512, help="completions of a step, 8 for each question")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--micro-batch", type=int, default=64, help="completions of one training forward")
    parser.add_argument("--checkpointing", action="store_true", help="compute activations again")
    parser.add_argument("--steps", type=int, default=6, help="counted steps, after one that is not")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    if args.steps < 1:
        parser.error("--steps must be at least 1.")
    if args.rollouts % min(args.micro_batch, args.rollouts) or args.rollouts % 8:
        parser.error("--rollouts must be a multiple of --micro-batch and of 8.")
    REWARDS["letters"] = letters
    grpo.ReinforcementTrainer = TimedTrainer
    table = Table("rollouts", device_name(str(default_device())), LINE, ".6g")
    for size in args.sizes:
        measure(size, args, table)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    path = save(table.rows, args.out, "rollouts-trl", table.device)
    print(json.dumps({"rows": len(table.rows), "file": path.name}))


if __name__ == "__main__":
    main()
