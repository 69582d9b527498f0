"""Recall learnt from scratch: Doge with its mask trained (w < T), with w >= T, and plain causal attention.

    python benchmarks/mqar.py [--task mqar|needle] [--length 256] [--pairs 64] [--widths 64 128] [--lrs 1e-3 3e-3 1e-2]

Every arm has the same layers, width and initial weights and sees the same sequences; the learning rate is swept for
each, chosen on a validation set, and the accuracy at the chosen one is measured on another. The plain arm is Doge with
w >= T and its `A` frozen at 0: every key then has the same score, and the attention is ordinary causal attention.
Training stops early once the validation set is solved. Rows go to DIR/mqar_DEVICE_DATE.json (DIR: $OUT, else
benchmarks/results) as they come. The last line printed is JSON.
"""

import argparse
import json
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from rows import RESULTS, Row, origin, save

from small_doge import DogeConfig, DogeForCausalLM
from small_doge.evaluation.synthetic.recall import RecallBatch, multi_query_recall, needle_recall
from small_doge.utils.hardware import device_name

VALIDATION_SEED, TEST_SEED = 10_000_019, 20_000_003
ARMS = ("doge, mask trained", "doge", "plain causal")
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


def make_batch(
    options: argparse.Namespace, batch: int, generator: torch.Generator, pairs: int | None = None
) -> RecallBatch:
    if options.task == "mqar":
        return multi_query_recall(batch, options.length, pairs or options.pairs, options.vocab, generator)
    return needle_recall(batch, options.length, options.vocab, generator)


def make_model(options: argparse.Namespace, width: int, window: int) -> DogeForCausalLM:
    heads = max(1, width // options.head_size)
    config = DogeConfig(
        vocab_size=options.vocab,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=options.layers,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 2),
        keep_window_size=window,
        max_position_embeddings=options.length,
        tie_word_embeddings=True,
        use_cache=False,
        attn_implementation=options.attention,
    )
    return DogeForCausalLM(config).to(options.device)


def answer_logits(model: DogeForCausalLM, batch: RecallBatch, bf16: bool) -> torch.Tensor:
    """Logits [B, Q, V] at the asked positions alone: the head is most of the work otherwise."""
    with torch.autocast(batch.ids.device.type, torch.bfloat16, enabled=bf16):
        hidden = model.model(input_ids=batch.ids, use_cache=False).last_hidden_state
        asked = batch.asked[..., None].expand(-1, -1, hidden.shape[-1])
        return model.lm_head(hidden.gather(1, asked)).float()


@torch.no_grad()
def accuracy(model: DogeForCausalLM, options: argparse.Namespace, batches: list[RecallBatch]) -> tuple[float, float]:
    """Mean over sequences of the share of right answers, and its standard error (answers of a sequence go together)."""
    shares = torch.cat(
        [(answer_logits(model, b, options.bf16).argmax(-1) == b.answers).float().mean(1) for b in batches]
    )
    return shares.mean().item(), (shares.std() / math.sqrt(len(shares))).item()


def held_out(options: argparse.Namespace, sequences: int, seed: int) -> list[RecallBatch]:
    generator = torch.Generator(options.device).manual_seed(seed)
    return [make_batch(options, options.batch, generator) for _ in range(math.ceil(sequences / options.batch))]


def train(model: DogeForCausalLM, options: argparse.Namespace, lr: float, plain: bool) -> tuple[int, float]:
    """Train until the validation set is solved or the steps are spent: the steps taken, and the validation accuracy.

    Learning rate: 5 % warm-up, then a cosine to a tenth of it. Batches go through an eighth, a quarter, a half and all
    of the pairs in turn, for the few teach the many; the validation and test sets have all.
    """
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for name, p in model.named_parameters() if p.dim() <= 1 and not (plain and name.endswith(".A"))]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=options.device.type == "cuda")
    warmup = max(1, options.steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warmup, 0.55 + 0.45 * math.cos(math.pi * step / options.steps)),
    )
    validation = held_out(options, options.batch, VALIDATION_SEED)
    generator = torch.Generator(options.device).manual_seed(options.seed)
    score = 0.0
    for step in range(1, options.steps + 1):
        batch = make_batch(options, options.batch, generator, max(1, options.pairs >> step % 4))
        loss = F.cross_entropy(answer_logits(model, batch, options.bf16).flatten(0, 1), batch.answers.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if step % options.check_every == 0 or step == options.steps:
            score, _ = accuracy(model, options, validation)
            if score >= options.solved:
                break
    return step, score


def describe(model: DogeForCausalLM, options: argparse.Namespace) -> dict[str, object]:
    """Accuracy on the test set, with its interval; for the needle also by depth."""
    value, error = accuracy(model, options, held_out(options, options.test_sequences, TEST_SEED))
    found: dict[str, object] = {
        "value": round(value, 4),
        "ci95": [round(max(0.0, value - 1.96 * error), 4), round(min(1.0, value + 1.96 * error), 4)],
    }
    if options.task == "needle":
        generator = torch.Generator(options.device).manual_seed(TEST_SEED)
        found["by_depth"] = {
            depth: round(
                accuracy(
                    model,
                    options,
                    [needle_recall(options.batch, options.length, options.vocab, generator, depth=depth)],
                )[0],
                4,
            )
            for depth in DEPTHS
        }
    return found


def sweep(options: argparse.Namespace, width: int, arm: str, window: int) -> list[Row]:
    """One arm at every learning rate: a row each, and the row of the rate that validation chooses."""
    torch.manual_seed(options.seed)
    model = make_model(options, width, window)
    plain = arm == "plain causal"
    if plain:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not name.endswith(".A"))
    if options.compile:
        for layer in model.model.layers:
            layer.compile()
    initial = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rows: list[Row] = []
    for lr in options.lrs:
        model.load_state_dict(initial)
        start = time.perf_counter()
        steps, validation = train(model, options, lr, plain)
        row = {
            "name": options.task,
            "variant": f"{arm}, w={window}",
            "size": f"{options.layers} layers, width {width}",
            "device": device_name(options.device),
            "metric": "accuracy",
            **describe(model, options),
            "n": options.test_sequences,
            "lr": lr,
            "validation": round(validation, 4),
            "steps": steps,
            "seconds": round(time.perf_counter() - start, 1),
            "A": [round(a, 3) for layer in model.model.layers for a in layer.self_attn.A.tolist()],
            "length": options.length,
            "pairs": options.pairs if options.task == "mqar" else 1,
        }
        print(json.dumps(row), flush=True)
        rows.append(row)
    values = [row["value"] for row in rows]
    best = max(rows, key=lambda row: (row["validation"], -row["steps"]))
    for row in rows:
        # The spread of a row is that of its arm over the swept rates.
        row |= {"chosen": row is best, "min": min(values), "max": max(values)}
    return rows


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=("mqar", "needle"), default="mqar")
    parser.add_argument("--length", type=int, default=256, help="T, tokens of a sequence")
    parser.add_argument("--pairs", type=int, default=64, help="key and value pairs (mqar)")
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--head-size", type=int, default=64)
    parser.add_argument("--windows", type=int, nargs="+", help="w of the arms with w < T; a half of T if left out")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="to share a sweep out")
    parser.add_argument("--lrs", type=float, nargs="+", default=[1e-3, 3e-3, 1e-2])
    parser.add_argument("--steps", type=int, default=2000, help="most steps of a run")
    parser.add_argument("--batch", type=int, default=256, help="sequences a step")
    parser.add_argument("--check-every", type=int, default=100, help="steps between looks at the validation set")
    parser.add_argument("--solved", type=float, default=0.999, help="validation accuracy that ends a run")
    parser.add_argument("--test-sequences", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--attention", default="sdpa", help="attn_implementation; on a CPU eager is faster for short T")
    parser.add_argument("--bf16", action="store_true", help="autocast; else fp32, with TF32 on a GPU")
    parser.add_argument("--compile", action="store_true", help="each layer; pays only in runs of many thousand steps")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    options.windows = options.windows or [options.length // 2]
    return options


def main() -> None:
    options = parse()
    torch.set_float32_matmul_precision("high")
    shared, device = origin(), device_name(options.device)
    arms = [("doge, mask trained", window) for window in options.windows]
    arms += [("doge", options.length), ("plain causal", options.length)]
    arms = [arm for arm in arms if arm[0] in options.arms]
    rows: list[Row] = []
    for width in options.widths:
        for arm, window in arms:
            rows += [row | shared for row in sweep(options, width, arm, window)]
            save(rows, options.out, options.task, device)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
