"""What prompt look-up brings: decoding with guesses from the text so far, beside decoding without, interleaved.

python benchmarks/cpu_drafts.py CHECKPOINT CONVERSATIONS.jsonl [--prompts 40] [--tokens 128] [--out results.json]

Each line of CONVERSATIONS is `{"messages": [...]}`; the model answers the first message. Guesses change no token, so
all variants write the same answers. "tokens a step" counts how far one run through the layers gets. On a machine that
others use too, --cpu-time counts CPU seconds. The last line printed is the rows as JSON.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
from cpu_decode import Table
from transformers import AutoTokenizer

from small_doge.inference.native import DTYPES, NativeModel
from small_doge.inference.sampling import SamplingParams

timer = time.perf_counter


def answer(
    core: NativeModel, prompts: list[list[int]], how: SamplingParams, end: int
) -> tuple[float, float, list[int]]:
    """Seconds of decoding, runs through the layers, and all tokens drawn."""
    session = core.new_session()
    seconds, drawn = 0.0, []
    for prompt in prompts:
        session.reset()
        session.prefill([prompt])
        start = timer()
        made = session.decode(how.max_new_tokens, [how], [[end]])
        seconds += timer() - start
        drawn += made.tokens[0, : made.lengths[0]].tolist()
    return seconds, session.steps, drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("conversations", type=Path)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["int8"])
    parser.add_argument("--drafts", nargs="+", type=int, default=[0, 2, 4, 8])
    parser.add_argument("--temperatures", nargs="+", type=float, default=[0.0, 0.8])
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cpu-time", action="store_true", help="count CPU seconds; with one thread")
    parser.add_argument("--out", type=Path, help="also write the rows to this file")
    args = parser.parse_args()
    if args.cpu_time and args.threads != 1:
        parser.error("--cpu-time sums over threads: give --threads 1")
    global timer
    timer = time.process_time if args.cpu_time else time.perf_counter
    tokenizer = AutoTokenizer.from_pretrained(args.checkpoint)
    lines = args.conversations.read_text(encoding="utf-8").splitlines()[: args.prompts]
    prompts = [
        tokenizer.apply_chat_template(
            json.loads(line)["messages"][:1], tokenize=True, add_generation_prompt=True, return_dict=True
        )["input_ids"]
        for line in lines
    ]
    table = Table("cpu_drafts")
    for dtype in args.dtypes:
        cores = {n: NativeModel.load(args.checkpoint, dtype, args.threads, drafts=n) for n in args.drafts}
        for temperature in args.temperatures:
            how = SamplingParams(max_new_tokens=args.tokens, temperature=temperature, seed=0)
            rates: dict[int, list[float]] = {n: [] for n in cores}
            strides: dict[int, list[float]] = {n: [] for n in cores}
            texts = {}
            for _ in range(args.rounds):
                for n, core in cores.items():
                    seconds, steps, texts[n] = answer(core, prompts, how, tokenizer.eos_token_id)
                    rates[n].append(len(texts[n]) / seconds)
                    strides[n].append(len(texts[n]) / steps)
            for n in cores:
                variant = f"{dtype}, {n} guesses, temperature {temperature}"
                table.add(variant, args.checkpoint.name, "tokens/s", rates[n], digits=1)
                table.add(variant, args.checkpoint.name, "tokens a step", strides[n])
                same = np.array_equal(texts[n], texts[args.drafts[0]])
                table.add(variant, args.checkpoint.name, "same tokens", [float(same)], digits=0)
    if args.out:
        args.out.write_text(json.dumps(table.rows, indent=1) + "\n")
    print(json.dumps(table.rows))


if __name__ == "__main__":
    main()
