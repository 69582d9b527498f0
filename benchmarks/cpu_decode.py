"""Generation speed of the native CPU core beside transformers fp32, interleaved in one process.

python benchmarks/cpu_decode.py --sizes 20M 60M --dtypes int8 bf16 fp32 --threads 1 2 --out results.json

Every round runs each variant once, so that noise of the machine falls on all alike; a row holds the median round and
its spread. The ceiling of a variant is the measured read bandwidth at its working set divided by its weight bytes.
On a machine that others use too, --cpu-time counts CPU seconds of one thread instead of wall seconds, and no ceiling.
The benchmark refuses to run where fp32 logits differ from transformers'. The last line printed is the rows as JSON.
"""

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rows import Table, finish
from transformers import DogeConfig, DogeForCausalLM

from small_doge.inference import native
from small_doge.inference.native import NativeModel
from small_doge.models.doge.configuration_doge import SIZES as FAMILY

SIZES = {name: size for name, size in FAMILY.items() if not size.experts}
PROMPT, PREFILL = 32, 512
timer = time.perf_counter


def random_checkpoint(size: str, folder: Path) -> DogeForCausalLM:
    row = SIZES[size]
    torch.manual_seed(0)
    config = DogeConfig(
        vocab_size=32768,
        hidden_size=row.width,
        intermediate_size=row.intermediate,
        num_hidden_layers=row.layers,
        num_attention_heads=row.heads,
        num_key_value_heads=row.key_value_heads,
        tie_word_embeddings=True,
        attn_implementation="eager",
    )
    model = DogeForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith(".A"):
            torch.nn.init.normal_(parameter)
    model.save_pretrained(folder)
    return model


def prompts(batch: int, length: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randperm(32768, generator=generator)[:length].tolist() for _ in range(batch)]


@torch.no_grad()
def transformers_decode(model: DogeForCausalLM, threads: int, batch: int, new_tokens: int) -> float:
    torch.set_num_threads(threads)
    ids = torch.tensor(prompts(batch, PROMPT))
    start = timer()
    model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, do_sample=False, pad_token_id=0)
    return batch * new_tokens / (timer() - start)


@torch.no_grad()
def transformers_prefill(model: DogeForCausalLM, threads: int) -> float:
    torch.set_num_threads(threads)
    ids = torch.tensor(prompts(1, PREFILL))
    start = timer()
    model(ids, use_cache=True, logits_to_keep=1)
    return PREFILL / (timer() - start)


def native_decode(core: NativeModel, batch: int, new_tokens: int) -> float:
    """tokens/s from the prompt on, as transformers' generate is timed: prefill included."""
    session, ids = core.new_session(batch), prompts(batch, PROMPT)
    start = timer()
    session.prefill(ids)
    session.decode(new_tokens)
    return batch * new_tokens / (timer() - start)


def native_prefill(core: NativeModel) -> float:
    session, ids = core.new_session(), prompts(1, PREFILL)
    start = timer()
    session.prefill(ids)
    return PREFILL / (timer() - start)


def refuse_if_wrong(model: DogeForCausalLM, folder: Path) -> None:
    tokens = prompts(1, 64)
    with torch.no_grad():
        expected = model(torch.tensor(tokens)).logits[0].numpy()
    got = NativeModel.load(folder, "fp32").new_session().prefill(tokens, all_positions=True)[0]
    if np.abs(got - expected).max() > 1e-4:
        sys.exit("fp32 logits differ from transformers'; mend the core before timing it")


def device_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return f"{line.split(':', 1)[1].strip()}, {os.cpu_count()} cores, {native.available_isas()[0]}"
    return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"


LINE = "{size:5} {variant:30} {metric:24} {value:12{digits}}  [{min:{digits}}, {max:{digits}}]"


def new_table(name: str) -> Table:
    """The rows of a benchmark of the native core, printed as they come."""
    return Table(name, device_name(), LINE, ".3f")


def interleave(variants: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    for run in variants.values():
        run()
    rates: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, run in variants.items():
            time.sleep(0.3)  # until the threads of the runtime before have stopped spinning
            rates[name].append(run())
    return rates


def measure(args: argparse.Namespace, size: str, table: Table, folder: Path) -> None:
    model = random_checkpoint(size, folder)
    refuse_if_wrong(model, folder)
    for threads in args.threads:
        cores: dict[str, NativeModel] = {}
        for dtype in args.dtypes:
            start = timer()
            cores[dtype] = NativeModel.load(folder, dtype, threads, args.isa)
            table.add(f"{dtype}, {threads} threads", size, "load seconds", [timer() - start])
            table.add(f"{dtype}, {threads} threads", size, "weight MB", [cores[dtype].weight_bytes / 1e6])
        for batch in args.batch:
            base = f"transformers fp32, {threads} threads"
            runs = {base: lambda t=threads, b=batch: transformers_decode(model, t, b, args.tokens)}
            for dtype, core in cores.items():
                runs[f"{dtype}, {threads} threads"] = lambda c=core, b=batch: native_decode(c, b, args.tokens)
            rates = interleave(runs, args.rounds)
            suffix = "" if batch == 1 else f", batch {batch}"
            for name, values in rates.items():
                rate = table.add(name, size, f"tokens/s{suffix}", values)["value"]
                if name == base:
                    continue
                paired = [a / b for a, b in zip(values, rates[base], strict=True)]
                table.add(name, size, f"times transformers{suffix}", paired)
                if batch == 1 and not args.cpu_time:
                    weight_bytes = cores[name.split(",")[0]].weight_bytes
                    read = native._core.read_bandwidth(weight_bytes, threads, 5)
                    table.add(name, size, "read GB/s", [r / 1e9 for r in read])
                    table.add(name, size, "share of ceiling", [rate * weight_bytes / statistics.median(read)])
        if args.prefill:
            base = f"transformers fp32, {threads} threads"
            runs = {base: lambda t=threads: transformers_prefill(model, t)}
            for dtype, core in cores.items():
                runs[f"{dtype}, {threads} threads"] = lambda c=core: native_prefill(c)
            rates = interleave(runs, args.rounds)
            for name, values in rates.items():
                table.add(name, size, "prefill tokens/s", values)
                if name != base:
                    paired = [a / b for a, b in zip(values, rates[base], strict=True)]
                    table.add(name, size, "prefill times transformers", paired)


def clock(parser: argparse.ArgumentParser, args: argparse.Namespace) -> Callable[[], float]:
    """By --cpu-time the processor's seconds, which tell the length of a run only of one thread; else the wall's."""
    if args.cpu_time and args.threads not in (1, [1]):
        parser.error("--cpu-time sums over threads: give --threads 1")
    return time.process_time if args.cpu_time else time.perf_counter


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["20M"])
    parser.add_argument("--dtypes", nargs="+", choices=native.DTYPES, default=["int8", "bf16", "fp32"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--batch", nargs="+", type=int, default=[1], help="sequences decoded together")
    parser.add_argument("--tokens", type=int, default=256, help="new tokens a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prefill", action="store_true", help="also time a prefill of 512 tokens")
    parser.add_argument("--cpu-time", action="store_true", help="count CPU seconds; with --threads 1")
    parser.add_argument("--isa", help="force an instruction set")
    parser.add_argument("--out", type=Path, help="also write the rows to this file")
    args = parser.parse_args()
    if not native.is_available():
        sys.exit(native.reason())
    global timer
    timer = clock(parser, args)
    table = new_table("cpu_decode")
    for size in args.sizes:
        with tempfile.TemporaryDirectory() as folder:
            measure(args, size, table, Path(folder))
    finish(table.rows, args.out)


if __name__ == "__main__":
    main()
