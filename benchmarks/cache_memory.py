"""Memory of the cache while one sequence is decoded, token by token, far past the window.

python benchmarks/cache_memory.py --tokens 100000 --out benchmarks/results/cache_memory_cpu_DATE.json

A model of the named size with fewer layers, random weights and scores that differ decodes greedily with `DogeCache`.
For every thousand tokens a row holds the bytes of the cache's tensors and the resident memory of the process: the value
at the end, and the lowest and highest at any of the thousand. It refuses to run where the cache's logits differ from
those of the whole past. The last line printed is the rows as JSON.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import torch
from rows import Row, finish, origin

from small_doge import DogeCache, DogeConfig, DogeForCausalLM
from small_doge.utils.hardware import device_name

EVERY = 1000


def resident_bytes() -> int:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def random_model(size: str, layers: int, window: int) -> DogeForCausalLM:
    torch.manual_seed(0)
    config = DogeConfig.from_size(size, num_hidden_layers=layers, vocab_size=512, keep_window_size=window)
    model = DogeForCausalLM(config).eval()
    for layer in model.model.layers:
        torch.nn.init.normal_(layer.self_attn.A)
        torch.nn.init.normal_(layer.self_attn.dt_proj.weight, std=0.1)
    return model


def refuse_if_wrong(size: str, layers: int) -> None:
    """Compare 256 tokens decoded with a window of 32 with the forward that has the whole past."""
    model = random_model(size, layers, window=32).double()
    ids = torch.randint(512, (1, 256), generator=torch.Generator().manual_seed(1))
    cache = DogeCache(model.config)
    decoded = torch.cat([model(ids[:, i : i + 1], past_key_values=cache).logits for i in range(256)], 1)
    difference = (decoded - model(ids, use_cache=False).logits).abs().max().item()
    if difference > 1e-9:
        sys.exit(f"the cache's logits differ from those of the whole past by {difference}: nothing was measured.")


def decode(model: DogeForCausalLM, tokens: int) -> list[Row]:
    """Rows of a greedy decoding of one sequence from its first token."""
    cache = DogeCache(model.config)
    token = torch.zeros(1, 1, dtype=torch.long)
    rows: list[Row] = []
    measured: dict[str, list[int]] = {"cache bytes": [], "resident bytes": []}
    for count in range(1, tokens + 1):
        token = model(token, past_key_values=cache).logits.argmax(-1)
        measured["cache bytes"].append(cache.memory_bytes())
        measured["resident bytes"].append(resident_bytes())
        if count % EVERY == 0:
            for metric, values in measured.items():
                rows.append(
                    {
                        "metric": metric,
                        "tokens": count,
                        "value": values[-1],
                        "n": len(values),
                        "min": min(values),
                        "max": max(values),
                    }
                )
                values.clear()
    assert cache.slots == min(tokens, model.config.keep_window_size)
    return rows


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="20M", help="a size of the family, for width and heads")
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--window", type=int, default=2048, help="w, the slots of a key/value head")
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--out", type=Path, help="also write the rows to this file")
    args = parser.parse_args()
    refuse_if_wrong(args.size, args.layers)
    common = {
        "name": "cache memory",
        "variant": f"DogeCache, w = {args.window}, {args.layers} of the layers, fp32",
        "size": args.size,
        "device": device_name("cpu"),
        **origin(),
    }
    rows = [common | row for row in decode(random_model(args.size, args.layers, args.window), args.tokens)]
    finish(rows, args.out)


if __name__ == "__main__":
    main()
