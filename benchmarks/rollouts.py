"""One step of GRPO on one GPU, without TRL: rollouts through `TorchSlots`, then the training forward and backward.

    PYTHONPATH=src python benchmarks/rollouts.py [--sizes 20M 160M] [--rollouts 512] [--tokens 256] [--out DIR]

A step is what the stage does: refresh the engine's weights from the model's fp32 parameters, read each of the prompts
once, copy it for its group, draw at temperature 1 until the length is reached (random weights seldom end earlier), then
log-probabilities under bf16 autocast, the policy gradient, and AdamW. The check comes first: the engine's
log-probabilities against the training forward's; a size whose check is red is not timed.

Rows go to DIR/rollouts_DEVICE_DATE.json (DIR: $OUT, else benchmarks/results). The last line printed is JSON.
"""

from __future__ import annotations

import argparse
import json
import time
import traceback
from pathlib import Path

import torch
from rows import RESULTS, Table, save
from torch import Tensor

from small_doge import DogeConfig, DogeForCausalLM
from small_doge.inference.sampling import SamplingParams
from small_doge.inference.torch_slots import TorchSlots

PROMPT, GROUP = 64, 8
TOLERANCE = 0.02
"""Mean difference of a log-probability between the engine and the training forward, both in bf16."""
LINE = "{size:5} {variant} {metric:36} {value:14,.3f}  [{min:,.3f}, {max:,.3f}]"


class Step:
    """One size's model, engine and optimizer, and the parts of a step."""

    def __init__(self, size: str, args: argparse.Namespace) -> None:
        torch.manual_seed(0)
        with torch.device("cuda"):
            self.model = DogeForCausalLM(DogeConfig.from_size(size))
        for layer in self.model.model.layers:
            torch.nn.init.normal_(layer.self_attn.A)
        self.rows, self.tokens, self.micro_batch = args.rollouts, args.tokens, args.micro_batch
        longest = -(-(PROMPT + args.tokens) // 128) * 128
        self.session = TorchSlots(self.model, args.rollouts, longest, torch.bfloat16)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-6, fused=True)
        generator = torch.Generator().manual_seed(1)
        groups = range(args.rollouts // GROUP)
        self.prompts = [torch.randperm(32768, generator=generator)[:PROMPT].tolist() for _ in groups]

    def rollouts(self, seed: int) -> tuple[Tensor, Tensor]:
        """Tokens [rows, prompt + drawn] and the engine's log-probabilities [rows, drawn]."""
        rows = list(range(self.rows))
        first = rows[::GROUP]
        self.session.refresh()
        self.session.extend(self.prompts, first)
        others = [row for row in rows if row % GROUP]
        self.session.copy_rows([row // GROUP * GROUP for row in others], others)
        how = [SamplingParams(temperature=1.0, seed=seed * 1000 + row) for row in rows]
        drawn = self.session.decode(self.tokens, how, [()] * len(rows), rows)
        prompt = torch.tensor([self.prompts[row // GROUP] for row in rows])
        ids = torch.cat((prompt, torch.from_numpy(drawn.tokens).long()), 1)
        return ids.cuda(), torch.from_numpy(drawn.logprobs).cuda()

    def log_probs(self, ids: Tensor) -> Tensor:
        with torch.autocast("cuda", torch.bfloat16):
            logits = self.model(input_ids=ids, use_cache=False, logits_to_keep=self.tokens + 1).logits[:, :-1]
        targets = ids[:, PROMPT:]
        return -torch.nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), targets.flatten(), reduction="none"
        ).view(targets.shape)

    def difference(self) -> tuple[float, float]:
        """Mean and largest difference of a log-probability, over one micro-batch."""
        ids, said = self.rollouts(0)
        with torch.no_grad():
            found = self.log_probs(ids[: self.micro_batch])
        error = (found - said[: self.micro_batch]).abs()
        return float(error.mean()), float(error.max())

    def train(self, ids: Tensor) -> None:
        self.model.train()
        advantages = torch.randn(self.rows, 1, device="cuda")
        for rows in range(0, self.rows, self.micro_batch):
            part = slice(rows, rows + self.micro_batch)
            log_probs = self.log_probs(ids[part])
            ratio = torch.exp(log_probs - log_probs.detach())
            (-(ratio * advantages[part]).sum() / (self.rows * self.tokens)).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


def now() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()


def measure(size: str, args: argparse.Namespace, table: Table) -> None:
    step = Step(size, args)
    started = now()
    mean, largest = step.difference()
    good = mean < TOLERANCE
    note = f"log-probability differs by {mean:.1e} in the mean, {largest:.1e} at the most"
    print(f"{'PASS' if good else 'FAIL'} {size}: {note}; first call {now() - started:.1f} s", flush=True)
    if not good:
        return
    step.train(step.rollouts(1)[0])
    found: dict[str, list[float]] = {"rollout tokens/s": [], "rollout seconds": [], "step seconds": []}
    for i in range(args.rounds):
        start = now()
        ids, _ = step.rollouts(i)
        rolled = now()
        step.train(ids)
        found["rollout seconds"].append(rolled - start)
        found["rollout tokens/s"].append(step.rows * step.tokens / (rolled - start))
        found["step seconds"].append(now() - start)
    found["largest log-probability difference"] = [largest]
    found["peak GiB"] = [torch.cuda.max_memory_allocated() / 2**30]
    for metric, values in found.items():
        table.add(f"{args.rollouts} x {args.tokens}, slots, bf16", size, metric, values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["20M", "160M"])
    parser.add_argument("--rollouts", type=int, default=512, help=f"a multiple of the group size {GROUP}")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--micro-batch", type=int, default=64, help="rows of one training forward")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("this benchmark needs a CUDA GPU")
    table = Table("rollouts", torch.cuda.get_device_name(), LINE)
    for size in args.sizes:
        # A failure is printed, and the rest of the borrowed time is used.
        try:
            measure(size, args, table)
        except Exception:
            print(f"FAILED {size}\n{traceback.format_exc()[-3000:]}", flush=True)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    path = save(table.rows, args.out, table.name, table.device)
    print(json.dumps({"rows": len(table.rows), "file": path.name}))


if __name__ == "__main__":
    main()
