"""Backends against the definition, and the properties that each of them owes."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from small_doge.ops import dynamic_mask_attention as attention_package
from small_doge.ops.dynamic_mask_attention import BACKENDS, blocked, choose_backend, dynamic_mask_attention
from small_doge.ops.dynamic_mask_attention.retention import retention_horizon
from small_doge.ops.dynamic_mask_attention.sdpa import fold_score

from .attention_cases import LIMIT_KINDS, NAMES, draw_inputs, draw_limits, relative_errors, with_gradients

CPU_BACKENDS = ("naive", "sdpa", "dense", "blocked")
# Of 48 keys.
SERVED = [
    *((b, 48, x) for b in ("sdpa", "dense") for x in LIMIT_KINDS),
    *((b, w, x) for b in ("naive", "blocked") for w in (9, 48) for x in LIMIT_KINDS),
]


def attend(backend, window, limit=None):
    return partial(dynamic_mask_attention, keep_window=window, limit_BS=limit, backend=backend)


def assert_equal_to_naive(inputs, window, limit, backend, tolerance=1e-11):
    expected = with_gradients(attend("naive", window, limit), inputs)
    errors = relative_errors(with_gradients(attend(backend, window, limit), inputs), expected)
    assert max(errors.values()) < tolerance, errors


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("heads", [(2, 2), (6, 2)], ids=["one query head a key head", "three query heads a key head"])
@pytest.mark.parametrize("queries", [70, 40, 1], ids=["training", "a chunk after a cache", "one token after a cache"])
@pytest.mark.parametrize("window", [1, 11, 69])
@pytest.mark.parametrize("limits", LIMIT_KINDS)
def test_blocked_equals_naive_in_output_and_every_gradient(limits, window, queries, heads):
    assert_equal_to_naive(draw_inputs(*heads, queries, 70), window, draw_limits(limits, 2, 70), "blocked")


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("scores", ["random", "rising", "falling", "constant", "high start"])
def test_blocked_equals_naive_where_scores_are(scores):
    assert_equal_to_naive(draw_inputs(2, 1, 150, 150, scores=scores), 20, None, "blocked")


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("queries", [70, 23, 1], ids=["training", "a chunk after a cache", "one token after a cache"])
@pytest.mark.parametrize("heads", [(2, 2), (6, 2)], ids=["one query head a key head", "three query heads a key head"])
@pytest.mark.parametrize("limits", LIMIT_KINDS)
@pytest.mark.parametrize("backend", ["sdpa", "dense"])
def test_what_keeps_every_key_equals_naive_in_output_and_every_gradient(backend, limits, heads, queries):
    assert_equal_to_naive(draw_inputs(*heads, queries, 70, 24), 70, draw_limits(limits, 2, 70), backend)


@pytest.mark.usefixtures("poisoned")
def test_dense_equals_naive_over_several_blocks_of_queries():
    assert_equal_to_naive(draw_inputs(4, 2, 150, 170), 170, draw_limits("packed", 2, 170), "dense")


def test_dense_keeps_no_weights_where_nothing_learns():
    query, key, value, score = (x.detach() for x in draw_inputs(4, 2, 150, 150))
    *_, kept = torch.ops.small_doge.dense_attention(query, key, value, score, None, 0.25, False)
    assert kept.numel() == 0
    learning = attend("dense", 150)(query, key.requires_grad_(), value, score)
    assert torch.equal(learning, attend("dense", 150)(query, key.detach(), value, score))
    assert learning.requires_grad


@pytest.mark.parametrize("backend", ["sdpa", "dense", "blocked"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
def test_lower_precision_stays_near_naive_in_fp64(dtype, backend):
    inputs = draw_inputs(4, 2, 70, 70, 32, dtype, "random")
    window = 15 if backend == "blocked" else 70
    exact = [x.detach().double().requires_grad_() for x in inputs]
    errors = relative_errors(
        with_gradients(attend(backend, window), inputs), with_gradients(attend("naive", window), exact)
    )
    assert max(errors.values()) < {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-3}[dtype], errors
    assert dynamic_mask_attention(*inputs, keep_window=window, backend=backend).dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
def test_the_folded_score_keeps_its_bits_in_lower_precision(dtype):
    query, key = torch.zeros(1, 1, 1, 128, dtype=dtype), torch.zeros(1, 1, 500, 128, dtype=dtype)
    score = torch.rand(1, 1, 500).mul(3).exp().requires_grad_()
    folded_query, folded_key = fold_score(query, key, score, 128**-0.5)
    logits = 128**-0.5 * (folded_query.double() @ folded_key.double().mT)[0, 0, 0]
    assert ((logits - score[0, 0]).abs() / score[0, 0]).max() < 2.0**-20
    logits.sum().backward()
    assert torch.allclose(score.grad, torch.ones_like(score), rtol=1e-2)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("head_size", [32, 96, 128, 256, 320])
@pytest.mark.parametrize(("backend", "window"), [("blocked", 8), ("sdpa", 24), ("dense", 24)])
def test_every_head_size_is_served(backend, window, head_size):
    inputs = draw_inputs(2, 1, 24, 24, head_size, batch=1)
    assert_equal_to_naive(inputs, window, draw_limits("packed", 1, 24), backend)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(("backend", "window"), [("naive", 8), ("blocked", 8), ("sdpa", 20), ("dense", 20)])
def test_a_query_that_sees_no_key_gives_zero_and_moves_nothing(backend, window):
    inputs = draw_inputs(2, 1, 20, 20)
    limit = torch.full((2, 20), 20)
    limit[0] = 0
    found = with_gradients(attend(backend, window, limit), inputs)
    for name, tensor in zip(NAMES, found, strict=True):
        assert torch.equal(tensor[0], torch.zeros_like(tensor[0])), name
        assert tensor[1].isfinite().all() and (tensor[1] != 0).any(), name


def test_a_key_beaten_at_birth_is_not_seen_by_its_own_query():
    query, key, value, _ = (x.detach() for x in draw_inputs(1, 1, 3, 3, batch=1))
    score = torch.tensor([[[3.0, 2.0, 1.0]]], dtype=torch.float64)
    for backend in ("naive", "blocked"):
        out = dynamic_mask_attention(query, key, value, score, keep_window=1, backend=backend)
        assert torch.allclose(out, value[:, :, :1].expand_as(out))


@pytest.mark.parametrize(("backend", "window", "limits"), SERVED)
def test_what_comes_later_changes_nothing_before_it(backend, window, limits):
    inputs = [x.detach() for x in draw_inputs(4, 2, 48, 48)]
    limit = draw_limits(limits, 2, 48)
    before = attend(backend, window, limit)(*inputs)
    for t in (0, 13, 47):
        changed = [x.clone() for x in inputs]
        for x in changed:
            x[:, :, t] += 5 * torch.randn_like(x[:, :, t])
        after = attend(backend, window, limit)(*changed)
        assert torch.equal(before[:, :, :t], after[:, :, :t])
        assert not torch.equal(before[:, :, t:], after[:, :, t:])


@pytest.mark.parametrize(("backend", "window", "limits"), SERVED)
def test_chunks_one_after_another_equal_the_whole(backend, window, limits):
    query, key, value, score = (x.detach() for x in draw_inputs(4, 2, 48, 48))
    limit = draw_limits(limits, 2, 48)
    whole = attend(backend, window, limit)(query, key, value, score)
    start = 0
    for stop in (17, 18, 19, 40, 48):
        past = None if limit is None else limit[:, :stop]
        chunk = attend(backend, window, past)(
            query[:, :, start:stop], key[:, :, :stop], value[:, :, :stop], score[:, :, :stop]
        )
        assert torch.allclose(chunk, whole[:, :, start:stop], rtol=0, atol=1e-12)
        start = stop


def test_a_cache_of_w_keys_decodes_what_the_whole_sequence_gives():
    window = 6
    query, key, value, score = (x.detach() for x in draw_inputs(2, 1, 60, 60, batch=1))
    whole = attend("naive", window)(query, key, value, score)
    kept: list[int] = []
    for i in range(60):
        kept.append(i)
        if len(kept) > window:
            kept.remove(min(kept, key=lambda j: (float(score[0, 0, j]), j)))
        cached = (key[:, :, kept], value[:, :, kept], score[:, :, kept])
        out = attend("sdpa", window)(query[:, :, i : i + 1], *cached)
        assert torch.allclose(out, whole[:, :, i : i + 1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", ["naive", "blocked"])
def test_packed_documents_equal_the_same_documents_alone(backend):
    inputs = draw_inputs(4, 2, 64, 64, batch=1)
    limit = torch.full((1, 64), 64)
    limit[:, :40], limit[:, :15] = 40, 15
    packed = with_gradients(attend(backend, 8, limit), inputs)
    for start, stop in ((0, 15), (15, 40), (40, 64)):
        alone = attend(backend, 8)(*(x[:, :, start:stop] for x in inputs))
        assert torch.allclose(packed[0][:, :, start:stop], alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", ["naive", "blocked"])
def test_a_padded_row_equals_the_row_without_padding(backend):
    inputs = [x.detach() for x in draw_inputs(4, 2, 50, 50, batch=1)]
    limit = torch.full((1, 50), 50)
    limit[:, :11] = 0
    padded = attend(backend, 8, limit)(*inputs)[:, :, 11:]
    assert torch.allclose(padded, attend(backend, 8)(*(x[:, :, 11:] for x in inputs)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("limits", ["whole", "packed and padded"])
@pytest.mark.parametrize("backend", ["naive", "blocked"])
def test_a_row_does_not_depend_on_its_neighbors(backend, limits):
    inputs = [x.detach() for x in draw_inputs(4, 2, 50, 50, batch=3, dtype=torch.float32)]
    limit = draw_limits(limits, 3, 50)
    together = attend(backend, 8, limit)(*inputs)
    for row in range(3):
        rows = slice(row, row + 1)
        alone = attend(backend, 8, None if limit is None else limit[rows])(*(x[rows] for x in inputs))
        # The definition multiplies all rows in one product; by blocks each row is computed alone.
        assert torch.equal(together[rows], alone) if backend == "blocked" else torch.allclose(together[rows], alone)


class LargestTensor(TorchDispatchMode):
    """Watches every tensor that any operator makes."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else [out]:
            if isinstance(x, torch.Tensor):
                self.elements = max(self.elements, x.numel())
        return out


def test_blocked_never_makes_a_tensor_of_the_square_of_the_length():
    keys, window = 1024, 64
    inputs = [x.detach() for x in draw_inputs(1, 1, keys, keys, 8, torch.float32, "random", batch=1)]
    inputs.append(retention_horizon(inputs[3], window))
    # The functions behind the operators: a dispatch mode does not look inside an operator.
    forward, backward = blocked._forward._init_fn, blocked._backward._init_fn
    with LargestTensor() as largest:
        out, logsumexp = forward(*inputs, 1.0, 32)
        backward(torch.randn_like(out), out, logsumexp, *inputs, 1.0, 32)
    assert 0 < largest.elements <= keys * 8


@pytest.mark.parametrize("window", [10, 64], ids=["with a mask", "without a mask"])
def test_compiles_without_a_graph_break(window):
    inputs = draw_inputs(4, 2, 64, 64, dtype=torch.float32)
    compiled = torch.compile(attend("auto", window), fullgraph=True, backend="aot_eager")
    errors = relative_errors(with_gradients(compiled, inputs), with_gradients(attend("naive", window), inputs))
    assert max(errors.values()) < 1e-5, errors


def test_the_rule_of_choice_on_a_cpu():
    query = torch.zeros(1, 1, 64, 16)
    assert choose_backend(query, 64, 64, limited=False) == "dense"
    assert choose_backend(query, 65, 64, limited=False) == "blocked"
    assert choose_backend(query, 64, 64, limited=True) == "dense"
    assert choose_backend(query, 1025, 2048, limited=False) == "sdpa"
    assert choose_backend(query[:, :, :1], 64, 64, limited=False) == "sdpa"


@pytest.mark.parametrize(
    ("queries", "keys", "limited", "chosen"),
    [
        (64, 64, False, "triton_causal"),
        (64, 64, True, "triton_causal"),
        (64, 128, False, "triton_causal"),
        (64, 129, False, "triton_sparse"),
        (1, 64, False, "sdpa"),
        (1, 64, True, "triton_causal"),
        (1, 65, False, "triton_causal"),
    ],
)
def test_the_rule_of_choice_on_a_gpu(queries, keys, limited, chosen, monkeypatch):
    monkeypatch.setattr(attention_package, "has_triton", lambda tensor: True)
    query = torch.zeros(1, 1, queries, 256, dtype=torch.bfloat16)
    assert choose_backend(query, keys, 64, limited=limited) == chosen


@pytest.mark.parametrize(("head_size", "dtype"), [(258, torch.bfloat16), (64, torch.float64)])
def test_what_the_kernels_do_not_serve_runs_without_them_on_a_gpu_too(head_size, dtype, monkeypatch):
    monkeypatch.setattr(attention_package, "has_triton", lambda tensor: True)
    query = torch.zeros(1, 1, 1500, head_size, dtype=dtype)
    assert choose_backend(query, 1500, 1500, limited=False) == "sdpa"
    assert choose_backend(query, 1500, 64, limited=False) == "blocked"


@pytest.mark.parametrize("backend", sorted(set(BACKENDS) - set(CPU_BACKENDS)))
def test_a_backend_that_does_not_serve_this_device_says_so(backend):
    with pytest.raises(ValueError, match=rf"'{backend}' does not serve torch.float32 heads of size 16 on cpu: choose"):
        attend(backend, 8)(*draw_inputs(2, 1, 20, 20, dtype=torch.float32))


@pytest.mark.parametrize("window", [10, 64], ids=["with a mask", "without a mask"])
def test_auto_equals_naive(window):
    assert_equal_to_naive(draw_inputs(4, 2, 64, 64), window, None, "auto")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backend": "magic"}, "choose 'auto' or one of naive"),
        ({"backend": "sdpa"}, "keeps every key: use 'auto'"),
        ({"backend": "dense"}, "keeps every key: use 'auto'"),
        ({"keep_window": 0}, "keep_window must be at least 1"),
        ({"limit_BS": torch.full((2, 9), 9)}, "limit must be"),
        ({"score_BGS": torch.rand(2, 4, 20)}, "score must be"),
        ({"value_BGSD": torch.rand(2, 2, 19, 16)}, "must agree"),
        (
            {"key_BGSD": torch.rand(2, 3, 20, 16), "value_BGSD": torch.rand(2, 3, 20, 16)},
            "multiple of the key/value heads",
        ),
        ({"query_BHTD": torch.rand(2, 4, 21, 16)}, "pass the cached keys with the new ones"),
        ({"query_BHTD": torch.rand(4, 20, 16)}, "batch, heads, length, head size"),
    ],
)
def test_bad_input_gets_one_clear_line(change, message):
    names = ("query_BHTD", "key_BGSD", "value_BGSD", "score_BGS")
    good = dict(zip(names, draw_inputs(4, 2, 20, 20), strict=True))
    with pytest.raises(ValueError, match=message) as caught:
        dynamic_mask_attention(**(good | {"keep_window": 8} | change))
    assert "\n" not in str(caught.value)


def test_every_backend_has_a_name():
    assert set(CPU_BACKENDS) < set(BACKENDS)
