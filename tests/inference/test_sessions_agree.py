"""The two engines behind one protocol: native core and torch give the same tokens, lengths and log-probabilities."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from models.small_models import PROMPTS, small_model

from small_doge.inference import native
from small_doge.inference.native import NativeModel
from small_doge.inference.sampling import SamplingParams
from small_doge.inference.slots import SlotSession
from small_doge.inference.torch_slots import TorchSlots

GREEDY = SamplingParams()


def conversation(session: SlotSession) -> tuple[list[np.ndarray], list[np.ndarray], list[int]]:
    """Tokens, numbers and lengths of two turns with a stop, a copied row and a given token, beyond the window of 8."""
    rows = [2, 0, 3, 1]
    logits = [session.prefill(PROMPTS, rows)]
    parts = [session.decode(9, [GREEDY] * 4, [()] * 4, rows)]
    stop = int(parts[0].tokens[0, 2])
    session.copy(0, 1)
    logits.append(session.prefill([[4, 2], [6]], [0, 3]))
    parts.append(session.decode(6, [GREEDY] * 4, [(stop,), (), (), ()], [0, 1, 2, 3]))
    session.reset([2])
    logits.append(session.step([1, 2], [2, 3]))
    tokens = [part.tokens for part in parts] + [part.lengths for part in parts] + [part.stopped for part in parts]
    return tokens, [*logits, *(part.logprobs for part in parts)], [session.length(row) for row in range(4)]


@pytest.mark.skipif(not native.is_available(), reason=native.reason() or "the native core is built")
def test_native_and_torch_sessions_agree(tmp_path: Path):
    model = small_model()
    model.save_pretrained(tmp_path)
    tokens, numbers, lengths = conversation(TorchSlots(model, 4))
    found, found_numbers, found_lengths = conversation(NativeModel.load(tmp_path, "fp32").new_session(4))
    for expected, got in zip(tokens, found, strict=True):
        np.testing.assert_array_equal(got, expected)
    for expected, got in zip(numbers, found_numbers, strict=True):
        np.testing.assert_allclose(got, expected, atol=2e-4)
    assert found_lengths == lengths
