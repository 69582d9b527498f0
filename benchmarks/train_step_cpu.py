"""The quickstart's pretraining step on a CPU beside transformers' own Doge: same weights, same rows, fp32, AdamW.

    python benchmarks/train_step_cpu.py [--rounds 5] [--steps 4] [--threads 2] [--cpu-time]

Model, micro-batch and row length are the quickstart's. Ours has its layers compiled and its head fused, as its recipe
has it, and stands there by Muon too, which that recipe uses. transformers' Doge is taken as installed. A step is
forward, backward, clipping and the optimizer.

1. check: both models give the same loss and gradient norm, else nothing is timed; whether transformers' Doge looks at
   later tokens, as some versions do, is printed.
2. time: the variants in turn, round by round in one process; medians of the rounds. `times transformers` is the ratio
   within a round. On a machine that others use too, --cpu-time counts CPU seconds of one thread.
3. ceiling: what the step's arithmetic alone would allow, at the rate of one layer's product in the same round.

Rows go to DIR/train_step_cpu_DEVICE_DATE.json (DIR: $OUT, else benchmarks/results). The last line printed is JSON.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import torch
import transformers
import yaml
from rows import RESULTS, Table, save
from torch import Tensor, nn

from small_doge import DogeConfig, DogeForCausalLM
from small_doge.models.doge.accounting_doge import training_flops_per_token
from small_doge.quickstart.settings import Settings
from small_doge.trainer.optimizers import Muon, muon_groups
from small_doge.trainer.setup import compile_layers
from small_doge.utils.hardware import device_name

SETTINGS = Settings()
RECIPE = yaml.safe_load((files("small_doge.quickstart") / "recipes" / "pretrain.yaml").read_text())
FIELDS = SETTINGS.model | {
    "vocab_size": SETTINGS.vocab_size,
    "max_position_embeddings": max(1024, SETTINGS.row_length),
    "tie_word_embeddings": True,
}
THEIRS, CEILING = "transformers", "products alone"


def models() -> tuple[DogeForCausalLM, nn.Module]:
    """Ours, and transformers' with the same weights."""
    torch.manual_seed(0)
    ours = DogeForCausalLM(DogeConfig(**FIELDS)).train()
    theirs = transformers.DogeForCausalLM(transformers.DogeConfig(**FIELDS)).train()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def batches(count: int, rows: int, length: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, SETTINGS.vocab_size, (rows, length), generator=generator) for _ in range(count)]


def loss_of(model: nn.Module, ids: Tensor) -> Tensor:
    options = {"loss_only": True} if isinstance(model, DogeForCausalLM) else {}
    return model(input_ids=ids, labels=ids, use_cache=False, **options).loss


def refuse_if_different(ids: Tensor) -> None:
    """End the run where the two do not compute the same."""
    found = []
    for model in models():
        loss = loss_of(model, ids)
        loss.backward()
        found.append((loss.item(), nn.utils.clip_grad_norm_(model.parameters(), torch.inf).item()))
    print(f"loss and gradient norm: ours {found[0]}, {THEIRS} {found[1]}", flush=True)
    if any(abs(ours - theirs) > 1e-4 * theirs for ours, theirs in zip(*found, strict=True)):
        raise SystemExit("loss or gradients differ from transformers': nothing is timed")


@torch.no_grad()
def looks_ahead(model: nn.Module, ids: Tensor) -> bool:
    """Whether logits move when a later token does."""
    changed = ids.clone()
    changed[:, -1] = 3 + (ids[:, -1] - 2) % (SETTINGS.vocab_size - 3)
    return not torch.allclose(model(ids).logits[:, :-1], model(changed).logits[:, :-1], atol=1e-5)


def new_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[Tensor], None]:
    def step(ids: Tensor) -> None:
        loss_of(model, ids).backward()
        nn.utils.clip_grad_norm_(model.parameters(), RECIPE["max_grad_norm"])
        optimizer.step()
        optimizer.zero_grad()

    return step


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    options = {"betas": (0.9, RECIPE["adam_beta2"]), "weight_decay": RECIPE["weight_decay"], "fused": True}
    return torch.optim.AdamW(model.parameters(), lr=RECIPE["learning_rate"], **options)


def muon(model: nn.Module) -> torch.optim.Optimizer:
    groups = muon_groups(model, RECIPE["muon_learning_rate"], RECIPE["learning_rate"], RECIPE["weight_decay"])
    return Muon(groups, momentum=RECIPE["muon_momentum"], betas=(0.9, RECIPE["adam_beta2"]))


def variants() -> dict[str, Callable[[Tensor], None]]:
    ours, theirs = models()
    by_muon, _ = models()
    for model in (ours, by_muon):
        compile_layers(model)
    return {
        "ours, compiled": new_step(ours, adamw(ours)),
        "ours, compiled, Muon": new_step(by_muon, muon(by_muon)),
        THEIRS: new_step(theirs, adamw(theirs)),
    }


def products(rows: int, length: int) -> Callable[[Tensor], None]:
    """One layer's product as many times as it takes to make the FLOPs of a step."""
    width, mlp = FIELDS["hidden_size"], FIELDS["intermediate_size"]
    x_Nd, weight_fd = torch.randn(rows * length, width), torch.randn(mlp, width)
    flops = training_flops_per_token(DogeConfig(**FIELDS), length) * rows * length
    times = round(flops / (2 * rows * length * width * mlp))

    def step(ids: Tensor) -> None:
        for _ in range(times):
            x_Nd @ weight_fd.T

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="steps in a round")
    parser.add_argument("--rows", type=int, default=RECIPE["per_device_train_batch_size"])
    parser.add_argument("--length", type=int, default=SETTINGS.row_length, help="tokens in a row")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--cpu-time", action="store_true", help="CPU seconds of one thread instead of wall seconds")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    threads = 1 if args.cpu_time else args.threads
    timer = time.process_time if args.cpu_time else time.perf_counter
    torch.set_num_threads(threads)
    device = f"{device_name('cpu')}, {threads} thread{'s' * (threads > 1)}"
    table = Table("train_step_cpu", f"{device}{', CPU time' if args.cpu_time else ''}", digits=".3f")
    size, commit = f"quickstart B{args.rows} T{args.length}", table.more["commit"]
    print(f"{device}, torch {torch.__version__}, transformers {transformers.__version__}, commit {commit}", flush=True)

    rows_of_steps = batches(args.steps, args.rows, args.length)
    refuse_if_different(rows_of_steps[0])
    ahead = looks_ahead(models()[1].eval(), rows_of_steps[0])
    print(f"{THEIRS}' Doge looks at later tokens: {'yes' if ahead else 'no'}", flush=True)

    steps = variants()
    title = {name: f"{name} {transformers.__version__}" if name == THEIRS else name for name in (*steps, CEILING)}
    for name, step in steps.items():
        start = time.perf_counter()
        step(rows_of_steps[0])
        table.add(title[name], size, "first step s", [time.perf_counter() - start])
        step(rows_of_steps[0])
    steps[CEILING] = products(args.rows, args.length)
    rates: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(args.rounds):
        for name, step in steps.items():
            start = timer()
            for ids in rows_of_steps:
                step(ids)
            rates[name].append(args.steps * args.rows * args.length / (timer() - start))
    speedups = {}
    for name, found in rates.items():
        table.add(title[name], size, "tokens/s", found)
        if name != THEIRS:
            ratios = [a / b for a, b in zip(found, rates[THEIRS], strict=True)]
            speedups[name] = table.add(name, size, "times transformers", ratios)["value"]
    for row in table.rows:
        print(f"{row['variant']:24s} {row['metric']:20s} {row['value']:>10,} ({row['min']:,} to {row['max']:,})")
    path = save(table.rows, args.out, table.name, device)
    print(json.dumps({"file": path.name, "times transformers": speedups, "looks ahead": ahead}))


if __name__ == "__main__":
    main()
