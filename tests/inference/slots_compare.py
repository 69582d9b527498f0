"""What two ways of running the token step are compared on: tokens, log-probabilities, logits and the whole cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from models.small_models import small_model

from small_doge.inference.sampling import SamplingParams
from small_doge.inference.torch_slots import EagerStep, TorchSlots

FREE = [SamplingParams(), SamplingParams(temperature=1.0, seed=2**40 + 3)]
FILTERED = [
    SamplingParams(temperature=1.0, top_k=5, top_p=0.7, seed=1),
    SamplingParams(temperature=1.3, top_k=20, top_p=0.9, min_p=0.02, repetition_penalty=3.0, seed=9),
]
PROMPTS = [[0, 5, 9, 3, 8, 11], [0, *range(10, 21)]]


def run(model: Any, make_step: Callable[..., Any]) -> tuple[Any, list[Any], np.ndarray]:
    """One row before its window is full and one beyond, drawn freely, with filters, and given a token."""
    session = TorchSlots(model, 3, max_length=64)
    session.runner = make_step(session.weights, session.state)
    rows = [2, 0]
    session.prefill(PROMPTS, rows)
    parts = [session.decode(3, FREE, [(), (3, 9)], rows), session.decode(2, FILTERED, [()] * 2, rows)]
    return session.state, parts, session.step([1, 2], rows)


def differences(kind: str, make_step: Callable[..., Any], device: str = "cpu") -> dict[str, float]:
    """Largest differences from the plain step; tokens that differ."""
    model = small_model(kind, num_hidden_layers=1).to(device)
    (plain, said, logits), (state, found, found_logits) = run(model, EagerStep), run(model, make_step)
    pairs = list(zip(said, found, strict=True))
    caches = ("keys", "values", "scores", "positions", "length", "token", "seen")
    return {
        "tokens that differ": float(sum((a.tokens != b.tokens).sum() for a, b in pairs)),
        "ends that differ": float(sum((a.stopped != b.stopped).sum() for a, b in pairs)),
        "log-probabilities": float(max(np.abs(a.logprobs - b.logprobs).max() for a, b in pairs)),
        "logits": float(np.abs(logits - found_logits).max()),
    } | {n: float((getattr(plain, n).double() - getattr(state, n).double()).abs().max()) for n in caches}
