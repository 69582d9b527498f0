"""Dynamic mask attention on one GPU: every backend checked against the definition, then timed beside what others run.

    python benchmarks/attention.py [--quick] [--seconds 220] [--rounds 5] [--workers N] [--out DIR]

1. check: outputs and all four gradients of each backend against `naive` in fp64, uninitialized memory filled with NaN.
   Worker processes share the cases, so that kernels compile side by side.
2. time: forward and forward + backward, variants interleaved, medians of several rounds. A backend that failed a check
   is not timed.
3. profile: where the time of one step goes, kernel by kernel.

Rows go to DIR/attention_DEVICE_DATE.json (DIR: $OUT, else benchmarks/results). The last line printed is JSON.
"""

import argparse
import json
import os
import subprocess
import sys
import time
import traceback
from functools import partial
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from rows import RESULTS, ROOT, Row, Table, save
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from triton.testing import do_bench

DEVICE = "cuda"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
STEPS = 5
"""Of a profile."""
TOLERANCE = {"fp32": 2e-4, "bf16": 2e-2, "fp16": 4e-3}
"""Of |x - reference| / |reference|."""


def load_ops():
    """The ops alone, which need torch and nothing else: the package's front door imports the models."""
    if "small_doge" not in sys.modules:
        spec = ModuleSpec("small_doge", None, is_package=True)
        spec.submodule_search_locations = [str(ROOT / "src" / "small_doge")]
        sys.modules["small_doge"] = module_from_spec(spec)
    return import_module("small_doge.ops.dynamic_mask_attention")


dma = load_ops()


class Case(NamedTuple):
    """One problem; `backend` and `dtype` are used by the checks."""

    backend: str = ""
    dtype: str = "bf16"
    B: int = 2
    H: int = 4
    G: int = 2
    T: int = 384
    S: int = 384
    D: int = 128
    w: int = 96
    rows: str = "plain"
    scores: str = "random"

    def __str__(self) -> str:
        return " ".join(f"{k}={v}" for k, v in self._asdict().items() if k != "backend")


def check_cases(quick: bool) -> list[Case]:
    """Small enough for the T x S definition in fp64."""
    kernels = ("triton_causal", "triton_sparse")
    cases = [Case(b) for b in (*kernels, "blocked", "flex")]
    cases += [Case(b, w=384) for b in ("triton_causal", "sdpa", "flex")]
    cases += [Case(b, rows="packed") for b in kernels]
    cases += [Case("triton_causal", rows="packed", w=384)]
    cases += [Case(b, T=101, S=389, w=70) for b in kernels]
    cases += [Case(b, "fp32") for b in kernels]
    cases += [Case("triton_causal", "fp32", w=384)]
    if not quick:
        cases += [Case(b, rows="padded", T=333, S=333, w=50) for b in (*kernels, "blocked", "flex")]
        cases += [Case(b, scores=s) for b in kernels for s in ("ties", "rising", "falling")]
        cases += [Case(b, T=1) for b in kernels]
        cases += [Case(b, T=3000, S=3000, w=512, B=1) for b in kernels]
        cases += [Case(b, T=4096, S=4096, w=2048, B=1, H=2, G=1) for b in kernels]
        cases += [Case(b, D=64, H=2) for b in kernels]
        cases += [Case(b, D=96, H=6, rows="packed") for b in kernels]
        cases += [Case(b, D=32, H=8, G=1) for b in kernels]
        cases += [Case(b, D=256, H=2, G=1) for b in kernels]
        cases += [Case(b, "fp16") for b in kernels]
        cases += [Case("triton_causal", "fp16", D=64, w=384, T=77, S=333)]
    return cases


def make_inputs(c: Case, dtype: torch.dtype) -> tuple[list[torch.Tensor], torch.Tensor | None]:
    """Queries, keys, values and scores in the layout that a model gives them ([B, T, H, D] seen as [B, H, T, D])."""
    torch.manual_seed(0)
    query = torch.randn(c.B, c.T, c.H, c.D, device=DEVICE).transpose(1, 2).to(dtype)
    key, value = (torch.randn(c.B, c.S, c.G, c.D, device=DEVICE).transpose(1, 2).to(dtype) for _ in range(2))
    score = torch.rand(c.B, c.S, c.G, device=DEVICE).mul(2).exp()
    if c.scores == "ties":
        score = score.mul(2).round().div(2)
    elif c.scores in ("rising", "falling"):
        score = score.sort(1, descending=c.scores == "falling").values
    limit = None
    if c.rows != "plain":
        limit = torch.full((c.B, c.S), c.S, device=DEVICE)
    if c.rows == "packed":
        for stop in (int(c.S * part) for part in (0.8, 0.37, 0.3, 0.1)):
            limit[:, :stop] = stop
    if c.rows == "padded":
        limit[0, :40] = 0
        limit[-1, -17:] = 0
    return [x.requires_grad_() for x in (query, key, value, score.transpose(1, 2))], limit


def check(c: Case) -> dict[str, float]:
    """Relative errors of the output and the four gradients."""
    inputs, limit = make_inputs(c, DTYPES[c.dtype])
    exact = [x.detach().double().requires_grad_() for x in inputs]
    grad = torch.randn_like(inputs[0])
    options = {"keep_window": c.w, "limit_BS": limit}
    out = dma.dynamic_mask_attention(*inputs, **options, backend=c.backend)
    found = (out, *torch.autograd.grad(out, inputs, grad))
    out = dma.dynamic_mask_attention(*exact, **options, backend="naive")
    reference = (out, *torch.autograd.grad(out, exact, grad.double()))
    names = ("out", "query", "key", "value", "score")
    return {n: float((f - r).norm() / r.norm()) for n, f, r in zip(names, found, reference, strict=True)}


def check_retention() -> list[str]:
    """The GPU's horizons against the CPU's, at lengths that the definition does not reach."""
    lines = []
    for keys, window, rows in ((5000, 700, "packed"), (32768, 2048, "plain"), (40001, 1, "plain")):
        for scores in ("random", "ties", "rising", "falling"):
            c = Case(H=1, T=1, S=keys, D=1, w=window, rows=rows, scores=scores)
            (_, _, _, score), limit = make_inputs(c, torch.float32)
            found = dma.retention_horizon(score, window, limit)
            expected = dma.retention_horizon(score.cpu(), window, None if limit is None else limit.cpu())
            lines.append(f"{'PASS' if torch.equal(found.cpu(), expected) else 'FAIL'} retention {c}")
    return lines


def run_cases(cases: list[Case]) -> None:
    """A worker: one JSON line a case, whatever happens in it."""
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    for c in cases:
        try:
            errors = check(c)
            good = all(error < TOLERANCE[c.dtype] for error in errors.values())
            note = " ".join(f"{name} {error:.1e}" for name, error in errors.items())
        except Exception as problem:
            good = False
            last = traceback.extract_tb(problem.__traceback__)[-1]
            note = f"{type(problem).__name__} at {Path(last.filename).name}:{last.lineno}: {str(problem)[-600:]}"
        torch.cuda.empty_cache()
        print(json.dumps({"good": good, "note": note}), flush=True)


def section_check(args, deadline: float) -> set[str]:
    """Run all cases in worker processes; returns the backends that failed one."""
    cases = check_cases(args.quick)
    shares = [cases[i :: args.workers] for i in range(args.workers)]
    red = set()
    for c, answer in in_processes(__file__, shares, deadline):
        good = answer is not None and answer["good"]
        print(f"{'PASS' if good else 'FAIL'} {c.backend} {c}: {answer['note'] if answer else 'no answer in time'}")
        if not good:
            red.add(c.backend)
    try:
        lines = check_retention()
    except Exception:
        lines = [f"FAIL retention {traceback.format_exc()[-800:]}"]
    print("\n".join(lines), flush=True)
    if any(line.startswith("FAIL") for line in lines):
        red |= {"triton_sparse", "flex", "retention"}
    return red


def in_processes(script: str, shares: list[list], deadline: float) -> list[tuple]:
    """Each share of the jobs in a process of its own: every job with its JSON answer, or None if none came."""
    workers = [
        subprocess.Popen(
            [sys.executable, script, "--worker", json.dumps(share)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"TORCHINDUCTOR_COMPILE_THREADS": "1"},
        )
        for share in shares
    ]
    answers = []
    for worker, share in zip(workers, shares, strict=True):
        try:
            stdout, stderr = worker.communicate(timeout=max(1.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.kill()
            stdout, stderr = worker.communicate()
        found = [json.loads(line) for line in stdout.splitlines() if line.startswith("{")]
        if len(found) < len(share):
            print(f"a worker stopped early: {stderr[-800:]}")
        answers += zip(share, [*found, *[None] * (len(share) - len(found))], strict=True)
    return answers


SHORT = Case(B=32, H=2, G=1, T=2048, S=2048, w=2048)
LONG = Case(B=1, H=8, G=4, T=32768, S=32768, w=2048)
GOALS = {"B32 h2 g1 T2048 w2048": SHORT, "B1 h8 g4 T32768 w2048": LONG}
SIZES = GOALS | {
    "B8 h8 g4 T2048 w2048": SHORT._replace(B=8, H=8, G=4),
    "B32 h2 g1 T2048 w2048 packed": SHORT._replace(rows="packed"),
    "B1 h8 g4 T32768 w2048 rising": LONG._replace(scores="rising"),
    "B1 h8 g4 T8192 w2048": LONG._replace(T=8192, S=8192),
}


def plain_causal(fused: SDPBackend):
    def call(query, key, value, score, c: Case, limit):
        with sdpa_kernel(fused):
            return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)

    return call


def ours(backend: str):
    def call(query, key, value, score, c: Case, limit):
        return dma.dynamic_mask_attention(query, key, value, score, keep_window=c.w, limit_BS=limit, backend=backend)

    return call


def variants(c: Case) -> dict[str, tuple]:
    """name -> (function, the backend whose checks it depends on)."""
    found: dict[str, tuple] = {"cudnn causal, no score": (plain_causal(SDPBackend.CUDNN_ATTENTION), None)}
    names = ["triton_causal"] if c.w >= c.S else ["triton_sparse"]
    if c.w >= c.S and c.rows == "plain":
        found["flash2 causal, no score"] = (plain_causal(SDPBackend.FLASH_ATTENTION), None)
        names.append("sdpa")
    if c.w < c.S <= 8192:
        names.append("triton_causal")
    if c in GOALS.values():
        # It compiles for each shape anew, half a minute: only where there is a goal.
        names.append("flex")
    return found | {name: (ours(name), name) for name in names}


def section_time(args, table: Table, red: set[str], deadline: float) -> None:
    for size, c in (GOALS if args.quick else SIZES).items():
        found = time_size(size, c, args, table, red, deadline)
        print(f"\n{size}")
        for name in dict.fromkeys(r["variant"] for r in found):
            mine = [r for r in found if r["variant"] == name]
            parts = [f"{r['metric']} {r['value']:.3f} ({r['min']:.3f}..{r['max']:.3f}, n={r['n']})" for r in mine]
            print(f"  {name:26s} {' | '.join(parts)}", flush=True)
        torch.cuda.empty_cache()


def time_size(size: str, c: Case, args, table: Table, red: set[str], deadline: float) -> list[Row]:
    inputs, limit = make_inputs(c, torch.bfloat16)
    grad = torch.randn_like(inputs[0])

    def forward(function):
        return function(*inputs, c, limit)

    def both(function):
        return torch.autograd.grad(forward(function), inputs, grad, allow_unused=True)

    calls, memory = {}, {}
    for name, (function, backend) in variants(c).items():
        if backend in red or time.monotonic() > deadline:
            print(f"not timed, {'its check failed' if backend in red else 'no time left'}: {size} {name}")
            continue
        try:
            both(function)
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            both(function)
            memory[name, "peak MiB"] = [(torch.cuda.max_memory_allocated() - before) / 2**20]
        except Exception as problem:
            print(f"FAILED {size} {name}: {type(problem).__name__}: {str(problem)[-400:]}")
            continue
        calls[name, "forward ms"] = partial(milliseconds, partial(forward, function))
        calls[name, "forward+backward ms"] = partial(milliseconds, partial(both, function))
        if c in GOALS.values():
            calls[name, "forward+backward, the GPU's own ms"] = partial(gpu_milliseconds, partial(both, function))
    if c.w < c.S and "retention" not in red:
        horizon = partial(dma.retention_horizon, inputs[3].detach(), c.w, limit)
        calls["retention_horizon alone", "forward ms"] = partial(milliseconds, horizon)
    found: dict[tuple[str, str], list[float]] = {}
    for _ in range(args.rounds):
        for key, measure in calls.items():
            if time.monotonic() < deadline:
                found.setdefault(key, []).append(measure())
    return [table.add(name, size, metric, values) for (name, metric), values in (found | memory).items()]


def milliseconds(call) -> float:
    """The median of one round, the L2 cache cleared before each launch."""
    return do_bench(call, warmup=5, rep=25, return_mode="median")


def gpu_milliseconds(call) -> float:
    """What its kernels take, without waiting for the host to launch them: what counts where the host runs ahead."""
    return sum(event.self_device_time_total for event in kernels(call)) / STEPS / 1e3


def section_profile(red: set[str], deadline: float) -> None:
    """Kernel by kernel, one step of our two kernels at the two goals."""
    for (size, c), backend in zip(GOALS.items(), ("triton_causal", "triton_sparse"), strict=True):
        if backend in red or time.monotonic() > deadline:
            print(f"not profiled: {backend}")
            continue
        found = profile_step(c, backend)
        print(f"\nprofile {backend} {size}: microseconds a step on the device")
        for event in found[:24]:
            line = f"  {event.self_device_time_total / STEPS:9.1f}  x{event.count / STEPS:g}  {event.key[:90]}"
            print(line, flush=True)


def profile_step(c: Case, backend: str) -> list:
    inputs, limit = make_inputs(c, torch.bfloat16)
    grad = torch.randn_like(inputs[0])

    def step():
        torch.autograd.grad(ours(backend)(*inputs, c, limit), inputs, grad)

    return sorted(kernels(step), key=lambda event: -event.self_device_time_total)


def kernels(call) -> list:
    """The profiler's events of STEPS calls."""
    call()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as trace:
        for _ in range(STEPS):
            call()
        torch.cuda.synchronize()
    # Kernels only: an operator's own line would count its kernels a second time.
    return [event for event in trace.key_averages() if str(event.device_type).endswith("CUDA")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer cases and only the two sizes that have goals")
    parser.add_argument("--seconds", type=float, default=220, help="no new timing starts after this")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds of every variant")
    parser.add_argument("--workers", type=int, default=max(1, min(14, (os.cpu_count() or 1) - 2)))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker is not None:
        return run_cases([Case(*case) for case in args.worker])
    if not torch.cuda.is_available():
        raise SystemExit("this benchmark needs a CUDA GPU")
    table = Table("attention", torch.cuda.get_device_name())
    started = time.monotonic()
    print(f"{table.device} torch {torch.__version__} commit {table.more['commit']}", flush=True)
    red = section_check(args, started + args.seconds * 0.5)
    print(f"checked after {time.monotonic() - started:.0f} s; red: {sorted(red) or 'none'}", flush=True)
    section_time(args, table, red, started + args.seconds)
    section_profile(red, started + args.seconds + 10)
    path = save(table.rows, args.out, table.name, table.device)
    print(f"took {time.monotonic() - started:.0f} s; rows in {path}")
    print(json.dumps({"red": sorted(red), "rows": len(table.rows), "file": path.name}))


if __name__ == "__main__":
    main()
