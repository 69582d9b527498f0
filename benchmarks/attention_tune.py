"""Try tile shapes for the attention kernels at the two sizes that have goals; print the milliseconds of each.

    python benchmarks/attention_tune.py [--seconds 120] [--workers N] [--dtype bf16] [--head-size 128]

The winners are written by hand into `triton_attention.TILES`: fixed shapes keep a resumed run the same bits.
Worker processes compile all shapes first, on small copies; then one process times them.
"""

import argparse
import json
import os
import time
from functools import partial

import attention as bench
import torch

# rows, keys, warps, stages
SHAPES = {
    "forward": [
        (128, 64, 8, 2), (128, 64, 8, 3), (128, 64, 8, 4), (128, 128, 8, 2), (64, 64, 4, 2), (64, 64, 4, 3),
        (128, 32, 8, 4), (64, 128, 4, 2), (128, 64, 4, 3),
    ],
    "query": [
        (128, 64, 8, 2), (128, 64, 8, 3), (64, 64, 4, 2), (64, 64, 4, 3), (128, 32, 8, 3), (128, 128, 8, 1),
        (64, 32, 4, 3), (128, 128, 8, 2),
    ],
    "key": [
        (64, 128, 8, 2), (64, 128, 8, 3), (32, 128, 8, 3), (64, 64, 4, 2), (64, 64, 4, 3), (32, 64, 4, 3),
        (128, 64, 8, 2), (128, 128, 8, 2), (32, 128, 8, 4),
    ],
}  # fmt: skip


def run(kernel: str, tiles: list[int], c: bench.Case, timed: bool) -> float:
    """Milliseconds of one kernel, or 0 after a launch on a small copy that only compiles it."""
    from small_doge.ops.dynamic_mask_attention import triton_attention as ta

    if not timed:
        length = 512 if c.w >= c.S else 2 * c.w
        c = c._replace(B=1, T=length, S=length)
    (query, key, value, score), limit = bench.make_inputs(c, bench.DTYPES[c.dtype])
    ta.TILES[kernel, max(64, c.D), query.element_size()] = ta.Tiles(*tiles)
    lists, span = [None] * 7, 0
    if c.w < c.S:
        span = ta.choose_span(c.w)
        lists = ta.index_lists(bench.dma.retention_horizon(score, c.w, limit), c.T, c.w, span)
    end, reach, index, seen, slot, _, _ = lists
    scale = c.D**-0.5
    with torch.no_grad():
        forward = partial(ta._forward, query, key, value, score, *lists, scale, span)
        out, lse = forward()
        grad, delta, dq = torch.randn_like(query), torch.empty_like(lse), torch.empty_like(query)
        layout = ta._layout(query, key, end, reach, index, span)
        parts = [torch.empty_like(x) for x in (key, value, score)]
        if index is not None:
            parts = ta._slots(key, layout["spans"] * layout["length"])
        start = (layout, query, key, value, score, end)
        passes = {
            "forward": forward,
            "query": partial(ta.query_pass, *start, reach, index, seen, out, grad, lse, delta, dq, scale),
            "key": partial(ta.key_pass, *start, index, seen, slot, grad, lse, delta, parts, scale),
        }
        if kernel == "key":
            passes["query"]()
        passes[kernel]()
        torch.cuda.synchronize()
        return bench.milliseconds(passes[kernel]) if timed else 0.0


def compile_all(jobs: list[list]) -> None:
    """A worker: one JSON line a job."""
    for kernel, tiles, case in jobs:
        answer = {"good": True}
        try:
            run(kernel, tiles, bench.Case(*case), timed=False)
        except Exception as problem:
            answer = {"good": False, "note": f"{type(problem).__name__}: {str(problem)[-200:]}"}
        print(json.dumps(answer), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--workers", type=int, default=max(1, min(14, (os.cpu_count() or 1) - 2)))
    parser.add_argument("--dtype", choices=list(bench.DTYPES), default="bf16")
    parser.add_argument("--head-size", type=int, default=128)
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker is not None:
        return compile_all(args.worker)
    deadline = time.monotonic() + args.seconds
    goals = {size: c._replace(dtype=args.dtype, D=args.head_size) for size, c in bench.GOALS.items()}
    jobs = [(kernel, tiles, c) for c in goals.values() for kernel, shapes in SHAPES.items() for tiles in shapes]
    answers = bench.in_processes(__file__, [jobs[i :: args.workers] for i in range(args.workers)], deadline)
    good = []
    for job, answer in answers:
        if answer is not None and answer["good"]:
            good.append(job)
        else:
            print(f"not compiled: {job[:2]} {answer['note'] if answer else 'no answer in time'}")
    best = {}
    for size, c in goals.items():
        for kernel in SHAPES:
            found = []
            for job in good:
                if job[0] == kernel and job[2] == c and time.monotonic() < deadline:
                    try:
                        found.append((run(*job, timed=True), job[1]))
                    except Exception as problem:
                        print(f"not timed: {job[:2]} {type(problem).__name__}: {str(problem)[-200:]}")
            found.sort()
            best[f"{kernel} {size}"] = found
            print(f"{kernel:8s} {size}: {'  '.join(f'{tiles}={ms:.3f}' for ms, tiles in found)}", flush=True)
    print(json.dumps(best))


if __name__ == "__main__":
    main()
