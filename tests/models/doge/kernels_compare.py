"""A model through the kernels of a GPU, beside the same model by definition."""

from __future__ import annotations

import doge_ways
import torch
from small_models import small_model

CHANGED = 37


def differences(
    kind: str, backend: str, way: str, dtype: str = "float32", device: str = "cpu", compiled: bool = False
) -> dict[str, float]:
    """How far a way of running the model is from the plain forward of the definition in double precision.

    `logits` and, where the way is `trained`, each parameter's gradient: |found - expected| / |expected|. `moved before`
    is by how much a changed token moved what stands before it, over all that it moved. In half precision the window is
    as long as the text: its noise would choose other keys. `compiled` is the model as the trainers compile it.
    """
    half = dtype != "float32"
    fields = {"vocab_size": 200, "keep_window_size": 128 if half else 8}
    # The interpreter pays for each program.
    fields["num_hidden_layers"] = 1 if device == "cpu" else 2
    exact = small_model(kind, dtype=torch.float64, attn="eager", **fields)
    model = small_model(kind, dtype=getattr(torch, dtype), attn=backend, **fields).to(device)
    if compiled:
        torch._dynamo.reset()  # Each model is compiled anew, and torch gives up at the ninth.
        for layer in model.model.layers:
            layer.compile(fullgraph=True)
    ids = doge_ways.distinct_text()
    other = ids.clone()
    other[:, CHANGED] = other[:, 0]
    run = getattr(doge_ways, way)
    with torch.no_grad():
        found, moved = (run(model, x.to(device)).double().cpu() for x in (ids, other))
        results = {"logits": relative(found, doge_ways.plain(exact, ids))}
    moved = (moved - found).abs().amax((0, 2))
    results["moved before"] = float(moved[:CHANGED].max() / moved.max())
    if way == "trained" and not half:
        for m, x in ((exact, ids), (model, ids.to(device))):
            m.train()(x, labels=x).loss.backward()
        for (name, expected), parameter in zip(exact.named_parameters(), model.parameters(), strict=True):
            results[name] = relative(parameter.grad.double().cpu(), expected.grad)
    return results


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def too_large(found: dict[str, float], dtype: str = "float32") -> dict[str, float]:
    """The differences that are no rounding; not x > y, for NaN is too large as well."""
    tolerance = 1e-4 if dtype == "float32" else 5e-2
    return {name: difference for name, difference in found.items() if not difference < tolerance}
