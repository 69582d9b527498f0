"""When two runs of the native core have drawn the same."""

from __future__ import annotations

import numpy as np

from small_doge.inference.slots import Generation


def assert_same(plain: Generation, drafted: Generation, exact: bool) -> None:
    np.testing.assert_array_equal(drafted.tokens, plain.tokens)
    np.testing.assert_array_equal(drafted.lengths, plain.lengths)
    np.testing.assert_array_equal(drafted.stopped, plain.stopped)
    np.testing.assert_allclose(drafted.logprobs, plain.logprobs, rtol=0, atol=0 if exact else 1e-4)
