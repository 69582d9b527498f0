"""Data parallel training over many GPUs on paper: what a step computes, what it exchanges, and where that breaks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cluster:
    """What is assumed of the machines: a data sheet's peak, a share of it, and a network.

    Attributes:
        flops: bf16 peak of a GPU in FLOP/s (H100 SXM by its data sheet).
        mfu: Share of it that the step alone reaches; a slower step hides more of the exchange.
        bytes_per_second: Of a GPU's network between nodes, one direction (400 Gbit/s).
        latency: Seconds a message between two GPUs takes beyond its bytes.
    """

    flops: float = 989e12
    mfu: float = 0.4
    bytes_per_second: float = 50e9
    latency: float = 1e-5


@dataclass(frozen=True)
class Step:
    """A step on paper, for one of its GPUs: rows, seconds to compute, bytes and seconds to exchange, efficiency."""

    rows: float
    compute: float
    exchanged_bytes: float
    exchange: float
    efficiency: float


def step_on_paper(
    parameters: int, flops_per_token: float, rows: int, gpus: int, length: int = 2048, cluster: Cluster | None = None
) -> Step:
    """A data parallel step of `rows` rows over `gpus` GPUs.

    Gradients in fp32 go through an all-reduce, 2 (n - 1) / n * 4 P bytes a GPU, in a tree of 2 log2(n) messages. It
    runs beside the backward pass, two thirds of the computation; what is longer than that is waited for.

    Raises:
        ValueError: more GPUs than rows, which leaves some without work.
    """
    if gpus > rows:
        raise ValueError(f"{rows} rows a step cannot be divided over {gpus} GPUs: raise the batch or use fewer.")
    cluster = cluster or Cluster()
    compute = rows / gpus * length * flops_per_token / (cluster.flops * cluster.mfu)
    exchanged = 2 * (gpus - 1) / gpus * 4 * parameters
    messages = 2 * (gpus - 1).bit_length()
    exchange = exchanged / cluster.bytes_per_second + messages * cluster.latency
    waited = max(0.0, exchange - 2 / 3 * compute)
    return Step(rows / gpus, compute, exchanged, exchange, compute / (compute + waited))
