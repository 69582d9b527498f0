"""Tokens/s against the share of a draft model's guesses that are right, with models of full size and random weights.

python benchmarks/cpu_draft_share.py --size 320M --draft 20M --drafts 2 4 --shares 0 0.5 0.8 1 [--out results.json]

Both models run all of their products, but what these add to the residual stream is nothing: the head makes the next
token a function of the last one, a walk around all tokens. The draft model walks the same way at the given share of
the tokens and another way at the rest, always sure of itself. So the share holds for every guess alike, and no guess is
left out for doubt. The variants take turns; a row holds the median round and its spread. On a machine that others use
too, --cpu-time counts CPU seconds of one thread. The last line printed is the rows as JSON.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from cpu_decode import SIZES, clock, new_table
from rows import finish
from transformers import DogeConfig, DogeForCausalLM

from small_doge.inference.native import DTYPES, NativeModel

VOCABULARY = 32768
SURE = 30.0  # the logit of the next token, beside a spread of 2 in the others at a width of 256
timer = time.perf_counter


@torch.no_grad()
def save_walk(size: str, follows: np.ndarray, folder: Path) -> None:
    """A checkpoint of `size` whose token after t is follows[t]."""
    row = SIZES[size]
    torch.manual_seed(0)
    config = DogeConfig(
        vocab_size=VOCABULARY,
        hidden_size=row.width,
        intermediate_size=row.intermediate,
        num_hidden_layers=row.layers,
        num_attention_heads=row.heads,
        num_key_value_heads=row.key_value_heads,
        tie_word_embeddings=False,
    )
    model = DogeForCausalLM(config)
    for layer in model.model.layers:
        torch.nn.init.normal_(layer.self_attn.A)
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
        torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    states = torch.nn.functional.rms_norm(model.model.embed_tokens.weight, (row.width,), eps=config.rms_norm_eps)
    model.lm_head.weight[torch.from_numpy(follows)] = states * (SURE / row.width)
    model.bfloat16().save_pretrained(folder)


def walk(generator: np.random.Generator) -> np.ndarray:
    """What follows each token on one way around all of them."""
    order = generator.permutation(VOCABULARY)
    follows = np.empty_like(order)
    follows[order] = np.roll(order, -1)
    return follows


def apart(follows: np.ndarray, share: float, generator: np.random.Generator) -> np.ndarray:
    """The same for that share of the tokens, another token for each of the rest."""
    others = generator.permutation(VOCABULARY)[: round((1 - share) * VOCABULARY)]
    changed = follows.copy()
    changed[others] = follows[np.roll(others, 1)]
    return changed


def decode(model: NativeModel, start: int, follows: np.ndarray, tokens: int) -> dict[str, float]:
    """The figures of one decode, of which the model wrote what it should."""
    session = model.new_session()
    session.prefill([[start]])
    session.decode(1)
    began = timer()
    drawn = session.decode(tokens).tokens[0]
    seconds = timer() - began
    expected = int(follows[follows[start]])
    for token in drawn:
        assert token == expected
        expected = int(follows[token])
    taken = tokens - session.steps
    figures = {"tokens/s": tokens / seconds, "tokens a step": tokens / session.steps}
    if session.guesses:
        figures |= {"guesses a step": session.guesses / session.steps, "guesses taken": taken / session.guesses}
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="320M")
    parser.add_argument("--draft", choices=SIZES, default="20M")
    parser.add_argument("--drafts", nargs="+", type=int, default=[2, 4], help="most guesses a step")
    parser.add_argument("--shares", nargs="+", type=float, default=[0.0, 0.5, 0.7, 0.8, 0.9, 1.0])
    parser.add_argument("--dtype", choices=DTYPES, default="int8")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cpu-time", action="store_true", help="count CPU seconds; with one thread")
    parser.add_argument("--out", type=Path, help="also write the rows to this file")
    args = parser.parse_args()
    global timer
    timer = clock(parser, args)
    generator = np.random.default_rng(0)
    follows = walk(generator)
    table = new_table("cpu_draft_share")
    with tempfile.TemporaryDirectory() as folder:
        large = Path(folder) / "large"
        save_walk(args.size, follows, large)
        for share in args.shares:
            save_walk(args.draft, apart(follows, share, generator), Path(folder) / f"{share}")
        for n in args.drafts:
            models = {"no guesses": NativeModel.load(large, args.dtype, args.threads)}
            for share in args.shares:
                models[f"{n} guesses, share {share}"] = NativeModel.load(
                    large, args.dtype, args.threads, drafts=n, draft_model=Path(folder) / f"{share}"
                )
            rounds: dict[str, list[dict[str, float]]] = {name: [] for name in models}
            for start in generator.choice(VOCABULARY, args.rounds, replace=False):
                for name, model in models.items():
                    rounds[name].append(decode(model, int(start), follows, args.tokens))
            for name, figures in rounds.items():
                for metric in figures[0]:
                    table.add(f"{args.dtype}, {name}", args.size, metric, [each[metric] for each in figures])
                rates = [
                    each["tokens/s"] / base["tokens/s"]
                    for each, base in zip(figures, rounds["no guesses"], strict=True)
                ]
                table.add(f"{args.dtype}, {name}", args.size, "times no guesses", rates)
    finish(table.rows, args.out)


if __name__ == "__main__":
    main()
