"""Tokens guessed from what a sequence holds already: decoding with guesses draws what it draws without."""

from pathlib import Path

import numpy as np
import pytest
from generations import assert_same
from transformers import DogeForCausalLM

from small_doge.inference.native import MOST_DRAFTS, NativeModel, NativeSession
from small_doge.inference.sampling import SamplingParams

LOOPS = [[7, 8, 9] * 9, [3, 4, 5, 6] * 7, [9]]
HOW = {
    "greedy": SamplingParams(),
    "sampling": SamplingParams(temperature=0.3, seed=5),
    "filters and a penalty": SamplingParams(temperature=0.3, seed=7, top_k=20, top_p=0.95, repetition_penalty=1.02),
}


def pair(tiny: tuple[DogeForCausalLM, Path], dtype: str, batch: int, slots: int = 150) -> list[NativeSession]:
    """The same model's rows without guesses and with."""
    return [
        NativeModel.load(tiny[1], dtype, threads=1, drafts=drafts).new_session(batch, max_slots=slots)
        for drafts in (0, 6)
    ]


@pytest.mark.parametrize("how", HOW.values(), ids=HOW.keys())
@pytest.mark.parametrize("dtype", ["fp32", "int8"])
def test_guesses_change_no_token(tiny, dtype, how):
    plain, drafted = pair(tiny, dtype, len(LOOPS))
    for session in (plain, drafted):
        session.prefill(LOOPS)
    for n in (1, 70, 90):  # the last passes the size of the cache, from where on nothing is guessed
        each = [how] * len(LOOPS)
        # Sums of integers are the same in any order; those of floats hang on how many tokens go through together.
        assert_same(plain.decode(n, each), drafted.decode(n, each), exact=dtype == "int8")
        assert [plain.length(row) for row in range(3)] == [drafted.length(row) for row in range(3)]


def test_a_stop_token_among_the_guesses_ends_the_row(tiny):
    plain, drafted = pair(tiny, "int8", 1)
    plain.prefill(LOOPS[:1])
    stop = int(plain.decode(60).tokens[0, -1])
    plain.reset()
    for session in (plain, drafted):
        session.prefill(LOOPS[:1])
    assert_same(plain.decode(60, stop_ids=[[stop]]), drafted.decode(60, stop_ids=[[stop]]), exact=True)
    np.testing.assert_array_equal(plain.step([5]), drafted.step([5]))


def test_a_copied_and_a_reset_row_guess_from_their_own_tokens(tiny):
    plain, drafted = pair(tiny, "int8", 2)
    for session in (plain, drafted):
        session.prefill(LOOPS[:1], rows=[0])
        session.decode(10, rows=[0])
        session.copy(0, 1)
        session.reset([0])
        session.prefill([LOOPS[1]], rows=[0])
    assert_same(plain.decode(40), drafted.decode(40), exact=True)


def test_right_guesses_save_steps(tiny):
    plain, drafted = pair(tiny, "int8", 1)
    for session in (plain, drafted):
        session.prefill(LOOPS[:1])
        session.decode(100)  # greedy, a small model soon repeats itself
    assert plain.steps == 99  # the first token comes from the prefill
    assert drafted.steps < 60


@pytest.mark.parametrize("drafts", [-1, MOST_DRAFTS + 1])
def test_a_wrong_number_of_guesses_is_refused(tiny, drafts):
    with pytest.raises(ValueError, match="give 0"):
        NativeModel.load(tiny[1], drafts=drafts)
