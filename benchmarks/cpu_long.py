"""A million tokens through the native CPU core: is the memory flat, and the speed, and is the cache still right?

python benchmarks/cpu_long.py [--size 20M] [--dtype int8] [--tokens 1000000] [--window 2048] [--out results.json]

Decodes with sampling at temperature 1; the figures are tokens/s and resident memory of each tenth. Then the same tokens
go through a fresh cache as one prefill, which must keep the same keys and so end with the same logits: the figure is
their largest difference. On a machine that others use too, --cpu-time counts CPU seconds of one thread. The last line
printed is the rows as JSON.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from cpu_decode import clock, new_table, random_checkpoint
from rows import finish

from small_doge.inference.native import NativeModel
from small_doge.inference.sampling import SamplingParams

PARTS = 10
CHUNK = 4096


def resident_bytes() -> int:
    """Memory that this process holds now (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="20M")
    parser.add_argument("--dtype", default="int8")
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--window", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cpu-time", action="store_true", help="count CPU seconds; with --threads 1")
    parser.add_argument("--out", type=Path, help="also write the rows to this file")
    args = parser.parse_args()
    timer = clock(parser, args)
    with tempfile.TemporaryDirectory() as folder:
        random_checkpoint(args.size, Path(folder))
        core = NativeModel.load(folder, args.dtype, args.threads)
    session = core.new_session(max_slots=args.window)
    session.prefill([[0]])
    how = [SamplingParams(temperature=1.0, seed=0)]
    table = new_table("cpu_long")
    rates, memory = [], []
    with tempfile.TemporaryFile() as drawn:  # not in memory, whose growth is measured
        np.save(drawn, session.decode(2 * args.window, how).tokens)  # from here on the cache is full
        for _ in range(PARTS):
            start = timer()
            tokens = session.decode(args.tokens // PARTS, how).tokens
            rates.append(args.tokens // PARTS / (timer() - start))
            np.save(drawn, tokens)
            memory.append(resident_bytes() / 1e6)
            print(f"{session.length(0):9} tokens, {rates[-1]:8.1f} tokens/s, {memory[-1]:.1f} MB", flush=True)
        drawn.seek(0)
        sequence = [0, *np.concatenate([np.load(drawn)[0] for _ in range(PARTS + 1)]).tolist()]
    decoded = session.step([0])
    sequence.append(0)
    start = timer()
    fresh = core.new_session(max_slots=args.window)
    for at in range(0, len(sequence), CHUNK):
        prefilled = fresh.prefill([sequence[at : at + CHUNK]])
    seconds = timer() - start
    variant = f"{args.dtype}, {args.threads} threads, w = {args.window}"
    table.add(variant, args.size, f"tokens/s of each tenth of {args.tokens}", rates)
    table.add(variant, args.size, "resident MB after each tenth", memory)
    table.add(variant, args.size, "prefill of all, tokens/s", [len(sequence) / seconds])
    table.add(variant, args.size, "largest difference of the last logits", [np.abs(prefilled - decoded).max()], ".6f")
    table.add(variant, args.size, "standard deviation of the last logits", [decoded.std()], ".6f")
    finish(table.rows, args.out)


if __name__ == "__main__":
    main()
