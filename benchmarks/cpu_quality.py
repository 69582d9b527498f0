"""What each weight type of the native CPU core costs in quality: bits per byte of held-out text.

python benchmarks/cpu_quality.py CHECKPOINT TEXT [--kilobytes 100] [--length 512] [--out results.json]

TEXT is anything that `small-doge data show` reads. The text is cut into windows of --length tokens; every token but a
window's first is predicted. Where a model does not fit a text, the errors of its weights may lower the loss as well as
raise it, so the divergence is measured too: KL(fp32, the other) over the same tokens, in percent of fp32's bits. The
last line printed is the rows as JSON.
"""

import argparse
import math
from pathlib import Path

import numpy as np
from cpu_decode import new_table
from rows import finish
from transformers import AutoTokenizer

from small_doge.evaluation.summary import read_up_to
from small_doge.inference.native import DTYPES, NativeModel


def log_probs(core: NativeModel, ids: list[int]) -> np.ndarray:
    """Natural log-probabilities [T - 1, V] of what follows each token of a window but the last."""
    logits = np.asarray(core.new_session().prefill([ids], all_positions=True)[0][:-1], np.float64)
    logits -= logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("text")
    parser.add_argument("--kilobytes", type=float, default=100.0)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--out", type=Path, help="also write the rows to this file")
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(args.checkpoint)
    windows = []
    text_bytes = 0
    for text in read_up_to(args.text, args.kilobytes / 1000):
        ids = tokenizer(text[: int(args.kilobytes * 1000)], add_special_tokens=False)["input_ids"]
        for start in range(0, len(ids), args.length):
            window = ids[start : start + args.length]
            if len(window) > 1:
                windows.append(window)
                text_bytes += len(tokenizer.decode(window[1:]).encode())
    table = new_table("cpu_quality")
    cores = {dtype: NativeModel.load(args.checkpoint, dtype) for dtype in DTYPES}
    nats, divergence = dict.fromkeys(cores, 0.0), dict.fromkeys(cores, 0.0)
    for ids in windows:
        exact = log_probs(cores["fp32"], ids)
        for dtype, core in cores.items():
            got = log_probs(core, ids)
            nats[dtype] -= got[np.arange(len(ids) - 1), ids[1:]].sum()
            divergence[dtype] += (np.exp(exact) * (exact - got)).sum()
    per_byte = math.log(2) * text_bytes
    for dtype in cores:
        table.add(dtype, args.checkpoint.name, "bits per byte", [nats[dtype] / per_byte], digits=".5f")
        above = 100 * (nats[dtype] / nats["fp32"] - 1)
        table.add(dtype, args.checkpoint.name, "percent above fp32", [above], digits=".4f")
        apart = 100 * divergence[dtype] / nats["fp32"]
        table.add(dtype, args.checkpoint.name, "divergence in percent of fp32", [apart], digits=".4f")
    finish(table.rows, args.out)


if __name__ == "__main__":
    main()
