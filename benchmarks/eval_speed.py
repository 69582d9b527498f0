"""Seconds to score HellaSwag, ARC and PIQA: our model class for lm-eval beside lm-eval's own `hf`, the same answers.

    python benchmarks/eval_speed.py --data-dir ../shared/data/eval [--model 20M|FOLDER] [--tokenizer FILE]
        [--limit 100] [--rounds 3] [--device cuda] [--dtype float32]

The requests are those of the tasks as they stand: HellaSwag without, ARC and PIQA with five worked examples. Every
round runs each variant once, so that noise falls on all alike; tokenizing is part of the time. The stock class runs
with each of `--batch-sizes`, and the fastest is what ours is compared with. Before anything is timed the answers are
compared, item by item, and the benchmark stops where they differ. It needs torch, transformers and lm-eval with
accelerate, and no network; zstandard only where the files are compressed. The last line is the rows as JSON.
"""

import argparse
import logging
import platform
import random
import statistics
import sys
import time
from pathlib import Path

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from rows import Table, finish
from transformers import PreTrainedTokenizerFast

from small_doge import DogeConfig, DogeForCausalLM
from small_doge.evaluation.lm import SmallDogeLM
from small_doge.evaluation.rows import find_rows, read_rows
from small_doge.utils.hardware import device_name

Pair = tuple[str, str]


def arc(row: dict) -> tuple[str, list[str], int]:
    return f"{row['query']}\nAnswer:", row["choices"], row["gold"]


def piqa(row: dict) -> tuple[str, list[str], int]:
    return f"Question: {row['goal']}\nAnswer:", [row["sol1"], row["sol2"]], row["label"]


def hellaswag(row: dict) -> tuple[str, list[str], int]:
    return row["query"], row["endings"], row["label"]


TASKS = {
    "hellaswag": ("hellaswag_val", hellaswag, 0),
    "arc_easy": ("arc_easy_test", arc, 5),
    "arc_challenge": ("arc_challenge_test", arc, 5),
    "piqa": ("piqa_valid", piqa, 5),
}
"""File, prompt and shots of each task."""


def requests_of(folder: Path, limit: int | None, seed: int) -> dict[str, list[Pair]]:
    """Context and continuation of every choice of every question, by task."""
    found = {}
    for task, (file, prompt, shots) in TASKS.items():
        rows = read_rows(find_rows(folder, file))
        random.Random(seed).shuffle(rows)
        worked = [(text, choices[gold]) for text, choices, gold in map(prompt, rows[:shots])]
        before = "".join(f"{text} {answer}\n\n" for text, answer in worked)
        questions = [prompt(row) for row in rows[shots:][:limit]]
        found[task] = [(before + text, f" {choice}") for text, choices, _ in questions for choice in choices]
    return found


def instances(pairs: list[Pair]) -> list[Instance]:
    return [Instance("loglikelihood", {}, pair, i, metadata=("speed", i, 1)) for i, pair in enumerate(pairs)]


def make_model(options: argparse.Namespace) -> torch.nn.Module:
    """The checkpoint, or a named size with random weights (A too: at 0 the mask would be a sliding window)."""
    dtype = getattr(torch, options.dtype)
    if Path(options.model).is_dir():
        return DogeForCausalLM.from_pretrained(options.model, dtype=dtype).to(options.device).eval()
    torch.manual_seed(0)
    model = DogeForCausalLM(DogeConfig.from_size(options.model))
    for layer in model.model.layers:
        torch.nn.init.normal_(layer.self_attn.A)
    return model.to(options.device, dtype).eval()


def answer(lm: HFLM, pairs: list[Pair]) -> list[tuple[float, bool]]:
    return lm.loglikelihood(instances(pairs), disable_tqdm=True)


def refuse_if_different(stock: HFLM, ours: HFLM, pairs: list[Pair], tolerance: float) -> float:
    """The largest difference of a log-probability.

    Choices whose order could change are what matters, and those are the ones nearer to each other than this.
    """
    expected, found = answer(stock, pairs), answer(ours, pairs)
    worst = max(abs(a - b) / max(1.0, abs(a)) for (a, _), (b, _) in zip(expected, found, strict=True))
    if worst > tolerance:
        sys.exit(f"log-probabilities differ by {worst:.2e} of their size, more than {tolerance:.0e}: not timed.")
    return worst


def seconds(lm: HFLM, pairs: list[Pair]) -> tuple[float, float]:
    """Seconds by the clock, and of all processors together, which other processes of the machine do not stretch."""
    start, processors = time.perf_counter(), time.process_time()
    answer(lm, pairs)
    return time.perf_counter() - start, time.process_time() - processors


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--model", default="20M", help="a size, with random weights, or a checkpoint folder")
    parser.add_argument("--tokenizer", type=Path, required=True, help="a tokenizer.json")
    parser.add_argument("--limit", type=int, help="questions of each task; all if left out")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-sizes", type=int, nargs="+", help="of the stock class; by the device if left out")
    parser.add_argument("--batch-tokens", type=int, help="of ours; by the device if left out")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--check", type=int, default=200, help="requests of each task that are compared first")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the rows to this file")
    return parser.parse_args()


def main() -> None:
    options = parse()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    on_gpu = options.device.startswith("cuda")
    batch_sizes = options.batch_sizes or ([64, 256] if on_gpu else [1, 16])
    batch_tokens = options.batch_tokens or (131072 if on_gpu else 8192)
    model = make_model(options)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(options.tokenizer))
    tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id = 2, 0, 1
    shared = {"tokenizer": tokenizer, "device": options.device}
    ours = SmallDogeLM(model, batch_tokens=batch_tokens, **shared)
    stock = {size: HFLM(model, batch_size=size, **shared) for size in batch_sizes}
    tasks = requests_of(options.data_dir, options.limit, options.seed)
    tolerance = 1e-3 if options.dtype == "float32" else 5e-2
    worst = max(
        refuse_if_different(stock[batch_sizes[-1]], ours, pairs[: options.check], tolerance) for pairs in tasks.values()
    )
    print(f"answers agree within {worst:.1e} of their size", file=sys.stderr)
    variants: dict[str, HFLM] = {"small-doge": ours} | {f"hf, batch {size}": lm for size, lm in stock.items()}
    times: dict[str, list[dict[str, tuple[float, float]]]] = {name: [] for name in variants}
    for _ in range(options.rounds):
        for name, lm in variants.items():
            times[name].append({task: seconds(lm, pairs) for task, pairs in tasks.items()})
            print(name, times[name][-1], file=sys.stderr, flush=True)
    device = device_name(options.device) + ("" if on_gpu else f", {torch.get_num_threads()} threads")
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    more = {"dtype": options.dtype, "largest_difference": worst, "versions": versions}
    table = Table("eval_speed", device, digits=".3f", **more)
    for name, rounds in times.items():
        for task in [*tasks, "all"]:
            values, processors = (
                [sum(pair[i] for pair in r.values()) if task == "all" else r[task][i] for r in rounds] for i in (0, 1)
            )
            table.add(
                f"{name}, {task}",
                options.model,
                "seconds",
                values,
                processor_seconds=round(statistics.median(processors), 3),
                requests=sum(map(len, tasks.values())) if task == "all" else len(tasks[task]),
            )
    mine = next(row for row in table.rows if row["variant"] == "small-doge, all")
    stock_rows = [row for row in table.rows if row["variant"].startswith("hf") and row["variant"].endswith(", all")]
    fastest = min(stock_rows, key=lambda row: row["value"])
    rounds_of = {row["variant"]: times[row["variant"].removesuffix(", all")] for row in (mine, fastest)}
    ratios = [
        sum(pair[0] for pair in theirs.values()) / sum(pair[0] for pair in ours_.values())
        for theirs, ours_ in zip(rounds_of[fastest["variant"]], rounds_of[mine["variant"]], strict=True)
    ]
    table.add(
        f"small-doge beside {fastest['variant']}",
        options.model,
        "times faster",
        ratios,
        processor_seconds=round(fastest["processor_seconds"] / mine["processor_seconds"], 2),
        requests=mine["requests"],
    )
    finish(table.rows, options.out)


if __name__ == "__main__":
    main()
