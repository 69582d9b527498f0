"""How long a model's answers are with and without its chat template: why IFEval needs `--chat` of a chat model.

    python benchmarks/answer_lengths.py CHECKPOINT... --data-dir ../shared/data/eval --out lengths.json

IFEval's prompts, answered greedily by our engine, as plain text and as a user's turn. Counted are answers: those
without a word, and those cut at --max-new-tokens. The last line printed is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from rows import origin

from small_doge.evaluation.rows import find_rows, read_rows
from small_doge.inference import load
from small_doge.utils.hardware import default_device, device_name
from small_doge.utils.provenance import versions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+")
    parser.add_argument("--data-dir", type=Path, required=True, help="a folder with ifeval_input_data")
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    questions = [row["prompt"] for row in read_rows(find_rows(args.data_dir, "ifeval_input_data"))]
    device = str(default_device())
    figures: dict[str, Any] = {}
    for checkpoint in args.checkpoints:
        engine = load(checkpoint, device=device, dtype="bfloat16" if device == "cuda" else "float32")
        turns = [[{"role": "user", "content": question}] for question in questions]
        for kind, prompts in (("plain", questions), ("chat", turns)):
            answers = engine.generate(prompts, max_new_tokens=args.max_new_tokens)
            lengths = [len(answer.token_ids) for answer in answers]
            figures.setdefault(checkpoint, {})[kind] = {
                "n": len(answers),
                "without_a_word": sum(not answer.text.strip() for answer in answers),
                "cut": sum(length >= args.max_new_tokens for length in lengths),
                "median_tokens": statistics.median(lengths),
                "first_answers": [answer.text[:160] for answer in answers[:4]],
            }
            print(checkpoint, kind, figures[checkpoint][kind], flush=True)
    about = {**origin(), "device": device_name(device)}
    text = json.dumps({"answers": figures, **about, "versions": versions()}, indent=1)
    if args.out:
        args.out.write_text(text + "\n")
    print(json.dumps(json.loads(text)))


if __name__ == "__main__":
    main()
