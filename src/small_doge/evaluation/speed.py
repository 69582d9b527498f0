"""Generation speed of a checkpoint or a size: prefill, decode, time to the first token, memory; the device by name."""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from small_doge.models.doge.configuration_doge import SIZES, DogeConfig
from small_doge.models.doge.modeling_doge import DogeForCausalLM
from small_doge.models.loading import load_checkpoint
from small_doge.utils.hardware import check_device, device_name

TORCH_DTYPES = ("float32", "bfloat16", "float16")
NATIVE_DTYPES = ("fp32", "bf16", "int8", "int4")

Round = dict[str, float]


def measure_speed(
    model: str,
    device: str,
    dtype: str = "float32",
    prompt: int = 512,
    new_tokens: int = 64,
    batch: int = 1,
    rounds: int = 5,
) -> list[dict[str, Any]]:
    """Rows of the benchmarks' schema: tokens/s of prefill and decode, milliseconds to the first token, MiB of memory.

    Args:
        model: A checkpoint, or a named size with random weights.
        dtype: `float32`, `bfloat16` or `float16` run through torch; `fp32`, `bf16`, `int8` and `int4` through the
            native core, on a CPU.
        prompt, new_tokens, batch: Tokens of each prompt (different ones), tokens generated after it, sequences at once.
        rounds: Measured rounds, after one that is not; the median is the value.

    Raises:
        ValueError: an unknown dtype or device, numbers below their least, or the native core elsewhere than on a CPU.
    """
    if dtype not in (*TORCH_DTYPES, *NATIVE_DTYPES):
        raise ValueError(f"dtype is {dtype!r}: choose one of {', '.join((*TORCH_DTYPES, *NATIVE_DTYPES))}.")
    if min(prompt, batch, rounds) < 1 or new_tokens < 2:
        raise ValueError("prompt, batch and rounds must be at least 1, and new_tokens at least 2.")
    if dtype in NATIVE_DTYPES and not device.startswith("cpu"):
        raise ValueError(f"dtype {dtype} is the native core's, which runs on a CPU: pass --device cpu.")
    check_device(device)
    generator = torch.Generator().manual_seed(0)
    make = native_runner if dtype in NATIVE_DTYPES else torch_runner
    with make(model, device, dtype) as (run, vocab_size, memory):
        prompts = torch.randint(vocab_size, (batch, prompt), generator=generator)
        run(prompts, new_tokens)
        found = [run(prompts, new_tokens) for _ in range(rounds)]
        bytes_used = memory()
    measured = {
        "prefill tokens/s": [batch * prompt / r["prefill"] for r in found],
        "decode tokens/s": [batch * (new_tokens - 1) / r["decode"] for r in found],
        "milliseconds to the first token": [1000 * r["prefill"] for r in found],
        "peak memory, MiB": [bytes_used / 2**20],
    }
    where = device_name(device)
    if device.startswith("cpu"):
        where += f", {torch.get_num_threads()} threads"
    shared = {
        "name": "eval speed",
        "variant": f"{dtype}, batch {batch}, prompt {prompt}, {new_tokens} new tokens",
        "size": model,
        "device": where,
        "command": " ".join(["small-doge", *sys.argv[1:]]),
        "commit": commit(),
    }
    return [
        {
            **shared,
            "metric": metric,
            "value": statistics.median(values),
            "n": len(values),
            "min": min(values),
            "max": max(values),
        }
        for metric, values in measured.items()
    ]


def make_model(model: str, dtype: torch.dtype) -> Any:
    """A checkpoint, or a named size with random weights."""
    if model.removeprefix("Doge-") not in SIZES:
        return load_checkpoint(model, dtype)
    torch.manual_seed(0)
    made = DogeForCausalLM(DogeConfig.from_size(model))
    for layer in made.model.layers:
        # At 0 every score ties, which no trained model does.
        torch.nn.init.normal_(layer.self_attn.A)
    return torch.nn.Module.to(made, dtype)


@contextmanager
def torch_runner(model: str, device: str, dtype: str) -> Iterator[tuple[Callable, int, Callable[[], int]]]:
    """Prefill and greedy decoding with the model's own cache; yields the run, the vocabulary, and the bytes used."""
    loaded = make_model(model, getattr(torch, dtype)).to(device).eval()
    on_gpu = torch.device(device).type == "cuda"

    def wait() -> float:
        if on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter()

    @torch.inference_mode()
    def run(prompts: torch.Tensor, new_tokens: int) -> Round:
        ids = prompts.to(device)
        start = wait()
        outputs = loaded(input_ids=ids, use_cache=True, logits_to_keep=1)
        token = outputs.logits[:, -1].argmax(-1, keepdim=True)
        first = wait()
        for _ in range(new_tokens - 1):
            outputs = loaded(input_ids=token, past_key_values=outputs.past_key_values, use_cache=True, logits_to_keep=1)
            token = outputs.logits[:, -1].argmax(-1, keepdim=True)
        return {"prefill": first - start, "decode": wait() - first}

    def memory() -> int:
        return torch.cuda.max_memory_allocated() if on_gpu else peak_resident_bytes()

    yield run, loaded.config.vocab_size, memory


@contextmanager
def native_runner(model: str, device: str, dtype: str) -> Iterator[tuple[Callable, int, Callable[[], int]]]:
    """The same through the native core, which reads a checkpoint folder; a size is written to one first."""
    from small_doge.inference.native import NativeModel

    with tempfile.TemporaryDirectory() as folder:
        path = Path(model)
        if not path.exists():
            path = Path(folder)
            make_model(model, torch.float32).save_pretrained(path)
        core = NativeModel.load(path, dtype)

        def run(prompts: torch.Tensor, new_tokens: int) -> Round:
            session = core.new_session(len(prompts))
            start = time.perf_counter()
            session.prefill(prompts.tolist())
            session.decode(1)
            first = time.perf_counter()
            session.decode(new_tokens - 1)
            return {"prefill": first - start, "decode": time.perf_counter() - first}

        yield run, core.shape.vocab, peak_resident_bytes


def peak_resident_bytes() -> int:
    """Most memory that this process ever held; Linux counts it in KiB, macOS in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def commit() -> str:
    """The commit of the source, or "unknown" outside a checkout."""
    found = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True
    )
    return found.stdout.strip() or "unknown"
