"""One training step of each size on one GPU: forward, backward and AdamW in bf16 autocast, fp32 weights, T = 2048.

    python benchmarks/train_step.py [--sizes 20M 60M] [--batches 64 32] [--baseline FILE] [--mixture] [--profile]

1. check: the fused head against the definition in fp64, and of each size two compiled layers' gradients against the
   same ones uncompiled; a failure ends the run.
2. time: our compiled step, a CUDA graph as in pretraining, and with --baseline the variants of that script
   (transformers' Doge, and a compiled prototype, both in pure bf16), interleaved by round, medians of the rounds.
3. --profile: where the time of one step goes, kernel by kernel.

Rows go to DIR/train_step_DEVICE_DATE.json (DIR: $OUT, else benchmarks/results). The last line printed is JSON.
"""

import argparse
import gc
import json
import sys
import time
import traceback
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import torch
from rows import RESULTS, ROOT, Table, save
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(ROOT / "src"))

from small_doge import DogeConfig, DogeForCausalLM
from small_doge.models.doge.accounting_doge import training_flops_per_token
from small_doge.ops.linear_cross_entropy import linear_cross_entropy
from small_doge.trainer.setup import compile_layers
from small_doge.trainer.step_graph import Inputs, StepGraph

LENGTH = 2048
PEAK = 989e12
"""Dense bf16 FLOP/s of an H100 SXM by its data sheet; MFU is printed for that card only."""
LINE = "{size:18s} {variant:26s} {metric:12s} {value:>14,} ({min:,}..{max:,})"


def check_head() -> dict[str, float]:
    """Relative errors of the loss and both gradients."""
    torch.manual_seed(0)
    hidden = torch.randn(3000, 256, device="cuda").requires_grad_()
    weight = (torch.randn(32768, 256, device="cuda") * 0.2).requires_grad_()
    labels = torch.randint(0, 32768, (3000,), device="cuda")
    labels[::7] = -100
    with torch.autocast("cuda", torch.bfloat16):
        loss = linear_cross_entropy(hidden, weight, labels, backend="triton")
    found = (loss, *torch.autograd.grad(loss, (hidden, weight)))
    exact = [x.detach().bfloat16().double().requires_grad_() for x in (hidden, weight)]
    loss = linear_cross_entropy(*exact, labels, backend="naive")
    expected = (loss, *torch.autograd.grad(loss, exact))
    return {
        name: float((f.detach() - e.detach()).norm() / e.detach().norm())
        for name, f, e in zip(("loss", "hidden", "weight"), found, expected, strict=True)
    }


def check_step(size: str) -> dict[str, float]:
    """Relative differences of loss and gradients of two compiled layers from the same ones uncompiled."""
    found = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = DogeForCausalLM(DogeConfig.from_size(size, num_hidden_layers=2)).cuda().train()
        if compiled:
            compile_layers(model)
        ids = torch.randint(0, 32768, (2, LENGTH), device="cuda")
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(input_ids=ids, labels=ids, use_cache=False, loss_only=True).loss
        loss.backward()
        layers = [parameter.grad.flatten() for parameter in model.model.layers.parameters()]
        found.append([loss.detach(), torch.cat(layers), model.lm_head.weight.grad])
    return {
        name: float((c - p).norm() / p.norm()) for name, p, c in zip(("loss", "layers", "head"), *found, strict=True)
    }


THEIR_ROWS = {"320M": 4}
"""Of transformers' step, which keeps so much that eight rows of the largest do not fit a card beside our graph."""

MIXTURE = {"is_moe": True, "num_experts": 1024, "num_experts_per_tok": 16}
BALANCED = MIXTURE | {"output_router_logits": True}


def our_step(size: str, batch: int, **fields: Any) -> Callable[[], None]:
    torch.manual_seed(0)
    model = DogeForCausalLM(DogeConfig.from_size(size, **fields)).cuda().train()
    compile_layers(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    ids = torch.randint(0, 32768, (batch, LENGTH), device="cuda")

    def micro_batch(inputs: Inputs) -> torch.Tensor:
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(**inputs, use_cache=False, loss_only=True).loss
        loss.backward()
        return loss.detach()

    graph = StepGraph(micro_batch, model.parameters())

    def step() -> None:
        graph({"input_ids": ids, "labels": ids})
        optimizer.step()
        optimizer.zero_grad()

    return step


def baseline_steps(path: str, size: str, batch: int, prototype: bool) -> dict[str, Callable[[], Callable[[], None]]]:
    """The variants of the baseline script that are worth a comparison, as makers of steps."""
    spec = spec_from_file_location("gpu_train", path)
    assert spec is not None and spec.loader is not None
    script = module_from_spec(spec)
    spec.loader.exec_module(script)
    from torch.nn.attention import SDPBackend

    makers = {"transformers sdpa": lambda: script.hf(size, "sdpa")(their_rows(size, batch), LENGTH)}
    if prototype:
        folded = script.augmented_attn(SDPBackend.FLASH_ATTENTION)
        makers["prototype, folded flash"] = lambda: script.fast(size, folded)(batch, LENGTH)
    return makers


def their_rows(size: str, batch: int) -> int:
    return min(batch, THEIR_ROWS.get(size, 8))


def seconds(step: Callable[[], None], steps: int) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(steps):
        step()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / steps


def time_size(size: str, batch: int, args: argparse.Namespace, table: Table) -> None:
    makers: dict[str, tuple[Callable[[], Callable[[], None]], int]] = {"ours": (lambda: our_step(size, batch), batch)}
    if args.mixture:
        makers["ours, 1024 experts, 16 a token"] = (lambda: our_step(size, batch, **MIXTURE), batch)
        makers["ours, the experts balanced"] = (lambda: our_step(size, batch, **BALANCED), batch)
    if args.baseline:
        for name, maker in baseline_steps(args.baseline, size, batch, size in args.prototype).items():
            makers[name] = (maker, their_rows(size, batch) if name.startswith("transformers") else batch)
    steps: dict[str, Callable[[], None]] = {}
    for name, (maker, _) in makers.items():
        torch.cuda.reset_peak_memory_stats()
        before, start = torch.cuda.memory_allocated(), time.perf_counter()
        try:
            step = maker()
            step()
            torch.cuda.synchronize()
            first = time.perf_counter() - start
        except Exception:
            print(f"FAILED {size} {name}: {traceback.format_exc()[-1500:]}", flush=True)
            continue
        steps[name] = step
        peak = (torch.cuda.max_memory_allocated() - before) / 2**30
        table.add(name, f"{size} B{batch} T{LENGTH}", "first step s", [first])
        table.add(name, f"{size} B{batch} T{LENGTH}", "peak GiB", [peak])
    for step in steps.values():
        seconds(step, 3)
    found: dict[str, list[float]] = {}
    for _ in range(args.rounds):
        for name, step in steps.items():
            tokens = makers[name][1] * LENGTH
            found.setdefault(name, []).append(tokens / seconds(step, args.steps))
    flops = training_flops_per_token(DogeConfig.from_size(size), LENGTH)
    for name, rates in found.items():
        shape = f"{size} B{makers[name][1]} T{LENGTH}"
        table.add(name, shape, "tokens/s", rates)
        if "experts" not in name and "H100" in torch.cuda.get_device_name():
            table.add(name, shape, "MFU", [rate * flops / PEAK for rate in rates])
    if args.profile:
        for name in steps:
            if name.startswith("ours"):
                show_profile(f"{size} {name}", steps[name])


def show_profile(size: str, step: Callable[[], None]) -> None:
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA], acc_events=True) as trace:
        for _ in range(3):
            step()
        torch.cuda.synchronize()
    events = [e for e in trace.key_averages() if str(e.device_type).endswith("CUDA")]
    total = sum(e.self_device_time_total for e in events) / 3
    print(f"\nprofile {size}: {total:.0f} microseconds a step on the device")
    for event in sorted(events, key=lambda e: -e.self_device_time_total)[:34]:
        print(f"  {event.self_device_time_total / 3:9.1f}  x{event.count / 3:g}  {event.key[:110]}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["20M", "60M", "160M", "320M"])
    parser.add_argument("--batches", nargs="+", type=int, default=[64, 32, 32, 16], help="rows a step, one a size")
    parser.add_argument(
        "--baseline", help="a script with other steps (its hf, fast and augmented_attn), to time beside ours"
    )
    parser.add_argument(
        "--prototype", nargs="*", default=["20M"], help="sizes whose prototype is timed (slow to compile)"
    )
    parser.add_argument(
        "--mixture", action="store_true", help="also time a mixture of the size, with and without its loss"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6, help="steps in a round")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("this benchmark needs a CUDA GPU")
    torch.set_float32_matmul_precision("high")
    table = Table("train_step", torch.cuda.get_device_name(), LINE)
    print(f"{table.device} torch {torch.__version__} commit {table.more['commit']}", flush=True)
    errors = check_head()
    print("fused head, relative errors:", {name: f"{error:.1e}" for name, error in errors.items()}, flush=True)
    if not all(error < 1e-2 for error in errors.values()):
        raise SystemExit("the fused head differs from its definition: nothing is timed")
    for size, batch in zip(args.sizes, args.batches, strict=True):
        errors = check_step(size)
        print(f"{size} compiled, relative differences:", {name: f"{e:.1e}" for name, e in errors.items()}, flush=True)
        if not all(error < 2e-2 for error in errors.values()):
            raise SystemExit("the compiled layers differ from the uncompiled ones: nothing is timed")
        time_size(size, batch, args, table)
        gc.collect()
        torch.cuda.empty_cache()
    path = save(table.rows, args.out, table.name, table.device)
    print(json.dumps({"rows": len(table.rows), "file": path.name}))


if __name__ == "__main__":
    main()
