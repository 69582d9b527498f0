"""The fused head against its definition: the loss and both gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ops.interpreted_process import interpreted, needs_triton

from small_doge.ops.linear_cross_entropy import chunked, linear_cross_entropy


def draw(tokens: int, vocab: int, width: int, dtype: torch.dtype, ignored: bool) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    hidden = torch.randn(tokens, width, dtype=dtype).requires_grad_()
    weight = torch.randn(vocab, width, dtype=dtype).requires_grad_()
    labels = torch.randint(0, vocab, (tokens,))
    if ignored:
        labels[::3] = -100
    return hidden, weight, labels


def loss_and_gradients(hidden, weight, labels, backend: str) -> tuple[torch.Tensor, ...]:
    loss = linear_cross_entropy(hidden, weight, labels, backend=backend)
    return loss, *torch.autograd.grad(loss * 0.37, (hidden, weight))


@pytest.mark.parametrize("ignored", [False, True], ids=["every token counts", "some labels are ignored"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6), (torch.bfloat16, 2e-2)], ids=str
)
def test_chunked_equals_the_definition(dtype, tolerance, ignored, monkeypatch):
    monkeypatch.setattr(chunked, "CHUNK_LOGITS", 97 * 20)
    inputs = draw(53, 97, 24, dtype, ignored)
    exact = [x.detach().double().requires_grad_() for x in inputs[:2]]
    found = loss_and_gradients(*inputs, "chunked")
    expected = loss_and_gradients(*exact, inputs[2], "naive")
    for value, reference in zip(found, expected, strict=True):
        assert (value - reference).norm() < tolerance * reference.norm()


def test_huge_logits_stay_finite():
    hidden, weight, labels = draw(20, 50, 16, torch.float32, ignored=False)
    found = loss_and_gradients((hidden * 100).detach().requires_grad_(), weight, labels, "chunked")
    assert all(value.isfinite().all() for value in found)


def test_without_any_label_loss_and_gradients_are_zero():
    hidden, weight, labels = draw(20, 50, 16, torch.float32, ignored=False)
    found = loss_and_gradients(hidden, weight, torch.full_like(labels, -100), "chunked")
    assert all((value == 0).all() for value in found)


def test_autocast_computes_in_its_dtype_and_returns_gradients_in_that_of_the_parameters():
    hidden, weight, labels = draw(40, 97, 24, torch.float32, ignored=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = loss_and_gradients(hidden, weight, labels, "chunked")
    expected = loss_and_gradients(hidden, weight, labels, "naive")
    assert [x.dtype for x in found] == [torch.float32] * 3
    for value, reference in zip(found, expected, strict=True):
        assert 1e-6 < (value - reference).norm() / reference.norm() < 2e-2


def test_nothing_is_differentiated_without_gradients():
    hidden, weight, labels = draw(40, 97, 24, torch.float32, ignored=True)
    with torch.no_grad():
        loss = linear_cross_entropy(hidden, weight, labels)
    assert loss == pytest.approx(linear_cross_entropy(hidden, weight, labels, backend="naive").item(), rel=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels_N": torch.zeros(3, dtype=torch.long)}, "labels must be"),
        ({"weight_Vd": torch.zeros(97, 8)}, "must be"),
        ({"backend": "liger"}, "does not exist"),
    ],
    ids=["labels of another length", "a head of another width", "an unknown backend"],
)
def test_what_does_not_fit_is_refused(change, message):
    hidden, weight, labels = draw(40, 97, 24, torch.float32, ignored=False)
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(**{"hidden_Nd": hidden, "weight_Vd": weight, "labels_N": labels} | change)


@needs_triton
def test_triton_equals_the_definition_in_the_interpreter():
    (errors,) = interpreted(Path(__file__).with_name("interpreted.py"))
    # Not (x < y): NaN must fail.
    assert not [name for name, error in errors.items() if not error < 2e-6], errors
