"""Generation speed of the GPU engine (`TorchSlots`) beside transformers' generate, on one GPU.

    PYTHONPATH=src python benchmarks/gpu_decode.py [--sizes 20M 320M] [--batches 1 8 64 512] [--tune] [--out DIR]

1. check: in worker processes, which also compile the kernels side by side. The log-probabilities that the engine
   reports are compared with a full forward of the model in fp32 over the tokens that it drew; in fp32 with a window of
   64 that evicts, and in bf16. A case whose check is red is not timed.
2. time: medians of several rounds; random weights, prompts of 32 distinct tokens, 256 greedy tokens, prefill included.
3. profile: the kernels of a decode step.

Rows go to DIR/gpu_decode_DEVICE_DATE.json (DIR: $OUT, else benchmarks/results). The last line printed is JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rows import RESULTS, Table, save

from small_doge import DogeConfig, DogeForCausalLM
from small_doge.inference import gpu_graphs
from small_doge.inference.sampling import SamplingParams
from small_doge.inference.torch_slots import TorchSlots

PROMPT, TOKENS, LONGEST = 32, 256, 512
TOLERANCE = {"float32": 1e-4, "bfloat16": 6e-2}
"""Of a log-probability, against fp32."""
LINE = "{size:5} {variant:34} {metric:28} {value:12,.1f}  [{min:,.1f}, {max:,.1f}]"


def random_model(size: str, dtype: torch.dtype, **fields: Any) -> DogeForCausalLM:
    """Seeded random weights, with scores that differ from key to key."""
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = DogeForCausalLM(DogeConfig.from_size(size, **fields)).eval()
    for layer in model.model.layers:
        torch.nn.init.normal_(layer.self_attn.A)
    return model.to(dtype)


def prompts(batch: int, length: int = PROMPT) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randperm(32768, generator=generator)[:length].tolist() for _ in range(batch)]


def check(size: str, batch: int, dtype: str, window: int, tokens: int, filtered: bool, overlap: bool) -> dict[str, Any]:
    """Largest error of the reported log-probabilities, and the share of tokens that a second session draws alike."""
    half = getattr(torch, dtype)
    model = random_model(size, half, keep_window_size=window)
    session = TorchSlots(model, batch, LONGEST)
    session.runner = type(session.runner)(session.weights, session.state, overlap=overlap)
    given = prompts(batch)
    how = [SamplingParams(temperature=1.0, seed=i, top_p=0.9 if filtered else 1.0) for i in range(batch)]
    how[0] = SamplingParams()
    rows = list(range(batch))
    session.prefill(given, rows)
    parts = [session.decode(n, how, [()] * batch, rows) for n in (tokens - 1, 1)]
    again = TorchSlots(model, batch, LONGEST)
    again.prefill(given, rows)
    second = again.decode(tokens - 1, how, [()] * batch, rows)
    repeats = float((second.tokens == parts[0].tokens).mean())
    del session, again
    reference = model.float()
    reference.set_attn_implementation("eager")
    worst = 0.0
    for row in range(min(batch, 4)):
        drawn = [int(t) for part in parts for t in part.tokens[row]]
        said = torch.tensor([float(x) for part in parts for x in part.logprobs[row]], device="cuda")
        ids = torch.tensor([given[row] + drawn], device="cuda")
        with torch.no_grad():
            logits = reference(input_ids=ids, use_cache=False).logits[0, PROMPT - 1 : -1].float()
        expected = logits.log_softmax(-1).gather(-1, ids[0, PROMPT:, None])[:, 0]
        worst = max(worst, float((expected - said).abs().max()))
    return {"log-prob error": worst, "same when repeated": repeats, "good": worst < TOLERANCE[dtype] and repeats == 1}


def run_checks(jobs: list[list[Any]]) -> None:
    """A worker: one JSON line a job, whatever happens in it."""
    for job in jobs:
        started = time.monotonic()
        try:
            found = check(*job)
        except Exception:
            found = {"good": False, "note": traceback.format_exc()[-2500:]}
        found["seconds"] = round(time.monotonic() - started, 1)
        print(json.dumps(found), flush=True)


def section_check(args: argparse.Namespace, deadline: float) -> set[tuple[str, int]]:
    """Run the checks in processes of their own; returns the (size, batch) that are red."""
    jobs = [[size, batch, "bfloat16", 2048, 12, batch == 64, False] for size in args.sizes for batch in args.batches]
    jobs += [["20M", batch, "float32", 64, 48, batch == 8, False] for batch in args.batches if batch <= 64]
    jobs += [["20M", 1, "float32", 64, 48, True, True]]
    workers = [
        subprocess.Popen(
            [sys.executable, __file__, "--worker", json.dumps([job])],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for job in jobs
    ]
    red = set()
    for job, worker in zip(jobs, workers, strict=True):
        try:
            stdout, stderr = worker.communicate(timeout=max(1.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.kill()
            stdout, stderr = worker.communicate()
        lines = [json.loads(line) for line in stdout.splitlines() if line.startswith("{")]
        found = lines[0] if lines else {"good": False, "note": f"no answer in time: {stderr[-1500:]}"}
        note = found.pop("note", "")
        print(f"{'PASS' if found['good'] else 'FAIL'} {job}: {json.dumps(found)} {note}", flush=True)
        if not found["good"]:
            red.add((job[0], job[1]))
    return red


def seconds(call: Callable[[], Any]) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def time_slots(table: Table, model: DogeForCausalLM, size: str, batch: int, rounds: int, deadline: float) -> None:
    variants: dict[str, tuple[dict[str, Any], SamplingParams]] = {
        "slots greedy": ({}, SamplingParams()),
        "slots temperature 1": ({}, SamplingParams(temperature=1.0, seed=1)),
    }
    if batch in (1, 64):
        variants["slots top-k 50, top-p 0.9"] = ({}, SamplingParams(temperature=1.0, top_k=50, top_p=0.9, seed=1))
    if batch <= 8:
        variants["slots greedy, cuBLAS"] = ({"matvec_lanes": 0}, SamplingParams())
        variants["slots greedy, matrix-vector"] = ({"matvec_lanes": batch}, SamplingParams())
    if batch == 1:
        variants["slots greedy, kernels one after another"] = ({"overlap": False}, SamplingParams())
    rows, given = list(range(batch)), prompts(batch)
    for name, (options, how) in variants.items():
        if time.monotonic() > deadline:
            print(f"not timed, no time left: {size} {batch} {name}")
            continue
        session = TorchSlots(model, batch, LONGEST)
        if options:
            session.runner = type(session.runner)(session.weights, session.state, **options)
        decoding: list[float] = []

        def generate(session: TorchSlots = session, how: SamplingParams = how, kept: list[float] = decoding) -> None:
            session.reset(rows)
            session.extend(given, rows)
            kept.append(seconds(lambda: session.decode(TOKENS, [how] * batch, [()] * batch, rows)))

        first = seconds(generate)
        decoding.clear()
        whole = [seconds(generate) for _ in range(rounds)]
        table.add(name, size, f"tokens/s, batch {batch}", [batch * TOKENS / s for s in whole])
        table.add(name, size, f"decode step us, batch {batch}", [1e6 * s / TOKENS for s in decoding])
        print(f"      first call {first:.1f} s, {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB at the most")


@torch.no_grad()
def time_transformers(table: Table, size: str, batch: int, rounds: int, tokens: int) -> None:
    from transformers.models.doge import DogeConfig as TheirConfig
    from transformers.models.doge import DogeForCausalLM as TheirModel

    ours = DogeConfig.from_size(size)
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    fields = {name: getattr(ours, name) for name in (*names, "num_key_value_heads", "tie_word_embeddings")}
    with torch.device("cuda"):
        model = TheirModel(TheirConfig(**fields, attn_implementation="eager")).to(torch.bfloat16).eval()
    ids = torch.tensor(prompts(batch), device="cuda")

    def generate() -> None:
        model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False,
            pad_token_id=0,
        )  # fmt: skip

    seconds(generate)
    table.add("transformers generate", size, f"tokens/s, batch {batch}", [
        batch * tokens / seconds(generate) for _ in range(rounds)
    ])  # fmt: skip


def profile_step(model: DogeForCausalLM, size: str, batch: int) -> None:
    """Kernel by kernel, the decode steps of 16 tokens."""
    from torch.profiler import ProfilerActivity, profile

    session = TorchSlots(model, batch, LONGEST)
    rows = list(range(batch))
    session.extend(prompts(batch, 128), rows)
    settings = ([SamplingParams()] * batch, [()] * batch, rows)
    session.decode(17, *settings)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as trace:
        session.decode(16, *settings)
        torch.cuda.synchronize()
    events = [e for e in trace.key_averages() if str(e.device_type).endswith("CUDA")]
    total = sum(e.self_device_time_total for e in events)
    print(f"\nprofile {size} batch {batch}: {total / 16:.1f} us of kernels a token")
    for event in sorted(events, key=lambda e: -e.self_device_time_total)[:16]:
        whole, each = event.self_device_time_total / 16, event.self_device_time_total / event.count
        print(f"  {whole:9.2f} us a token  x{event.count / 16:g}  {each:6.2f} us  {event.key[:80]}")


def tune_attention(table: Table, model: DogeForCausalLM, size: str, batch: int, deadline: float) -> None:
    """The step with other blocks, warps and stages of `attend_kernel` than those that the engine ships."""
    rows, settings = list(range(batch)), ([SamplingParams()] * batch, [()] * batch)
    shipped = gpu_graphs.ATTEND_WHOLE
    for tile in dict.fromkeys((shipped, (32, 4, 3), (32, 2, 3), (32, 4, 2), (64, 4, 2), (64, 2, 2), (16, 1, 3))):
        if time.monotonic() > deadline:
            return
        gpu_graphs.ATTEND_WHOLE = tile
        session = TorchSlots(model, batch, LONGEST)
        session.extend(prompts(batch, 192), rows)
        session.decode(17, *settings, rows)
        times = [1e6 * seconds(lambda s=session: s.decode(32, *settings, rows)) / 32 for _ in range(3)]
        table.add("attention " + " ".join(map(str, tile)), size, f"decode step us, batch {batch}, context 256", times)
    gpu_graphs.ATTEND_WHOLE = shipped


def attempt(name: str, call: Callable[[], Any]) -> None:
    """One section: a failure is printed, and the rest of the borrowed time is used."""
    try:
        call()
    except Exception:
        print(f"FAILED {name}\n{traceback.format_exc()[-3000:]}", flush=True)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["20M", "320M"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 64, 512])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=140, help="no new timing starts after this")
    parser.add_argument("--tune", action="store_true", help="also try other tiles of the attention kernel")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("this benchmark needs a CUDA GPU")
    if args.worker is not None:
        return run_checks(args.worker)
    table = Table("gpu_decode", torch.cuda.get_device_name(), LINE, ".3f")
    started = time.monotonic()
    deadline = started + args.seconds
    print(f"{table.device} torch {torch.__version__} commit {table.more['commit']}", flush=True)
    red = section_check(args, started + args.seconds * 0.5)
    print(f"checked after {time.monotonic() - started:.0f} s; red: {sorted(red) or 'none'}", flush=True)
    for size in args.sizes:
        model = random_model(size, torch.bfloat16)
        for batch in args.batches:
            if (size, batch) in red:
                print(f"not timed, its check failed: {size} batch {batch}")
                continue
            attempt(
                f"{size} {batch}", lambda m=model, s=size, b=batch: time_slots(table, m, s, b, args.rounds, deadline)
            )
        for batch in (args.batches[0], args.batches[-1]):
            attempt(f"profile {size} {batch}", lambda m=model, s=size, b=batch: profile_step(m, s, b))
        if args.tune and args.batches[-1] >= 64:
            tune = (table, model, size, args.batches[-1], deadline)
            attempt(f"attention {size}", lambda t=tune: tune_attention(*t))
        del model
    for size in args.sizes:
        for batch, tokens in ((1, 48), (64, 48)):
            if time.monotonic() < deadline:
                attempt(
                    f"transformers {size} {batch}",
                    lambda s=size, b=batch, n=tokens: time_transformers(table, s, b, 2, n),
                )
    path = save(table.rows, args.out, table.name, table.device)
    print(f"took {time.monotonic() - started:.0f} s; rows in {path}")
    print(json.dumps({"red": sorted(map(list, red)), "rows": len(table.rows), "file": path.name}))


if __name__ == "__main__":
    main()
