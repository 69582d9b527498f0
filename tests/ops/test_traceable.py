"""What torch.compile sees of the plain kernels: an input that a kernel seems to write would be copied first."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import sympy
import torch
from ops.interpreted_process import needs_triton
from torch._functorch.aot_autograd import aot_export_joint_simple
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

pytestmark = needs_triton


@pytest.fixture(autouse=True)
def a_gpu_to_compile_for(monkeypatch):
    """Triton's first stage, which the analysis reads, asks what GPU there is."""
    import triton
    from triton.backends.compiler import GPUTarget

    target = SimpleNamespace(get_current_target=lambda: GPUTarget("cuda", 90, 32))
    monkeypatch.setattr(triton.runtime.driver, "_active", target)


def learning(*shape: int) -> torch.Tensor:
    return torch.empty(shape, requires_grad=True)


def gated_unit():
    from small_doge.ops.swiglu.triton_swiglu import triton_swiglu

    return triton_swiglu, [learning(16, 128)]


def heads():
    from small_doge.ops.rotary_heads.triton_rotary import triton_normed_rotary_heads

    def rotate(*given):
        return sum(x.sum() for x in triton_normed_rotary_heads(*given, 4, 1e-6))

    weights = [learning(16), learning(16), learning(2, 32)]
    return rotate, [learning(2, 48, 128), *weights, torch.empty(1, 48, 16), torch.empty(1, 48, 16)]


def normed():
    from small_doge.ops.normed_residual.triton_backward import triton_normed_residual

    def both(*given):
        return sum(x.sum() for x in triton_normed_residual(*given, 1e-6))

    # More tokens than a program takes: a single one is compiled for by itself, once.
    return both, [learning(160, 24), learning(24), learning(24)]


def mixture():
    from small_doge.ops.expert_retrieval.triton_hidden import triton_hidden

    inputs = [learning(16, 65), learning(16, 4), torch.empty(16, 4, dtype=torch.long)]
    return lambda joint, scores, index: triton_hidden(joint, scores, index, 25), inputs


def search():
    from small_doge.ops.expert_retrieval.triton_search import triton_search

    return lambda scores: triton_search(scores, 4)[0], [learning(2, 16, 5)]


def count():
    from small_doge.ops.expert_retrieval.triton_count import triton_count

    return lambda x, index: x * triton_count(index, 25, None), [learning(25), torch.empty(16, 4, dtype=torch.long)]


WRITTEN = {
    gated_unit: [{"out_ptr"}, {"out_ptr"}],
    heads: [{"query_ptr", "key_ptr", "value_ptr", "dot_ptr"}, {"djoint_ptr", "dweight_ptr"}],
    normed: [{"dx_ptr", "part_ptr"}],
    mixture: [{"out_ptr"}, {"djoint_ptr", "dscores_ptr"}],
    search: [{"out_ptr"}],  # The search itself stays an operator that nothing looks into.
    count: [{"part_ptr"}],
}


@pytest.mark.parametrize("op", WRITTEN, ids=lambda op: op.__name__)
def test_kernels_write_their_outputs_and_nothing_else(op):
    with FakeTensorMode():
        function, inputs = op()
        graph = aot_export_joint_simple(lambda *given: (function(*given).sum(),), inputs, trace_joint=True)
    copied = [set(re.findall(r"'(\w+)'", names)) for names in re.findall(r"tensors_to_clone = \[(.*?)\]", graph.code)]
    assert copied == WRITTEN[op]


LENGTHS = {gated_unit: [{0}], heads: [{0, 1}, (), (), (), {1}, {1}], normed: [{0}, (), ()], mixture: [{0}, {0}, {0}]}
"""Which dimensions of the inputs are a batch's rows and their length."""


@pytest.mark.parametrize("op", LENGTHS, ids=lambda op: op.__name__)
def test_no_length_is_written_into_what_is_compiled(op):
    """Rows of a new length would be compiled anew, which torch gives up after eight times."""
    function, inputs = op()
    shapes = ShapeEnv()
    with FakeTensorMode(shape_env=shapes) as mode:
        fakes = []
        for x, free in zip(inputs, LENGTHS[op], strict=True):
            sizes = [DimDynamic.DYNAMIC if d in free else DimDynamic.STATIC for d in range(x.dim())]
            fake = mode.from_tensor(x, symbolic_context=StatelessSymbolicContext(dynamic_sizes=sizes))
            fakes.append(fake.detach().requires_grad_(x.requires_grad))
        aot_export_joint_simple(lambda *given: (function(*given).sum(),), fakes, trace_joint=True)
    assert not shapes.replacements and not [guard.expr for guard in shapes.guards if guard.expr.func is sympy.Eq]
