"""Forward and backward of a micro-batch as one CUDA graph.

A step of a small model is about a thousand kernels, and the host takes longer to launch them one by one than the GPU
to run them. Captured once, they are launched by one call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from accelerate import DistributedType
from torch import Tensor, nn

WARM_UP = 2
"""Micro-batches of the same shapes before one is captured: by then everything has been compiled and chosen."""

ROWS, COUNT = ("input_ids", "labels"), "num_items_in_batch"

Inputs = dict[str, Tensor]


class StepGraph:
    """Calls `step`, and from the third micro-batch of the same shapes on replays what it launched on the GPU.

    `step` is captured anew when shapes change, or which parameters learn. It must wait for nothing on the GPU, and what
    it does on the host is not done again. While there is a graph, each gradient stays at one place, is added to by
    every micro-batch, and starts from zero where it has been set to None.

    Args:
        step: Forward and backward of a micro-batch; returns the loss.
        parameters: Those whose gradients it makes.
    """

    def __init__(self, step: Callable[[Inputs], Tensor], parameters: Iterable[nn.Parameter]) -> None:
        self._step = step
        self._parameters = list(parameters)
        self._signature: Any = None
        self._seen = 0
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, inputs: Inputs) -> Tensor:
        signature = (
            [(name, x.shape, x.dtype) for name, x in inputs.items()],
            [parameter.requires_grad for parameter in self._parameters],
        )
        if signature != self._signature:
            self._signature, self._seen, self._graph = signature, 0, None
        if self._graph is None:
            self._seen += 1
            if self._seen <= WARM_UP:
                return self._step(inputs)
            self._graph = self._capture(inputs)
        for name, x in inputs.items():
            self._inputs[name].copy_(x)
        self._attach_gradients()
        self._graph.replay()
        return self._loss.clone()

    def _capture(self, inputs: Inputs) -> torch.cuda.CUDAGraph:
        trained = [parameter for parameter in self._parameters if parameter.requires_grad]
        before = [parameter.grad for parameter in trained]
        for parameter in trained:
            parameter.grad = None
        self._inputs = {name: x.clone() for name, x in inputs.items()}
        # Once beside the current stream, as a capture asks for; it also makes the gradients that the graph adds to.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._step(self._inputs)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads, which pin the memory of batches to come, may go on.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._loss = self._step(self._inputs)
        self._gradients = [(p, p.grad) for p in trained if p.grad is not None]
        for parameter, grad in zip(trained, before, strict=True):
            parameter.grad = grad
        return graph

    def _attach_gradients(self) -> None:
        fresh = [grad for parameter, grad in self._gradients if parameter.grad is None]
        if fresh:
            torch._foreach_zero_(fresh)
        for parameter, grad in self._gradients:
            if parameter.grad is None:
                parameter.grad = grad
            elif parameter.grad is not grad:
                grad.copy_(parameter.grad)
                parameter.grad = grad


class GraphedSteps:
    """Mixin for a trainer of packed rows: with `cuda_graph`, its micro-batches run as a `StepGraph`.

    Only what was tried is captured: compiled layers, one process with one GPU and without DeepSpeed or FSDP, no loss
    scale, activations kept, rows without document masks.
    """

    args: Any
    accelerator: Any
    step_graph: StepGraph | None = None

    def training_step(self, model: nn.Module, inputs: Inputs, num_items_in_batch: Tensor | None = None) -> Tensor:
        step = super().training_step  # type: ignore[misc]
        if not self._captured(inputs):
            return step(model, inputs, num_items_in_batch)

        def by_name(given: Inputs) -> Tensor:
            return step(model, {name: given[name] for name in ROWS}, given.get(COUNT))

        if self.step_graph is None:
            self.step_graph = StepGraph(by_name, model.parameters())
        counted = {} if num_items_in_batch is None else {COUNT: num_items_in_batch}
        return self.step_graph(self._prepare_inputs(inputs | counted))  # type: ignore[attr-defined]

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        # A graph keeps a micro-batch's memory for itself; the next micro-batches make another one.
        self.step_graph = None
        return super().evaluate(*args, **kwargs)  # type: ignore[misc]

    def _captured(self, inputs: Inputs) -> bool:
        args = self.args
        alone = args.device.type == "cuda" and self.accelerator.distributed_type == DistributedType.NO
        plain = args.compile_layers and not args.fp16 and not args.gradient_checkpointing
        return args.cuda_graph and alone and plain and args.n_gpu == 1 and set(inputs) == set(ROWS)
