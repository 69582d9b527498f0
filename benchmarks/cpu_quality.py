"""What each weight type of the native CPU core costs in quality: bits per byte of held-out text.

python benchmarks/cpu_quality.py CHECKPOINT TEXT [--kilobytes 100] [--length 512] [--out results.json]

TEXT is anything that `small-doge data show` reads. The text is cut into windows of --length tokens; every token but a
window's first is predicted. The last line printed is the rows as JSON.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
from cpu_decode import Table
from transformers import AutoTokenizer

from small_doge.evaluation.summary import read_up_to
from small_doge.inference.native import DTYPES, NativeModel


def nats(core: NativeModel, windows: list[list[int]]) -> float:
    """Minus the log-likelihood of every token but each window's first."""
    session = core.new_session()
    total = 0.0
    for ids in windows:
        session.reset()
        logits = np.asarray(session.prefill([ids], all_positions=True)[0][:-1], np.float64)
        largest = logits.max(-1)
        log_sum = largest + np.log(np.exp(logits - largest[:, None]).sum(-1))
        total += float((log_sum - logits[np.arange(len(ids) - 1), ids[1:]]).sum())
    return total


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
    table = Table("cpu_quality")
    exact = 0.0
    for dtype in DTYPES:
        bits = nats(NativeModel.load(args.checkpoint, dtype), windows) / math.log(2) / text_bytes
        exact = exact or bits
        table.add(dtype, args.checkpoint.name, "bits per byte", [bits], digits=5)
        table.add(dtype, args.checkpoint.name, "percent above fp32", [100 * (bits / exact - 1)], digits=4)
    if args.out:
        args.out.write_text(json.dumps(table.rows, indent=1) + "\n")
    print(json.dumps(table.rows))


if __name__ == "__main__":
    main()
