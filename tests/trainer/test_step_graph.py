"""A micro-batch that is captured and replayed is the micro-batch itself, gradients summed over micro-batches too.

On a CPU a stand-in for the CUDA graph runs the step again; on a GPU (`pytest tests/trainer/test_step_graph.py -m gpu`)
the captured kernels must give the same bits.
"""

from __future__ import annotations

import gc
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from accelerate import DistributedType
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from small_doge import DogeConfig, DogeForCausalLM
from small_doge.models.wonderful_matrices.configuration_wonderful_matrices import WonderfulMatricesConfig
from small_doge.ops.products import tuned
from small_doge.trainer.setup import compile_layers
from small_doge.trainer.step_graph import WARM_UP, GraphedSteps, StepGraph, capturable


class StandIn:
    """Runs what was captured again, as a replay would, and counts."""

    def __init__(self) -> None:
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1
        self.again()


@pytest.fixture
def graphs(monkeypatch) -> list[StandIn]:
    made: list[StandIn] = []

    def new() -> StandIn:
        made.append(StandIn())
        return made[-1]

    @contextmanager
    def nothing(*args, **kwargs):
        yield

    stream = SimpleNamespace(wait_stream=lambda other: None)
    for name, value in {
        "CUDAGraph": new,
        "graph": nothing,
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "stream": nothing,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return made


class Steps:
    """A small model's micro-batches, each with its loss at one place in memory."""

    def __init__(self, graphs: list[StandIn]) -> None:
        torch.manual_seed(0)
        self.graphs = graphs
        self.model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
        self.loss = torch.zeros(())

    def __call__(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        learning = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        added = learning[0].grad is not None
        loss = self.model(inputs["x"]).square().mean()
        loss.backward()
        if self.graphs:
            places = [parameter.grad for parameter in learning]
            self.graphs[-1].again = lambda: self.write(inputs, learning, places, added)
        return self.loss.copy_(loss.detach())

    def write(self, inputs, learning, places, added: bool) -> None:
        """What the captured kernels do: loss and gradients go to where they were made, whatever is there.

        Had there been gradients before, it would have been captured that the new ones are added to them.
        """
        loss = self.model(inputs["x"]).square().mean()
        for place, grad in zip(places, torch.autograd.grad(loss, learning), strict=True):
            place.add_(grad) if added else place.copy_(grad)
        self.loss.copy_(loss.detach())


def train(step, model: nn.Module, batches: list[torch.Tensor], accumulation: int) -> list[float]:
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    losses = []
    for number, x in enumerate(batches, 1):
        losses.append(step({"x": x}).item())
        if number % accumulation == 0:
            optimizer.step()
            optimizer.zero_grad()
    return losses


@pytest.mark.parametrize("accumulation", [1, 2, 4, 5])
def test_losses_are_those_of_the_plain_step_while_the_gradients_of_micro_batches_add_up(accumulation, graphs):
    batches = list(torch.randn(12, 5, 3))
    plain, steps = Steps([]), Steps(graphs)
    expected = train(plain, plain.model, batches, accumulation)
    found = train(StepGraph(steps, steps.model.parameters()), steps.model, batches, accumulation)
    assert found == expected
    # From the first step of the optimizer that begins after the warm-up.
    before = -(-WARM_UP // accumulation) * accumulation
    assert [graph.replays for graph in graphs] == [12 - before]


def test_the_first_of_several_gradients_is_kept_where_it_is_told(graphs):
    steps, kept = Steps(graphs), {}

    def keep(gradients):
        kept.update((parameter, grad.clone()) for parameter, grad in gradients)
        return [kept[parameter] for parameter, _ in gradients]

    step = StepGraph(steps, steps.model.parameters(), keep)
    batches = torch.randn(WARM_UP + 3, 5, 3)
    for x in batches[:WARM_UP]:
        step({"x": x})
        steps.model.zero_grad()
    for x in batches[WARM_UP:]:
        step({"x": x})
    assert all(parameter.grad is kept[parameter] for parameter in steps.model.parameters())
    grads = [parameter.grad.clone() for parameter in steps.model.parameters()]
    steps.model.zero_grad()
    for x in batches[WARM_UP:]:
        steps.model(x).square().mean().backward()
    for parameter, grad in zip(steps.model.parameters(), grads, strict=True):
        torch.testing.assert_close(grad, parameter.grad)


def test_gradients_may_be_clipped_and_zeroed_where_they_lie(graphs):
    weights = []
    for steps in (Steps([]), Steps(graphs)):
        step = StepGraph(steps, steps.model.parameters()) if steps.graphs is graphs else steps
        optimizer = torch.optim.SGD(steps.model.parameters(), 0.1)
        for number, x in enumerate(torch.randn(9, 5, 3, generator=torch.Generator().manual_seed(0))):
            step({"x": x})
            nn.utils.clip_grad_norm_(steps.model.parameters(), 0.1)
            optimizer.step()
            # A graph is captured where there are no gradients; zeros are some.
            optimizer.zero_grad(set_to_none=number < WARM_UP)
        weights.append([parameter.detach().clone() for parameter in steps.model.parameters()])
    assert [graph.replays for graph in graphs] == [9 - WARM_UP]
    assert all(torch.equal(*pair) for pair in zip(*weights, strict=True))


def test_other_shapes_and_parameters_that_learn_anew_are_captured_anew(graphs):
    steps = Steps(graphs)
    graph = StepGraph(steps, steps.model.parameters())
    for rows, frozen in ((5, False), (4, False), (4, True)):
        steps.model[0].weight.requires_grad_(not frozen)
        for _ in range(WARM_UP + 2):
            steps.model.zero_grad()
            graph({"x": torch.randn(rows, 3)})
    assert [graph.replays for graph in graphs] == [2, 2, 2]
    assert steps.model[0].weight.grad is None and steps.model[1].weight.grad is not None


def test_a_loss_that_was_returned_stays_as_it_is(graphs):
    steps = Steps(graphs)
    graph = StepGraph(steps, steps.model.parameters())
    losses = []
    for value in range(WARM_UP + 3):
        losses.append(graph({"x": torch.full((2, 3), float(value))}))
        steps.model.zero_grad()
    assert len({loss.item() for loss in losses[WARM_UP:]}) == 3


def test_products_are_tried_in_the_run_before_a_capture(graphs):
    steps, patience = Steps(graphs), []

    def step(inputs):
        patience.append(tuned._patience)
        return steps(inputs)

    train(StepGraph(step, steps.model.parameters()), steps.model, list(torch.randn(WARM_UP + 2, 5, 3)), 1)
    assert patience == [tuned.PATIENCE] * WARM_UP + [0, tuned.PATIENCE]


class Plain:
    """A trainer whose loss tells which rows and which count it was given."""

    graphs: list[StandIn] = []

    def training_step(self, model, inputs, num_items_in_batch=None):
        def told():
            return (100 * inputs["input_ids"].sum() + 10 * inputs["labels"].sum() + num_items_in_batch).clone()

        loss = told()
        if self.graphs:
            self.graphs[-1].again = lambda: loss.copy_(told())
        return loss

    def evaluate(self):
        return {"eval_loss": 1.0, "graph kept": self.step_graph is not None}

    def _wrap_model(self, model, training, dataloader):
        return model


class Model(nn.Linear):
    def __init__(self, **fields):
        super().__init__(1, 1)
        self.config = DogeConfig(**fields)
        self.config._attn_implementation = fields.get("_attn_implementation", "sdpa")


class Graphed(GraphedSteps, Plain):
    def __init__(self, **changes):
        given = {"cuda_graph": True, "compile_layers": True, "fp16": False, "gradient_checkpointing": False}
        given |= {"torch_empty_cache_steps": None, "optim": "adamw_torch_fused", "world_size": 1}
        given |= {"ddp_find_unused_parameters": False, "ddp_broadcast_buffers": False, "document_masking": False}
        self.args = SimpleNamespace(device=torch.device("cuda"), **given | changes)
        self.accelerator = SimpleNamespace(
            distributed_type=DistributedType.NO,
            sync_gradients=False,
            prepare_model=lambda model, evaluation_mode=False: "as it is" if evaluation_mode else "wrapped",
        )
        self.model, self.train_dataset = Model(), [{"input_ids": [3, 4, 5]}]

    def _prepare_inputs(self, inputs):
        return inputs


def rows(number: int = 0) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.full((2, 3), float(number)), "labels": torch.full((2, 3), float(number + 1))}


COUNT = torch.tensor(4.0)


def test_a_captured_step_reads_the_rows_and_the_count_of_each_micro_batch(graphs):
    trainer, plain, model = Graphed(), Plain(), Model()
    trainer.graphs = graphs
    for number in range(WARM_UP + 4):
        given = rows(number), torch.tensor(float(7 * number))
        assert trainer.training_step(model, *given).item() == plain.training_step(model, *given).item()
    assert [graph.replays for graph in graphs] == [4]


def test_an_evaluation_has_the_memory_of_the_graph():
    trainer = Graphed()
    trainer.training_step(Model(), rows(), COUNT)
    assert trainer.step_graph is not None
    assert trainer.evaluate() == {"eval_loss": 1.0, "graph kept": False}


@pytest.mark.parametrize(
    "changes",
    [
        {"cuda_graph": False},
        {"compile_layers": False},
        {"fp16": True},
        {"gradient_checkpointing": True},
        {"torch_empty_cache_steps": 4},
        {"optim": "galore_adamw_layerwise"},
        {"device": torch.device("cpu")},
    ],
    ids=str,
)
def test_a_trainer_that_was_not_tried_captures_nothing(changes):
    trainer = Graphed()
    vars(trainer.args).update(changes)
    trainer.training_step(Model(), rows(), COUNT)
    assert trainer.step_graph is None


@pytest.mark.parametrize(
    "fields",
    [
        {"keep_window_size": 2},
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}},
        {"hidden_dropout": 0.1},
        {"is_moe": True, "num_experts": 9216},
        {"_attn_implementation": "doge_blocked"},
    ],
    ids=str,
)
def test_a_model_that_was_not_tried_is_not_captured(fields):
    assert capturable(Model().config, 3) and not capturable(Model(**fields).config, 3)


def test_a_run_that_is_not_captured_is_told_once(caplog):
    trainer = Graphed()
    for _ in range(2):
        trainer.training_step(Model(hidden_dropout=0.1), rows(), COUNT)
    assert [record.message for record in caplog.records].count(caplog.records[0].message) == 1
    assert "it goes on without" in caplog.records[0].message


def test_the_first_generation_rows_with_document_masks_and_other_engines_are_not_captured():
    assert not capturable(WonderfulMatricesConfig(), 3)
    trainer = Graphed()
    trainer.training_step(Model(), rows() | {"position_ids": torch.zeros(2, 3)}, COUNT)
    trainer.accelerator.distributed_type = DistributedType.FSDP
    trainer.training_step(Model(), rows(), COUNT)
    assert trainer.step_graph is None


class Exchange:
    """Counts instead of exchanging."""

    def __init__(self, model):
        self.averaged = 0

    def keep(self, gradients):
        return [grad.clone() for _, grad in gradients]

    def average(self):
        self.averaged += 1


def of_two_gpus(monkeypatch, local: str = "2", kind=DistributedType.MULTI_GPU, **changes) -> Graphed:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
    monkeypatch.setattr("small_doge.trainer.step_graph.GradientExchange", Exchange)
    trainer = Graphed(world_size=2, **changes)
    trainer.accelerator.distributed_type = kind
    return trainer


def test_the_gpus_of_one_host_capture_and_exchange_at_the_end_of_a_step(graphs, monkeypatch):
    trainer = of_two_gpus(monkeypatch)
    trainer.graphs = graphs
    for _ in range(2):  # An evaluation wraps too, and once is enough.
        assert trainer._wrap_model(trainer.model) is trainer.model
    trainer._wrap_model(trainer.model, training=False)
    assert trainer.accelerator.prepare_model(trainer.model) == "as it is"
    for number in range(1, 9):
        trainer.accelerator.sync_gradients = number % 2 == 0
        trainer.training_step(trainer.model, rows(number), COUNT)
    assert trainer.exchange.averaged == 4
    assert trainer.step_graph._keep == trainer.exchange.keep
    assert [graph.replays for graph in graphs] == [8 - WARM_UP]


@pytest.mark.parametrize(
    "changes",
    [
        {"local": "1"},
        {"kind": DistributedType.FSDP},
        {"kind": DistributedType.DEEPSPEED},
        {"ddp_broadcast_buffers": True},
        {"cuda_graph": False},
        {"ddp_find_unused_parameters": True},
        {"document_masking": True},
        {"gradient_checkpointing": True},
    ],
    ids=str,
)
def test_other_runs_of_several_gpus_are_left_to_accelerate(changes, graphs, monkeypatch):
    trainer = of_two_gpus(monkeypatch, **changes)
    trainer._wrap_model(trainer.model)
    assert trainer.accelerator.prepare_model(trainer.model) == "wrapped"
    trainer.training_step(trainer.model, rows(), COUNT)
    assert trainer.exchange is None and trainer.step_graph is None


def test_a_model_that_is_not_captured_is_left_to_accelerate(monkeypatch):
    trainer = of_two_gpus(monkeypatch)
    trainer.model = Model(hidden_dropout=0.1)
    trainer._wrap_model(trainer.model)
    assert trainer.accelerator.prepare_model(trainer.model) == "wrapped"


def test_a_capture_that_fails_names_the_mend(graphs, monkeypatch):
    @contextmanager
    def broken(*args, **kwargs):
        yield
        raise RuntimeError("operation failed due to a previous error during capture")

    monkeypatch.setattr(torch.cuda, "graph", broken)
    steps = Steps(graphs)
    graph = StepGraph(steps, steps.model.parameters())
    with pytest.raises(ValueError, match="set cuda_graph: false, or a smaller"):
        train(graph, steps.model, list(torch.randn(4, 5, 3)), 1)
    assert gc.isenabled()


def host_reads(model: DogeForCausalLM) -> int:
    """How often a micro-batch of a model asks a tensor for a number: on a GPU, a wait, which no capture allows."""

    class Reads(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.count += func is torch.ops.aten._local_scalar_dense.default
            return func(*args, **(kwargs or {}))

    ids = torch.randint(3, 60, (2, 24))
    with Reads() as reads:
        model(input_ids=ids, labels=ids, loss_only=True, num_items_in_batch=torch.tensor(46)).loss.backward()
    return reads.count


MIXTURE = {"is_moe": True, "num_experts": 16, "num_experts_per_tok": 4, "output_router_logits": True}


@pytest.mark.parametrize("fields", [{}, MIXTURE], ids=["dense", "mixture"])
def test_what_is_captured_asks_the_device_for_nothing(fields):
    small = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    small |= {"num_attention_heads": 2, "num_key_value_heads": 1}
    model = DogeForCausalLM(DogeConfig(**small, **fields)).train()
    assert capturable(model.config, 24) and host_reads(model) == 0
    dynamic = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    assert host_reads(DogeForCausalLM(DogeConfig(**small, **fields, rope_parameters=dynamic)).train()) > 0


@pytest.mark.gpu
@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("kind", ["dense", "mixture"])
def test_on_a_gpu_losses_and_weights_are_the_same_bits(kind, accumulation):
    # As many experts a token as the kernels choose: torch's own gradient of a longer choice adds in any order.
    mixture = {"is_moe": True, "num_experts": 256, "num_experts_per_tok": 16, "output_router_logits": True}
    fields = mixture if kind == "mixture" else {}
    torch.manual_seed(0)
    model = DogeForCausalLM(DogeConfig.from_size("20M", num_hidden_layers=2, **fields)).cuda().train()
    # Compiled once: what is compiled again may add in another order.
    compile_layers(model)
    start = [parameter.detach().clone() for parameter in model.parameters()]

    def micro_batch(inputs):
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(input_ids=inputs["x"], labels=inputs["x"], loss_only=True).loss
        loss.backward()
        return loss.detach()

    found = []
    for step in (micro_batch, StepGraph(micro_batch, model.parameters())):
        with torch.no_grad():
            for parameter, value in zip(model.parameters(), start, strict=True):
                parameter.copy_(value)
        batches = list(
            torch.randint(0, 32768, (9, 4, 256), device="cuda", generator=torch.Generator("cuda").manual_seed(1))
        )
        losses = train(step, model, batches, accumulation)
        found.append((losses, [parameter.detach().clone() for parameter in model.parameters()]))
    assert found[0][0] == found[1][0]
    names = [name for name, _ in model.named_parameters()]
    assert [name for name, *pair in zip(names, found[0][1], found[1][1], strict=True) if not torch.equal(*pair)] == []
