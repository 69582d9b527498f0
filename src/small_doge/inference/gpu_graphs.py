"""The token step on a GPU: Triton kernels and cuBLAS, captured as CUDA graphs, one for each power of two of lanes.

Up to `MATVEC_LANES` lanes the step waits for weights and for launches, and matrix-vector kernels serve it (five a
layer); above, it is arithmetic and cache reads, and cuBLAS with four small kernels a layer does. Attention is the same
kernel in both, split over the slots where there are few lanes. On a CPU the same calls run in Triton's interpreter, for
the tests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import triton
from torch import Tensor

from small_doge.inference.gpu_kernels import (
    attend_kernel,
    gated_kernel,
    norm_kernel,
    output_kernel,
    project_kernel,
    residual_norm_kernel,
    silu_kernel,
)
from small_doge.inference.gpu_sampling_kernels import record_kernel, scan_kernel, threshold_kernel
from small_doge.inference.gpu_state import SlotState
from small_doge.inference.gpu_step import head_logits, read
from small_doge.inference.gpu_weights import DecodeWeights, LayerWeights

MATVEC_LANES = 2
"""Most lanes that the matrix-vector kernels serve: an H100 took 130 and 198 us for a token of one lane of the 20M by
them and by cuBLAS, 317 and 200 us for one of eight (benchmarks/results, 2026-11-25)."""

OVERLAP_SINCE = (9, 0)
"""Compute capability from which the matrix-vector kernels are launched early, to load their weights while the kernel
before still runs: one lane of the 20M went from 7,324 to 8,719 tokens/s on an H100 (benchmarks/results, 2026-11-26)."""

STEPS_PER_GRAPH = 8
"""Tokens of one replay where the step is short."""

ATTEND_PARTS, ATTEND_WHOLE = (32, 4, 3), (64, 4, 3)
"""Slots of a block, warps and pipeline stages of attention, for a lane cut in parts and for a whole one."""

GRAPHED_PROMPT = 1024
"""Most tokens, padding included, of prompts that are read from a graph."""

BLOCK_VOCAB = 2048
"""Logits that one program of the sampling looks at."""

TILE = 8192
"""Elements of a weight tile that one program of a matrix-vector kernel holds in registers."""


def can_serve(weights: DecodeWeights, state: SlotState) -> bool:
    """Whether the kernels know this architecture: dense, without biases, silu, and not too wide for one tile."""
    config, layer = weights.config, weights.layers[0]
    plain = layer.mixture is None and layer.qkv_bias is None and layer.gate_up_bias is None
    widest = max(config.hidden_size, config.intermediate_size)
    return (
        plain and config.hidden_act == "silu" and widest <= TILE and config.vocab_size <= 65536 and state.slots <= 16384
    )


def power_of_two(n: int) -> int:
    """The smallest power of two that is not below n."""
    return 1 << (n - 1).bit_length()


class KernelStep:
    """The token step as kernel launches over `lanes` lanes; same calls as `EagerStep`."""

    def __init__(
        self, weights: DecodeWeights, state: SlotState, matvec_lanes: int = MATVEC_LANES, overlap: bool | None = None
    ) -> None:
        config, device = weights.config, state.length.device
        if overlap is None:
            overlap = device.type == "cuda" and torch.cuda.get_device_capability(device) >= OVERLAP_SINCE
        self.weights, self.state, self.matvec_lanes, self.overlap = weights, state, matvec_lanes, overlap
        self.width, self.inner, self.vocab = config.hidden_size, config.intermediate_size, config.vocab_size
        self.heads, self.size = config.num_attention_heads, config.head_size
        assert config.num_key_value_heads is not None
        self.kv_heads = config.num_key_value_heads
        most = power_of_two(state.rows)
        few = min(most, power_of_two(matvec_lanes))
        self.blocks = triton.cdiv(self.vocab, BLOCK_VOCAB)

        def new(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self.lanes = new(most, dtype=torch.int32)
        self.x = new(most, self.width)
        self.normed = new(most, self.width, dtype=weights.dtype)
        self.qkv = new(most, (self.heads + 2 * self.kv_heads) * self.size, dtype=weights.dtype)
        self.attended = new(most, self.width, dtype=weights.dtype)
        self.gated = new(most, self.inner, dtype=weights.dtype)
        self.few_logits = new(few, self.vocab)
        most_parts = max(n * self.splits(n) for n in range(1, few + 1))
        self.parts = new(most_parts * self.width)
        self.tops, self.totals = new(most_parts * self.heads), new(most_parts * self.heads)
        self.best, self.peak, self.total = (new(most, self.blocks) for _ in range(3))
        self.which = new(most, self.blocks, dtype=torch.int32)
        self.threshold = new(most)
        self.rows: Tensor = self.lanes[:0].long()
        self.bucket = 0
        self.logits: Tensor = self.few_logits

    def splits(self, lanes: int) -> int:
        """Parts that the slots of a lane are read in, so that a few lanes still fill the GPU."""
        wanted = max(1, 64 // (lanes * self.state.heads))
        # What puts them together holds all parts of a lane in registers.
        return max(1, min(16, power_of_two(wanted), TILE // power_of_two(self.width)))

    def set_rows(self, rows: Sequence[int]) -> None:
        """The rows that the next calls work on."""
        self.bucket = power_of_two(len(rows))
        self.rows = torch.tensor(list(rows), device=self.lanes.device)
        self.lanes[: self.bucket] = -1
        self.lanes[: len(rows)] = self.rows.to(torch.int32)
        self._embed()

    def read(self, rows: Tensor, ids: Tensor, lengths: Tensor) -> Tensor:
        """`gpu_step.read`."""
        return read(self.weights, self.state, rows, ids, lengths)

    def feed(self) -> None:
        """Append each row's token and keep the next logits."""
        self._feed()
        self._keep_logits()

    def _keep_logits(self) -> None:
        self.state.logits[self.rows] = self.logits[: len(self.rows)]
        self.state.length[self.rows] += self.state.active[self.rows]

    def pick(self, filtered: bool) -> None:
        """Draw from the logits that a prefill left."""
        waiting = torch.zeros(self.bucket, self.vocab, device=self.lanes.device)
        waiting[: len(self.rows)] = self.state.logits[self.rows]
        self.logits = waiting
        self._sample(filtered, fed=False)

    def draw(self, filtered: bool, steps: int) -> None:
        """Append each row's token and draw the next, `steps` times."""
        for _ in range(steps):
            self._step(filtered)

    def _step(self, filtered: bool) -> None:
        self._feed()
        self._sample(filtered, fed=True)

    def _launch(self) -> dict[str, bool]:
        """Between matrix-vector kernels, each may start while the one before still runs."""
        overlap = self.overlap and 0 < self.bucket <= self.matvec_lanes
        return {"OVERLAP": overlap} | ({"launch_pdl": True} if overlap else {})

    def _embed(self) -> None:
        tokens = self.state.token[self.rows].long()
        self.x[: len(self.rows)] = self.weights.embedding[tokens].float()

    def _feed(self) -> None:
        if self.bucket <= self.matvec_lanes:
            self._feed_few()
        else:
            self._feed_many()

    def _feed_few(self) -> None:
        lanes, splits, weights = self.bucket, self.splits(self.bucket), self.weights
        for index, layer in enumerate(weights.layers):
            self._matvec(project_kernel, self.x, layer.input_norm, layer.qkv, self.qkv, lanes)
            self._attend(layer, index, lanes, splits, parts=True)
            self._output(self.parts, layer.output, layer.input_residual, lanes, splits)
            self._matvec(gated_kernel, self.x, layer.mlp_norm, layer.gate_up, self.gated, lanes)
            self._output(self.gated, layer.down, layer.mlp_residual, lanes, 0)
        self._matvec(project_kernel, self.x, weights.norm, weights.head, self.few_logits, lanes)
        self.logits = self.few_logits

    def _feed_many(self) -> None:
        lanes, weights, eps = self.bucket, self.weights, self.weights.config.rms_norm_eps
        tile = {"K": self.width, "KP": power_of_two(self.width), "num_warps": 2 if self.width <= 512 else 4}
        norms = [layer.input_norm for layer in weights.layers[1:]] + [weights.norm]
        norm_kernel[(lanes,)](self.x, weights.layers[0].input_norm, self.normed, eps, **tile)
        normed, attended, gated = self.normed[:lanes], self.attended[:lanes], self.gated[:lanes]
        for index, layer in enumerate(weights.layers):
            torch.mm(normed, layer.qkv.t(), out=self.qkv[:lanes])
            self._attend(layer, index, lanes, 1, parts=False)
            delta = torch.mm(attended, layer.output.t())
            residual_norm_kernel[(lanes,)](self.x, delta, layer.input_residual, layer.mlp_norm, normed, eps, **tile)
            gate_up = torch.mm(normed, layer.gate_up.t())
            block = min(1024, power_of_two(self.inner))
            silu_kernel[(lanes, triton.cdiv(self.inner, block))](gate_up, gated, N=self.inner, BN=block)
            delta = torch.mm(gated, layer.down.t())
            residual_norm_kernel[(lanes,)](self.x, delta, layer.mlp_residual, norms[index], normed, eps, **tile)
        self.logits = head_logits(normed, weights.head)

    def _matvec(self, kernel: Any, x: Tensor, norm: Tensor, matrix: Tensor, out: Tensor, lanes: int) -> None:
        outputs = out.shape[1]
        tile = matvec_tile(outputs, matrix.shape[1])
        eps = self.weights.config.rms_norm_eps
        options = tile | self._launch()
        kernel[(triton.cdiv(outputs, tile["BN"]),)](x, norm, matrix, out, eps, outputs, M=lanes, **options)

    def _output(self, source: Tensor, matrix: Tensor, residual: Tensor, lanes: int, splits: int) -> None:
        tile = matvec_tile(self.width, matrix.shape[1])
        output_kernel[(triton.cdiv(self.width, tile["BN"]),)](
            *(source, self.tops, self.totals, matrix, residual, self.x, self.width),
            **(tile | {"M": lanes, "H": self.heads, "SPLITS": splits} | self._launch()),
        )

    def _attend(self, layer: LayerWeights, index: int, lanes: int, splits: int, parts: bool) -> None:
        state, weights, config = self.state, self.weights, self.weights.config
        block, warps, stages = ATTEND_PARTS if parts else ATTEND_WHOLE
        attend_kernel[(lanes, state.heads, splits)](
            self.qkv,
            *(layer.q_norm, layer.k_norm, layer.dt, layer.A, weights.inv_freq),
            *(self.lanes, state.active, state.length),
            *(state.keys[index], state.values[index], state.scores[index], state.positions[index]),
            state.victims[0, index],
            *(self.parts if parts else self.attended, self.tops, self.totals),
            *(state.victims.stride(0), state.slots, config.rms_norm_eps, self.size**-0.5, weights.rope_scaling),
            SLOTS_P=power_of_two(state.slots),
            H=self.heads,
            KV=self.kv_heads,
            G=state.heads,
            D=self.size,
            DP=max(16, power_of_two(self.size)),
            RP=max(16, power_of_two(self.heads // state.heads)),
            WIDE=power_of_two(self.kv_heads * self.size),
            BN=block,
            SPLITS=splits,
            PARTS=parts,
            NORM=layer.q_norm is not None,
            PRECISION="ieee",
            num_warps=warps,
            num_stages=stages,
            **self._launch(),
        )

    def _sample(self, filtered: bool, fed: bool) -> None:
        state, lanes = self.state, self.bucket
        adjusting = (state.seen, state.penalty, state.temperature)
        if filtered:
            threshold_kernel[(lanes,)](
                *(self.logits, self.lanes, state.active, *adjusting, state.top_k, state.top_p, state.min_p),
                *(self.threshold, self.vocab),
                VP=power_of_two(self.vocab),
                num_warps=16,
                **self._launch(),
            )
        found = (self.best, self.which, self.peak, self.total)
        scan_kernel[(lanes, self.blocks)](
            *(self.logits, self.lanes, state.active, state.length, state.seed, *adjusting, self.threshold, *found),
            self.vocab,
            FED=int(fed),
            FILTERED=filtered,
            BV=BLOCK_VOCAB,
            **self._launch(),
        )
        record_kernel[(lanes,)](
            *(self.logits, self.lanes, state.active, *found, state.tokens, state.log_probs, state.token, state.seen),
            *(state.length, state.count, state.budget, state.stopped, state.stops, self.weights.embedding, self.x),
            *(self.vocab, state.tokens.shape[1], self.blocks),
            FED=int(fed),
            BP=power_of_two(self.blocks),
            K=self.width,
            KP=power_of_two(self.width),
            num_warps=1,
            **self._launch(),
        )


def matvec_tile(outputs: int, inputs: int) -> dict[str, int]:
    """How a matrix-vector kernel is cut: some 128 programs at least, and a tile that stays in registers."""
    wide = power_of_two(inputs)
    rows = max(1, min(TILE // wide, 1 << max(0, (outputs // 128).bit_length() - 1)))
    return {"K": inputs, "KP": wide, "BN": rows, "num_warps": max(1, min(8, rows * wide // 1024))}


Reader = tuple[torch.cuda.CUDAGraph, tuple[Tensor, Tensor, Tensor], Tensor]
"""The graph of `read`, its rows, ids and lengths, and its logits."""


class GraphedStep(KernelStep):
    """`KernelStep` replayed from CUDA graphs, captured at the first use of each number of lanes."""

    def __init__(
        self, weights: DecodeWeights, state: SlotState, matvec_lanes: int = MATVEC_LANES, overlap: bool | None = None
    ) -> None:
        super().__init__(weights, state, matvec_lanes, overlap)
        self._graphs: dict[tuple[int, str, int], tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self._readers: dict[tuple[int, int], Reader] = {}
        self._pool: Any = torch.cuda.graph_pool_handle()

    def read(self, rows: Tensor, ids: Tensor, lengths: Tensor) -> Tensor:
        """`gpu_step.read`, from a graph where launches and not arithmetic take the time."""
        batch, longest = power_of_two(len(ids)), max(16, power_of_two(ids.shape[1]))
        if batch * longest > GRAPHED_PROMPT or longest > self.state.slots:
            return super().read(rows, ids, lengths)
        key = (batch, longest)
        if key not in self._readers:
            self._readers[key] = self._capture_reader(batch, longest, rows)
        graph, (rows_in, ids_in, lengths_in), logits = self._readers[key]
        # The last prompt stands in for those that are missing: written twice, its row holds the same.
        for into, given in ((rows_in, rows), (ids_in[:, : ids.shape[1]], ids), (lengths_in, lengths)):
            into[: len(given)] = given
            into[len(given) :] = given[-1]
        graph.replay()
        return logits[: len(ids)]

    def _capture_reader(self, batch: int, longest: int, rows: Tensor) -> Reader:
        device = rows.device
        # Compiled on a row that is about to be overwritten.
        rows_in = rows[-1:].repeat(batch)
        ids_in, lengths_in = torch.zeros(batch, longest, dtype=torch.long, device=device), torch.ones_like(rows_in)

        graph, logits = self._capture(lambda: read(self.weights, self.state, rows_in, ids_in, lengths_in))
        return graph, (rows_in, ids_in, lengths_in), logits

    def feed(self) -> None:
        """Append each row's token and keep the next logits."""
        self._replay("feed", self._feed)
        self._keep_logits()

    def draw(self, filtered: bool, steps: int) -> None:
        """Append each row's token and draw the next, `steps` times."""
        name, body = f"draw {filtered}", partial(self._step, filtered)
        whole = steps // STEPS_PER_GRAPH if self.bucket <= self.matvec_lanes else 0
        for _ in range(whole):
            self._replay(name, body, STEPS_PER_GRAPH)
        for _ in range(steps - whole * STEPS_PER_GRAPH):
            self._replay(name, body)

    def _replay(self, name: str, body: Callable[[], None], times: int = 1) -> None:
        key = (self.bucket, name, times)
        if key not in self._graphs:
            # With no lane at work: a kernel that finds no row changes nothing.
            lanes = self.lanes.clone()
            self.lanes.fill_(-1)
            graph, _ = self._capture(body, times)
            self._graphs[key] = graph, self.logits
            self.lanes.copy_(lanes)
            self._embed()
        graph, self.logits = self._graphs[key]
        graph.replay()

    def _capture(self, body: Callable[[], Any], times: int = 1) -> tuple[torch.cuda.CUDAGraph, Any]:
        """A graph of `times` runs of `body`, and what the last one returned; it runs once before, to be compiled."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            body()
        torch.cuda.current_stream().wait_stream(stream)
        graph, found = torch.cuda.CUDAGraph(), None
        with torch.cuda.graph(graph, pool=self._pool):
            for _ in range(times):
                found = body()
        return graph, found
