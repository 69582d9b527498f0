"""What guesses bring: decoding with tokens guessed from the text so far, or by a draft model, beside decoding without.

python benchmarks/cpu_drafts.py CHECKPOINT CONVERSATIONS.jsonl [--draft-model CHECKPOINT] [--prompts 40] [--tokens 128]

Each line of CONVERSATIONS is `{"messages": [...]}`; the model answers the first message. Guesses change no token, so
all variants write the same answers; they take turns. "tokens a step" counts how far one run through the layers gets,
"guesses taken" the share that was drawn. On a machine that others use too, --cpu-time counts CPU seconds. The last line
printed is the rows as JSON.
"""

import argparse
import json
import time
from itertools import product
from pathlib import Path

from cpu_decode import clock, new_table
from rows import finish
from transformers import AutoTokenizer

from small_doge.inference.native import DTYPES, NativeModel
from small_doge.inference.sampling import SamplingParams

timer = time.perf_counter


def answer(
    core: NativeModel, prompts: list[list[int]], how: SamplingParams, end: int
) -> tuple[dict[str, float], list[int]]:
    """The figures of decoding, and all tokens drawn."""
    session = core.new_session()
    seconds, drawn = 0.0, []
    for prompt in prompts:
        session.reset()
        session.prefill([prompt])
        start = timer()
        made = session.decode(how.max_new_tokens, [how], [[end]])
        seconds += timer() - start
        drawn += made.tokens[0, : made.lengths[0]].tolist()
    # A prompt's first token comes from the prefill.
    taken = len(drawn) - len(prompts) - session.steps
    figures = {"tokens/s": len(drawn) / seconds, "tokens a step": len(drawn) / session.steps}
    if session.guesses:
        figures["guesses taken"] = taken / session.guesses
    return figures, drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("conversations", type=Path)
    parser.add_argument("--draft-model", type=Path, help="a smaller checkpoint with the same tokenizer")
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
    global timer
    timer = clock(parser, args)
    tokenizer = AutoTokenizer.from_pretrained(args.checkpoint)
    lines = args.conversations.read_text(encoding="utf-8").splitlines()[: args.prompts]
    prompts = [
        tokenizer.apply_chat_template(
            json.loads(line)["messages"][:1], tokenize=True, add_generation_prompt=True, return_dict=True
        )["input_ids"]
        for line in lines
    ]
    table = new_table("cpu_drafts")
    for dtype in args.dtypes:
        cores = {}
        for n, small in product(args.drafts, [None, args.draft_model] if args.draft_model else [None]):
            source = small.name if small else "look-up"
            if n:
                cores[f"{n} guesses by {source}"] = NativeModel.load(
                    args.checkpoint, dtype, args.threads, drafts=n, draft_model=small
                )
            else:
                cores["no guesses"] = NativeModel.load(args.checkpoint, dtype, args.threads)
        for temperature in args.temperatures:
            how = SamplingParams(max_new_tokens=args.tokens, temperature=temperature, seed=0)
            rounds: dict[str, list[dict[str, float]]] = {name: [] for name in cores}
            texts = {}
            for _ in range(args.rounds):
                for name, core in cores.items():
                    figures, texts[name] = answer(core, prompts, how, tokenizer.eos_token_id)
                    rounds[name].append(figures)
            for name, text in texts.items():
                variant = f"{dtype}, {name}, temperature {temperature}"
                for metric in rounds[name][0]:
                    table.add(variant, args.checkpoint.name, metric, [figures[metric] for figures in rounds[name]])
                same = text == next(iter(texts.values()))
                table.add(variant, args.checkpoint.name, "same tokens", [float(same)], digits=".0f")
    finish(table.rows, args.out)


if __name__ == "__main__":
    main()
