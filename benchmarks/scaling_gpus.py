"""Pretraining on 1 to N GPUs through the project's own command: weak and strong scaling under DDP, FSDP2 and ZeRO-2.

    python benchmarks/scaling_gpus.py [--gpus 1 2 4 8] [--sizes 20M 160M 320M] [--engines ddp fsdp zero2]
        [--kinds weak strong]

Every run is `accelerate launch --config_file recipes/accelerate_configs/ENGINE.yaml src/small_doge/trainer/doge/pt.py`
on random rows of 2,048 tokens read from disk. Runs that fit the machine side by side run together (1 + 2 + 4 of 8
GPUs) unless --alone. tokens/s is the median of the logged windows after the warm-up; efficiency is against one GPU at
the same micro-batch; bytes exchanged are derived, not counted. A strong run divides the released batch over the GPUs,
and its losses are compared with one GPU's. Runs that the time does not allow are listed as not run.

Rows go to DIR/scaling_gpus_DEVICE_DATE.json (DIR: $OUT, else benchmarks/results). The last line printed is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from rows import RESULTS, ROOT, Row, origin, save

sys.path.insert(0, str(ROOT / "src"))

from small_doge import DogeConfig
from small_doge.models.doge.accounting_doge import count_parameters
from small_doge.processor.tokenizer import train_tokenizer
from small_doge.utils.hardware import default_device, device_name
from small_doge.utils.scaling_laws import RELEASED_RUNS

CONFIGS = {"one": "single_gpu", "ddp": "ddp", "fsdp": "fsdp", "zero2": "deepspeed_zero2"}
MICRO_BATCHES = {"20M": 64, "60M": 32, "160M": 32, "320M": 16, "tiny": 2}
TINY: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


@dataclass
class Run:
    """One launch: a size on some GPUs under an engine, with a number of rows a step."""

    size: str
    engine: str
    gpus: int
    micro: int
    accumulation: int
    kind: str
    folder: Path
    log: list[dict[str, Any]] = field(default_factory=list)
    error: str = ""

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.size}-{self.engine}-{self.gpus}"

    def speeds(self) -> list[float]:
        """tokens/s of the windows after the first third of the run."""
        rates = [line["tokens_per_second"] for line in self.log if line.get("tokens_per_second")]
        return rates[len(rates) // 3 :] or rates


def model_fields(size: str) -> dict[str, Any]:
    return TINY | {"vocab_size": 512} if size == "tiny" else {"size": size, "vocab_size": 32768}


def make_inputs(folder: Path, length: int, rows: int) -> None:
    """So many random rows of tokens and a tokenizer, in `folder`."""
    from datasets import Dataset, DatasetDict

    rng = np.random.default_rng(0)
    ids = rng.integers(3, 500, (rows, length), dtype=np.int32)
    train = Dataset.from_dict({"input_ids": list(ids), "seq_lengths": [[length]] * len(ids)})
    DatasetDict({"train": train}).save_to_disk(str(folder / "rows"))
    train_tokenizer(["A text to make a tokenizer of."] * 50, vocab_size=300, min_frequency=1).save_pretrained(
        str(folder / "tokenizer")
    )


def steps_of(run: Run, options: argparse.Namespace) -> int:
    # A step of the released batch is long: of those, fewer.
    return max(6, options.steps // 5) if run.kind == "strong" else options.steps


def recipe(run: Run, inputs: Path, options: argparse.Namespace) -> dict[str, Any]:
    steps = steps_of(run, options)
    return {
        "model_config": model_fields(run.size),
        "tokenizer_name_or_path": str(inputs / "tokenizer"),
        "dataset": str(inputs / "rows"),
        "output_dir": str(run.folder),
        "per_device_train_batch_size": run.micro,
        "gradient_accumulation_steps": run.accumulation,
        "max_steps": steps,
        "logging_steps": 1 if run.kind == "strong" else max(1, steps // 10),
        "learning_rate": 1e-3,
        "lr_scheduler_type": "warmup_stable_decay",
        "optimizer": options.optimizer,
        "save_strategy": "no",
        "report_to": "none",
        "bf16": not options.cpu,
        "use_cpu": options.cpu,
        "compile_layers": not options.cpu,
        "dataloader_num_workers": 0 if options.cpu else 2,
        "dataloader_pin_memory": not options.cpu,
        "loss_spike": 0.0,
        "seed": 233,
    } | dict(yaml.safe_load(f"{{{', '.join(options.set)}}}"))


def launch(run: Run, inputs: Path, options: argparse.Namespace, devices: list[int], port: int) -> subprocess.Popen[str]:
    run.folder.mkdir(parents=True)
    path = run.folder.parent / f"{run.name}.yaml"
    path.write_text(yaml.safe_dump(recipe(run, inputs, options)))
    config = ROOT / f"recipes/accelerate_configs/{CONFIGS[run.engine]}.yaml"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    command += ["--num_processes", str(run.gpus), "--main_process_port", str(port)]
    command += [str(ROOT / "src/small_doge/trainer/doge/pt.py"), "--config", str(path)]
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{os.environ.get('PYTHONPATH', '')}"}
    environment |= {"OMP_NUM_THREADS": "1" if options.cpu else "4", "HF_HUB_OFFLINE": "1"}
    if not options.cpu:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, devices))
    with open(run.folder.parent / f"{run.name}.out", "w") as output:
        return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, text=True, env=environment)


def collect(run: Run) -> None:
    """Read what a finished run logged; or why there is nothing."""
    path = run.folder / "log.jsonl"
    if path.exists():
        run.log = [json.loads(line) for line in path.read_text().splitlines()]
    if not any("train_runtime" in line for line in run.log):
        lines = (run.folder.parent / f"{run.name}.out").read_text().splitlines()
        # The first is the run's own; those of the launcher follow, and say only that it failed.
        told = [line for line in lines if re.search(r"^(\[\w+\]: *)?(error: |[\w.]*(Error|Exception): )", line)]
        run.error = (told or lines[-1:] or ["no output"])[0][:400]
    shutil.rmtree(run.folder, ignore_errors=True)


def plan(options: argparse.Namespace, folder: Path) -> list[Run]:
    """All runs, those that matter most first: one GPU, several sizes side by side, then most GPUs."""
    runs = []
    for kind in options.kinds:
        for gpus in sorted(options.gpus, key=lambda n: (n != 1, -n)):
            for size in options.sizes:
                micro = options.micro_batch or MICRO_BATCHES[size]
                batch = RELEASED_RUNS[size].batch_tokens // 2048 if size in RELEASED_RUNS else 4 * max(options.gpus)
                for engine in ["one"] if gpus == 1 else options.engines if kind == "weak" else options.engines[:1]:
                    part = min(micro, batch // gpus)
                    accumulation = 1 if kind == "weak" else batch // (gpus * part)
                    name = f"{kind}-{size}-{engine}-{gpus}"
                    rows = micro if kind == "weak" else part
                    runs.append(Run(size, engine, gpus, rows, accumulation, kind, folder / name))
    return runs


def run_all(runs: list[Run], inputs: Path, options: argparse.Namespace, available: int) -> None:
    """Run what fits side by side, until the time is up; what is left gets its error.

    No run overtakes one that waits for more GPUs: else those that want them all would never get them.
    """
    end = time.monotonic() + 60 * options.minutes
    running: list[tuple[Run, subprocess.Popen[str], list[int]]] = []
    waiting, port = list(runs), 29600
    free = list(range(available))
    while waiting or running:
        for run in list(waiting):
            if time.monotonic() > end - options.seconds_a_run:
                run.error = "not run: the time was up"
                waiting.remove(run)
            elif run.gpus > len(free) or (options.alone and running):
                break
            else:
                devices, free = free[: run.gpus], free[run.gpus :]
                running.append((run, launch(run, inputs, options, devices, port), devices))
                waiting.remove(run)
                port += 1
        for entry in list(running):
            run, process, devices = entry
            late = process.poll() is None and time.monotonic() > end
            if late:
                process.terminate()
                process.wait()
            if process.poll() is not None:
                running.remove(entry)
                free += devices
                collect(run)
                run.error = "not finished: the time was up" if late else run.error
                print(f"{run.name}: {run.error or f'{statistics.median(run.speeds()):,.0f} tokens/s'}", flush=True)
        time.sleep(0.5)


def exchanged_bytes(run: Run) -> float:
    """Bytes that a GPU sends a step by the ring algorithms, with fp32 gradients and weights (derived, not counted).

    DDP: an all-reduce of the gradients, 2 (n - 1) / n of them. ZeRO-2: a reduce-scatter of gradients and an all-gather
    of weights, as much. FSDP2: weights are gathered for forward and for backward, and gradients scattered:
    3 (n - 1) / n, in every micro-batch.
    """
    config = DogeConfig(tie_word_embeddings=True, **TINY, vocab_size=512) if run.size == "tiny" else None
    parameters = count_parameters(config or DogeConfig.from_size(run.size)).total
    share = (run.gpus - 1) / run.gpus
    if run.engine == "fsdp":
        return 3 * share * 4 * parameters * run.accumulation
    return 2 * share * 4 * parameters


def rows_of(run: Run, alone: Run | None, shared: dict[str, str]) -> list[Row]:
    """The result rows of a run; `alone` is the same on one GPU."""
    variant = f"{run.kind}, {run.engine}, {run.gpus} GPU, micro-batch {run.micro}, accumulation {run.accumulation}"
    row = {"name": "scaling_gpus", "variant": variant, "size": run.size, **shared}
    if run.error:
        return [row | {"metric": "tokens/s", "value": None, "n": 0, "min": None, "max": None, "note": run.error}]
    speeds = run.speeds()
    rate = statistics.median(speeds)

    def figure(metric: str, value: float, values: list[float] | None = None) -> Row:
        values = values or [value]
        return row | {"metric": metric, "value": value, "n": len(values), "min": min(values), "max": max(values)}

    rows = [figure("tokens/s", rate, speeds), figure("bytes sent a step and GPU (derived)", exchanged_bytes(run))]
    for name in ("mfu", "peak_memory_gib"):
        values = [line[name] for line in run.log if line.get(name) is not None]
        if values:
            rows.append(figure(name, statistics.median(values) if name == "mfu" else max(values), values))
    if alone is not None and not alone.error and run.gpus > 1:
        efficiency = rate / run.gpus / statistics.median(alone.speeds())
        rows.append(figure("efficiency against one GPU", efficiency))
        rows.append(figure("share of the time lost to more than one GPU", max(0.0, 1 - efficiency)))
        if run.kind == "strong":
            pairs = zip(losses(run), losses(alone), strict=True)
            rows.append(figure("largest difference of a loss from one GPU's", max(abs(a - b) for a, b in pairs)))
    return rows


def losses(run: Run) -> list[float]:
    return [line["loss"] for line in run.log if "loss" in line]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--gpus", type=int, nargs="+", help="Numbers of GPUs; 1, 2, 4, ... of this machine if left out."
    )
    parser.add_argument("--sizes", nargs="+", default=["20M", "160M", "320M"], choices=list(MICRO_BATCHES))
    parser.add_argument("--engines", nargs="+", default=["ddp", "fsdp", "zero2"], choices=list(CONFIGS)[1:])
    parser.add_argument("--optimizer", default="adamw", choices=["adamw", "muon"])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--micro-batch", type=int, help="Rows a GPU takes at once; by size if left out.")
    parser.add_argument(
        "--kinds",
        nargs="+",
        default=["weak"],
        choices=["weak", "strong"],
        help="weak: a micro-batch a step for each GPU; strong: the released batch divided over them.",
    )
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD: VALUE", help="Fields of every run's recipe.")
    parser.add_argument("--alone", action="store_true", help="One run at a time.")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--seconds-a-run", type=float, default=60.0, help="Start none that would end too late.")
    parser.add_argument("--cpu", action="store_true", help="Processes on the CPU, exchanging by gloo: a rehearsal.")
    options = parser.parse_args()

    available = max(options.gpus or [2]) if options.cpu else torch.cuda.device_count()
    options.gpus = [n for n in options.gpus or (1, 2, 4, 8) if n <= available]
    if not options.gpus:
        sys.exit("error: no GPU here; --cpu rehearses the runs on processes.")
    device = device_name(default_device())
    shared = {"device": f"{available} x {device}", **origin()}
    with tempfile.TemporaryDirectory() as folder:
        runs = plan(options, Path(folder) / "runs")
        # None is seen twice: a run that begins its rows anew waits for them.
        rows_needed = max(steps_of(run, options) * run.gpus * run.micro * run.accumulation for run in runs)
        make_inputs(Path(folder), 32 if options.sizes == ["tiny"] else 2048, rows_needed)
        run_all(runs, Path(folder), options, available)
    ones = {(run.kind, run.size): run for run in runs if run.gpus == 1}
    rows = [row for run in runs for row in rows_of(run, ones.get((run.kind, run.size)), shared)]
    path = save(rows, RESULTS, "scaling_gpus", f"{available}x{device}")
    kept = ("tokens/s", "efficiency against one GPU")
    short = [{key: row[key] for key in ("size", "variant", "metric", "value")} for row in rows if row["metric"] in kept]
    print(json.dumps({"file": str(path), "rows": short}))


if __name__ == "__main__":
    main()
