"""Draws the figures of docs/architecture.md into docs/assets, from the package's own functions and a measured run.

python docs/figures/architecture.py
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import matplotlib
import numpy as np
import torch

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyBboxPatch, Rectangle

from small_doge.ops.dynamic_mask_attention import naive_mask, retention_horizon
from small_doge.ops.expert_retrieval import naive_search

ASSETS = Path(__file__).parent.parent / "assets"
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
# The same file for the same figure: no date, and names that do not depend on the run.
plt.rcParams.update(
    {"svg.hashsalt": "small-doge", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10}
)
BLUE, ORANGE, GREY, PALE = "#2b6cb0", "#dd6b20", "#718096", "#e2e8f0"


def save(figure: plt.Figure, name: str) -> None:
    figure.savefig(ASSETS / f"{name}.svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)


def retention() -> None:
    """The mask of one head, and the same mask as one integer a key."""
    length, window = 24, 6
    score = torch.rand(1, 1, length, generator=torch.Generator().manual_seed(4))
    mask = naive_mask(score, length, window)[0, 0]
    horizon = retention_horizon(score, window)[0, 0].tolist()
    rebuilt = torch.tensor([[j <= i < horizon[j] for j in range(length)] for i in range(length)])
    assert torch.equal(rebuilt, mask), "the figure says that these two are the same"

    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 4.6))
    shade = np.where(mask, score[0, 0].numpy()[None, :], np.nan)
    left.pcolormesh(shade, cmap="Blues", vmin=-0.3, vmax=1.0, edgecolors="white", linewidth=0.4)
    left.set(title=f"which keys a query sees (w = {window})", xlabel="key j", ylabel="query i")
    left.invert_yaxis()
    left.set_aspect("equal")
    for j in range(length):
        # A horizon at or before the key: not even its own query sees it.
        right.barh(
            j, max(0, horizon[j] - j), left=j, height=0.72, color=plt.cm.Blues(0.25 + 0.65 * score[0, 0, j].item())
        )
    right.set(title="the same, as one integer a key: its horizon", xlabel="query i", ylabel="key j")
    right.set_xlim(0, length)
    right.invert_yaxis()
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    save(figure, "retention")


def cache() -> None:
    """Memory against tokens decoded, as `benchmarks/cache_memory.py` measured it."""
    file = max(RESULTS.glob("cache_memory_*.json"), key=lambda path: path.name.rsplit("_", 1)[1])
    rows = json.loads(file.read_text())
    measured = {
        metric: [row for row in rows if row["metric"] == metric] for metric in ("cache bytes", "resident bytes")
    }
    tokens = np.array([row["tokens"] for row in measured["cache bytes"]])

    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.4))
    # Without a window every token adds what the first thousand added each.
    first = measured["cache bytes"][0]
    left.plot(tokens / 1000, tokens * first["value"] / first["tokens"] / 2**20, ":", color=GREY, label="every key kept")
    for axis, (metric, of_metric), color in zip((left, right), measured.items(), (BLUE, ORANGE), strict=True):
        axis.plot(tokens / 1000, [row["value"] / 2**20 for row in of_metric], color=color, label="measured")
        low, high = ([row[bound] / 2**20 for row in of_metric[1:]] for bound in ("min", "max"))
        axis.fill_between(tokens[1:] / 1000, low, high, color=color, alpha=0.25, linewidth=0)
        axis.set(xlabel="tokens decoded (thousands)", ylabel=f"{metric.removesuffix(' bytes')} memory (MiB)")
        axis.set_ylim(0.5 if axis is left else 0, None if axis is left else 1.25 * max(high))
        axis.spines[["top", "right"]].set_visible(False)
    left.set_yscale("log")
    left.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    save(figure, "cache")


def box(axis: plt.Axes, x: float, y: float, width: float, text: str, color: str = PALE, height: float = 0.62) -> None:
    shape = FancyBboxPatch((x - width / 2, y - height / 2), width, height, boxstyle="round,pad=0.04", fc=color, ec=GREY)
    axis.add_patch(shape)
    axis.text(x, y, text, ha="center", va="center", fontsize=9)


def arrow(axis: plt.Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axis.annotate("", xy=end, xytext=start, arrowprops={"arrowstyle": "->", "color": GREY, "lw": 1.1})


def layer() -> None:
    """One decoder layer, bottom to top."""
    figure, axis = plt.subplots(figsize=(7.6, 5.4))
    column = 2.0
    steps = [
        (0.0, "x", "white"),
        (1.2, "RMSNorm", PALE),
        (2.4, "dynamic mask attention", "#bee3f8"),
        (3.6, "r₁ * x + attention", "#fefcbf"),
        (4.8, "RMSNorm", PALE),
        (6.0, "MLP, or MLP + experts", "#feebc8"),
        (7.2, "r₂ * x + MLP", "#fefcbf"),
    ]
    for y, text, color in steps:
        box(axis, column, y, 2.9, text, color)
    for (y, *_), (above, *_) in itertools.pairwise(steps):
        arrow(axis, (column, y + 0.36), (column, above - 0.36))
    for low, high in ((0.0, 3.6), (3.6, 7.2)):
        axis.plot([column - 1.5, column - 1.85, column - 1.85], [low, low, high], color=GREY, lw=1.1)
        arrow(axis, (column - 1.85, high), (column - 1.52, high))
    x = 6.1
    lines = [
        (3.3, "q = RoPE(RMSNorm(W_q x)),   k = RoPE(RMSNorm(W_k x)),   v = W_v x"),
        (2.75, "s_j = exp(A softplus(W_dt v_j)), one a key and key/value head"),
        (2.2, "logit_ij = q_i · k_j / √D + s_j"),
        (1.65, "over the w keys j ≤ i of highest s_j"),
        (6.3, "down(silu(gate x) * up x)"),
        (5.75, "+ Σ_k w_k silu(x · down_k) up_k, for a mixture"),
    ]
    for y, text in lines:
        axis.text(3.75, y, text, fontsize=9, va="center")
    axis.set_xlim(0, x + 3.2)
    axis.set_ylim(-0.6, 7.8)
    axis.axis("off")
    save(figure, "layer")


def product_keys() -> None:
    """All sums of a token's two lists of scores, the candidates, and the experts chosen."""
    keys, top_k = 16, 6
    scores = torch.randn(2, 1, keys, generator=torch.Generator().manual_seed(2))
    first, second = (half[0].sort(descending=True).values.numpy() for half in scores)
    sums = first[:, None] + second[None, :]
    best, _ = naive_search(scores, top_k)
    threshold = best[0, -1].item()

    figure, axis = plt.subplots(figsize=(5.2, 4.6))
    axis.pcolormesh(sums, cmap="Blues", edgecolors="white", linewidth=0.4)
    for a in range(keys):
        for b in range(keys):
            if (a + 1) * (b + 1) <= top_k:
                axis.add_patch(Rectangle((b, a), 1, 1, fill=False, ec=ORANGE, lw=1.6))
            if sums[a, b] >= threshold - 1e-6:
                axis.plot(b + 0.5, a + 0.5, "o", color=ORANGE, ms=5)
    axis.set(xlabel="second keys, best first", ylabel="first keys, best first")
    axis.set_title(f"{keys} × {keys} experts, top {top_k}: framed candidates, dotted choices", fontsize=10)
    axis.invert_yaxis()
    axis.set_aspect("equal")
    save(figure, "product_keys")


if __name__ == "__main__":
    ASSETS.mkdir(exist_ok=True)
    for draw in (layer, retention, cache, product_keys):
        draw()
        print(f"docs/assets/{draw.__name__}.svg")
