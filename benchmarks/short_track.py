"""Loss for tokens and for seconds: Doge-20M on real text by optimizer, on one GPU.

    python benchmarks/short_track.py DATA [--seeds 3] [--out DIR]

DATA holds train.zst (uint16 token ids, zstd) and for each held-out domain hold_NAME.npy (uint16) beside
hold_NAME.bytes (the bytes of its text). Rows of 2,048 tokens, batches of 131,072, warm-up 10 %, decay 10 % or what the
arm says. One sweep with seed 0 finds each optimizer's settings; these then run with the other seeds. The figure is the
mean over the domains of bits per byte.

Rows go to DIR/short_track_DEVICE_DATE.json (DIR: $OUT, else benchmarks/results). The last line printed is JSON.
"""

import argparse
import json
import math
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from rows import RESULTS, ROOT, origin, save

sys.path.insert(0, str(ROOT / "src"))

from small_doge import DogeConfig, DogeForCausalLM
from small_doge.trainer.optimizers import Muon, muon_groups
from small_doge.trainer.setup import compile_layers, zero_init_outputs
from small_doge.utils.scheduler import WSDScheduler

LENGTH, ROWS, MICRO = 2048, 64, 64
LONG, SHORT = 70_000_000, 25_000_000


@dataclass(frozen=True)
class Arm:
    """One way to train; rates are peaks."""

    optimizer: str
    tokens: int
    adamw: float
    muon: float = 0.0
    momentum: float = 0.95
    zero_init: bool = False
    decay: float = 0.1

    def __str__(self) -> str:
        parts = [self.optimizer, f"{self.tokens / 1e6:.0f}M tokens", f"AdamW {self.adamw:g}"]
        if self.muon:
            parts += [f"Muon {self.muon:g} momentum {self.momentum:g}"]
        return ", ".join([*parts, f"decay {self.decay:g}", *["outputs start at zero"] * self.zero_init])


ADAMW = [Arm("adamw", LONG, rate) for rate in (8e-3, 1.6e-2)]
MUON = [
    Arm("muon", SHORT, 4e-3, 0.02),
    Arm("muon", SHORT, 8e-3, 0.02, zero_init=True),
    Arm("muon", SHORT, 8e-3, 0.02, zero_init=True, decay=0.5),
    Arm("muon", SHORT, 8e-3, 0.03, zero_init=True, decay=0.5),
    Arm("muon", SHORT, 1.6e-2, 0.02, momentum=0.9, zero_init=True, decay=0.5),
]


class Track:
    """The data, and one run over it."""

    def __init__(self, folder: Path) -> None:
        packed = (folder / "train.zst").read_bytes()
        ids = np.frombuffer(pa.input_stream(pa.py_buffer(packed), compression="zstd").read(), dtype=np.uint16)
        self.rows = self._rows(ids)
        self.held_out = {
            path.stem.removeprefix("hold_"): (
                self._rows(np.load(path)),
                len(np.load(path)),
                int(path.with_suffix(".bytes").read_text()),
            )
            for path in sorted(folder.glob("hold_*.npy"))
        }

    @staticmethod
    def _rows(ids: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(ids[: len(ids) // LENGTH * LENGTH].astype(np.int64)).view(-1, LENGTH).cuda()

    @torch.no_grad()
    def bits_per_byte(self, model: DogeForCausalLM) -> dict[str, float]:
        found = {}
        for name, (rows, tokens, size) in self.held_out.items():
            losses = []
            for part in rows[: len(rows) // 32 * 32].split(32):
                with torch.autocast("cuda", torch.bfloat16):
                    losses.append(model(input_ids=part, labels=part, use_cache=False, loss_only=True).loss)
            found[name] = torch.stack(losses).mean().item() / math.log(2) * tokens / size
        return found

    def run(self, arm: Arm, seed: int) -> list[dict[str, Any]]:
        """Train; the figures at six points: tokens, seconds of training, bits per byte."""
        torch.manual_seed(seed)
        model = DogeForCausalLM(DogeConfig.from_size("20M")).cuda().train()
        if arm.zero_init:
            zero_init_outputs(model)
        compile_layers(model)
        optimizer: torch.optim.Optimizer
        if arm.optimizer == "adamw":
            optimizer = torch.optim.AdamW(
                model.parameters(), lr=arm.adamw, betas=(0.9, 0.95), weight_decay=0.01, fused=True
            )
        else:
            optimizer = Muon(muon_groups(model, arm.muon, arm.adamw, 0.01), momentum=arm.momentum)
        steps = arm.tokens // (ROWS * LENGTH)
        warmup, decay = round(0.1 * steps), round(arm.decay * steps)
        schedule = WSDScheduler(optimizer, warmup_steps=warmup, stable_steps=steps - warmup - decay, decay_steps=decay)
        order = torch.Generator().manual_seed(seed)
        queue = torch.empty(0, dtype=torch.long)
        self.step(model, self.rows[:MICRO])
        model.zero_grad()
        torch.cuda.synchronize()
        points, spent, start = [], 0.0, time.perf_counter()
        for step in range(1, steps + 1):
            if len(queue) < ROWS:
                queue = torch.cat((queue, torch.randperm(len(self.rows), generator=order)))
            chosen, queue = queue[:ROWS].cuda(), queue[ROWS:]
            self.step(model, self.rows[chosen])
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            if (step % (steps // 6) == 0 and step + steps // 6 <= steps) or step == steps:
                torch.cuda.synchronize()
                spent += time.perf_counter() - start
                found = self.bits_per_byte(model)
                points.append(
                    {
                        "tokens": step * ROWS * LENGTH,
                        "seconds": round(spent, 2),
                        **{k: round(v, 4) for k, v in found.items()},
                    }
                    | {"mean": round(statistics.mean(found.values()), 4)}
                )
                start = time.perf_counter()
        print(
            f"seed {seed}: {arm}: " + " ".join(f"{p['tokens'] / 1e6:.1f}M {p['mean']:.3f}" for p in points), flush=True
        )
        print(f"    {points[-1]}", flush=True)
        return points

    @staticmethod
    def step(model: DogeForCausalLM, rows: torch.Tensor) -> None:
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(input_ids=rows, labels=rows, use_cache=False, loss_only=True).loss
        loss.backward()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=400, help="no run is begun after these")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    deadline = time.monotonic() + args.seconds
    torch.set_float32_matmul_precision("high")
    device, shared = torch.cuda.get_device_name(), origin()
    track = Track(args.data)
    print(f"{device}: {track.rows.numel():,} tokens", flush=True)
    curves: list[dict[str, Any]] = []

    def run(arm: Arm, seed: int) -> float:
        if time.monotonic() > deadline:
            print(f"no time left: seed {seed}: {arm}")
            return math.inf
        points = track.run(arm, seed)
        curves.append({"arm": str(arm), "seed": seed, "points": points})
        return points[-1]["mean"]

    chosen = []
    for arms in (ADAMW, MUON):
        scores = {arm: run(arm, 0) for arm in arms}
        chosen.append(min(scores, key=lambda arm: scores[arm]))
    for seed in range(1, args.seeds):
        for arm in chosen:
            run(arm, seed)
    run(Arm(**{**vars(chosen[1]), "tokens": LONG}), 0)
    rows = [
        {
            "name": "short_track",
            "variant": f"{curve['arm']}, seed {curve['seed']}",
            "size": f"20M, {point['tokens']} tokens, {point['seconds']} s",
            "device": device,
            "metric": "bits per byte, mean of the domains",
            "value": point["mean"],
            "n": 1,
            "min": min(v for k, v in point.items() if k not in ("tokens", "seconds", "mean")),
            "max": max(v for k, v in point.items() if k not in ("tokens", "seconds", "mean")),
            **shared,
        }
        for curve in curves
        for point in curve["points"]
    ]
    path = save(rows, args.out, "short_track", device)
    finals: dict[str, list[float]] = {}
    for curve in curves:
        finals.setdefault(curve["arm"], []).append(curve["points"][-1]["mean"])
    print(json.dumps({"finals": finals, "file": path.name}))


if __name__ == "__main__":
    main()
