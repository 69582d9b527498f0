"""Forward and backward of a micro-batch as one CUDA graph.

A step of a small model is about a thousand kernels, and the host takes longer to launch them one by one than the GPU
to run them. Captured once, they are launched by one call.
"""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import torch
from accelerate import DistributedType
from torch import Tensor, nn

from small_doge.models.doge.configuration_doge import DogeConfig
from small_doge.models.doge.rotary_doge import STATIC_ROPES
from small_doge.ops.expert_retrieval import DENSE_EXPERTS
from small_doge.trainer.gradient_exchange import GradientExchange

logger = logging.getLogger(__name__)

WARM_UP = 2
"""Micro-batches of the same shapes before one is captured."""

ROWS, COUNT = ("input_ids", "labels"), "num_items_in_batch"

Inputs = dict[str, Tensor]
Gradients = list[tuple[nn.Parameter, Tensor]]


class Captured(NamedTuple):
    """A graph, and where it reads its inputs and leaves its loss and gradients."""

    graph: torch.cuda.CUDAGraph
    inputs: Inputs
    loss: Tensor
    gradients: Gradients


class StepGraph:
    """Calls `step`, and once micro-batches of the same shapes have been seen replays what it launched on the GPU.

    It is captured at the beginning of an optimizer's step, when no parameter has a gradient, and anew when shapes
    change or which parameters learn. It must wait for nothing on the GPU, and what it does on the host is not done
    again. A replay writes each gradient to the same place anew: that of a step's first micro-batch is used where it
    lies, and only where others follow are they summed elsewhere.

    Args:
        step: Forward and backward of a micro-batch; returns the loss.
        parameters: Those whose gradients it makes.
        keep: Copies the gradients of a step's first micro-batch to where others are added; clones if left out.
    """

    def __init__(
        self,
        step: Callable[[Inputs], Tensor],
        parameters: Iterable[nn.Parameter],
        keep: Callable[[Gradients], list[Tensor]] | None = None,
    ) -> None:
        self._step = step
        self._parameters = list(parameters)
        self._keep = keep or (lambda gradients: [grad.clone() for _, grad in gradients])
        self._signature: Any = None
        self._seen = 0
        self._captured: Captured | None = None

    def __call__(self, inputs: Inputs) -> Tensor:
        signature = (
            [(name, x.shape, x.dtype) for name, x in inputs.items()],
            [parameter.requires_grad for parameter in self._parameters],
        )
        if signature != self._signature:
            self._signature, self._seen, self._captured = signature, 0, None
        if self._captured is None:
            self._seen += 1
            if self._seen <= WARM_UP or any(parameter.grad is not None for parameter in self._parameters):
                return self._step(inputs)
            self._captured = self._capture(inputs)
        graph, places, loss, gradients = self._captured
        for name, x in inputs.items():
            places[name].copy_(x)
        first = [(parameter, grad) for parameter, grad in gradients if parameter.grad is grad]
        if first:
            for (parameter, _), kept in zip(first, self._keep(first), strict=True):
                parameter.grad = kept
        graph.replay()
        summed = [(parameter.grad, grad) for parameter, grad in gradients if parameter.grad is not None]
        if summed:
            totals, parts = zip(*summed, strict=True)
            torch._foreach_add_(totals, parts)
        for parameter, grad in gradients:
            if parameter.grad is None:
                parameter.grad = grad
        return loss.clone()

    def _capture(self, inputs: Inputs) -> Captured:
        # Not before, so that a model which brings its own code can register its own operators.
        from small_doge.ops.products.tuned import without_patience

        places = {name: x.clone() for name, x in inputs.items()}
        # Once beside the current stream, as a capture asks for; by then everything has been compiled and chosen.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), without_patience():
            self._step(places)
        torch.cuda.current_stream().wait_stream(stream)
        # Without gradients to add to, autograd leaves what is captured where it was made.
        self._forget_gradients()
        graph = torch.cuda.CUDAGraph()
        # What dies in a capture may free memory of the GPU, which would end it.
        gc.collect()
        gc.disable()
        try:
            # Other threads, which pin the memory of batches to come, may go on.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                loss = self._step(places)
        except RuntimeError as error:
            raise ValueError(
                "the step could not be captured as a CUDA graph, perhaps for want of memory: "
                "set cuda_graph: false, or a smaller per_device_train_batch_size."
            ) from error
        finally:
            gc.enable()
        gradients = [(parameter, parameter.grad) for parameter in self._parameters if parameter.grad is not None]
        self._forget_gradients()
        return Captured(graph, places, loss, gradients)

    def _forget_gradients(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None


def capturable(config: Any, length: int) -> bool:
    """Whether a model's micro-batch of rows so long is of those that were captured and compared on a GPU.

    A Doge whose window is as long as its rows, with at most as many experts as its products take whole. Angles that
    depend on the length are looked at by the host.
    """
    return (
        isinstance(config, DogeConfig)
        and config._attn_implementation == "sdpa"  # The choice of the op.
        and length <= config.keep_window_size
        and dict(config.rope_parameters or {})["rope_type"] in STATIC_ROPES
        and (config.num_experts <= DENSE_EXPERTS or not config.is_moe)
        and config.hidden_dropout == 0.0
    )


class GraphedSteps:
    """Mixin for a trainer of packed rows: with `cuda_graph`, its micro-batches run as a `StepGraph`.

    Only what was tried is captured: `capturable` models with compiled layers, one GPU or those of one host without
    DeepSpeed or FSDP, no loss scale, activations kept, rows without document masks, an optimizer that waits for all
    gradients. Where processes share a step, a `GradientExchange` does what DistributedDataParallel does otherwise.
    """

    args: Any
    model: Any
    train_dataset: Any
    accelerator: Any
    step_graph: StepGraph | None = None
    exchange: GradientExchange | None = None
    _exchanging = False
    _told = False

    def _wrap_model(self, model: nn.Module, training: bool = True, dataloader: Any = None) -> nn.Module:
        if training and not self._exchanging and self._exchanges_after():
            self._exchanging = True
            # So that accelerate casts, and leaves out DistributedDataParallel.
            self.accelerator.prepare_model = partial(self.accelerator.prepare_model, evaluation_mode=True)
        return super()._wrap_model(model, training, dataloader)  # type: ignore[misc]

    def training_step(self, model: nn.Module, inputs: Inputs, num_items_in_batch: Tensor | None = None) -> Tensor:
        if self._exchanging and self.exchange is None:
            self.exchange = GradientExchange(model)
        loss = self._micro_batch(model, inputs, num_items_in_batch)
        if self.exchange is not None and self.accelerator.sync_gradients:
            self.exchange.average()
        return loss

    def _micro_batch(self, model: nn.Module, inputs: Inputs, num_items_in_batch: Tensor | None) -> Tensor:
        step = super().training_step  # type: ignore[misc]
        if not self._to_capture(model, inputs):
            if self.args.cuda_graph and self.args.device.type == "cuda" and not self._told:
                logger.warning("this run is not one of those that are captured as a CUDA graph: it goes on without.")
                self._told = True
            return step(model, inputs, num_items_in_batch)
        if self.step_graph is None:
            keep = None if self.exchange is None else self.exchange.keep
            self.step_graph = StepGraph(_by_name(step, model), model.parameters(), keep)
        counted = {} if num_items_in_batch is None else {COUNT: num_items_in_batch}
        return self.step_graph(self._prepare_inputs(inputs | counted))  # type: ignore[attr-defined]

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        # A graph keeps a micro-batch's memory for itself; the next micro-batches make another one.
        self.step_graph = None
        return super().evaluate(*args, **kwargs)  # type: ignore[misc]

    def _exchanges_after(self) -> bool:
        """Whether gradients are exchanged after a captured backward pass: between the GPUs of one host alone.

        Through a network the exchange takes as long as a micro-batch, and has to go on beside it. What only
        DistributedDataParallel does in every step is left to it.
        """
        args = self.args
        one_host = os.environ.get("LOCAL_WORLD_SIZE") == str(args.world_size)
        several = self.accelerator.distributed_type == DistributedType.MULTI_GPU
        every_step = args.ddp_find_unused_parameters or args.ddp_broadcast_buffers
        if not (several and one_host and self._plain()) or every_step or args.document_masking:
            return False
        return capturable(self.model.config, len(self.train_dataset[0]["input_ids"]))

    def _to_capture(self, model: Any, inputs: Inputs) -> bool:
        alone = self.accelerator.distributed_type == DistributedType.NO
        tried = (alone or self.exchange is not None) and self._plain()
        return tried and set(inputs) == set(ROWS) and capturable(model.config, inputs["input_ids"].shape[1])

    def _plain(self) -> bool:
        args = self.args
        plain = args.cuda_graph and args.device.type == "cuda" and args.compile_layers
        plain = plain and not args.fp16 and not args.gradient_checkpointing and args.torch_empty_cache_steps is None
        return plain and not any(kind in args.optim for kind in ("layerwise", "lomo"))


def _by_name(step: Callable[..., Tensor], model: nn.Module) -> Callable[[Inputs], Tensor]:
    """A trainer's step with its count among the inputs, so that a graph finds both in one place."""
    return lambda given: step(model, {name: given[name] for name in ROWS}, given.get(COUNT))
