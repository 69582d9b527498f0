import dataclasses
from pathlib import Path

import numpy as np
import pytest
from native_reference import random_model
from transformers import DogeForCausalLM

from small_doge.inference import native
from small_doge.inference.native import NativeModel
from small_doge.inference.sampling import SamplingParams

PROMPTS = [[5, 17, 301, 44], [9], list(range(100, 200)), [7, 8, 7, 8, 7]]


@pytest.fixture(scope="module")
def core(tiny: tuple[DogeForCausalLM, Path]) -> NativeModel:
    return NativeModel.load(tiny[1], "fp32", threads=1)


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64) - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def test_greedy_decoding_follows_the_largest_logit_and_reports_its_logprob(core: NativeModel) -> None:
    session, stepped = core.new_session(), core.new_session()
    session.prefill([PROMPTS[0]])
    out = session.decode(30)
    logits = stepped.prefill([PROMPTS[0]])
    for token, logprob in zip(out.tokens[0], out.logprobs[0], strict=True):
        assert token == logits[0].argmax()
        assert logprob == pytest.approx(log_softmax(logits)[0, token], abs=1e-4)
        logits = stepped.step([token])
    assert out.finish_reasons == ["length"]


@pytest.mark.parametrize("dtype", ["fp32", "int8"])
@pytest.mark.parametrize("threads", [2, 3], ids=lambda n: f"{n} threads")
def test_threads_that_share_one_key_head_step_as_one_thread_does(tmp_path: Path, dtype: str, threads: int) -> None:
    random_model(num_attention_heads=2, num_key_value_heads=1).save_pretrained(tmp_path)
    sessions = [NativeModel.load(tmp_path, dtype, threads=n).new_session(max_slots=12) for n in (1, threads)]
    for token in range(5, 45):
        np.testing.assert_array_equal(*(session.step([token]) for session in sessions))


def test_two_threads_draw_what_one_draws(core: NativeModel, tiny: tuple[DogeForCausalLM, Path]) -> None:
    sessions = [model.new_session(3) for model in (core, NativeModel.load(tiny[1], "fp32", threads=2))]
    logits = [session.prefill(PROMPTS[:3]) for session in sessions]
    np.testing.assert_allclose(logits[0], logits[1], atol=1e-5)
    np.testing.assert_array_equal(*(session.decode(10).tokens for session in sessions))


@pytest.mark.parametrize("dtype", native.DTYPES)
def test_prompts_that_threads_share_out_are_those_of_one_thread_to_the_bit(tmp_path: Path, dtype: str) -> None:
    random_model(num_attention_heads=2, num_key_value_heads=1).save_pretrained(tmp_path)
    prompts = [list(range(5, 5 + n)) for n in (50, 3, 90)]
    rows = [NativeModel.load(tmp_path, dtype, threads=n).new_session(3).prefill(prompts) for n in (1, 2, 3)]
    np.testing.assert_array_equal(rows[0], rows[1])
    np.testing.assert_array_equal(rows[0], rows[2])


def test_a_batch_equals_its_rows_alone(core: NativeModel) -> None:
    batch = core.new_session(4)
    together = batch.prefill(PROMPTS)
    out = batch.decode(25)
    for i, prompt in enumerate(PROMPTS):
        alone = core.new_session()
        np.testing.assert_allclose(alone.prefill([prompt])[0], together[i], atol=1e-5)
        np.testing.assert_array_equal(alone.decode(25).tokens[0], out.tokens[i])


def test_several_calls_equal_one(core: NativeModel) -> None:
    how = [SamplingParams(temperature=1.0, seed=seed) for seed in (3, 4)]
    whole, parts = core.new_session(2), core.new_session(2)
    for session in (whole, parts):
        session.prefill(PROMPTS[:2])
    pieces = [parts.decode(n, how).tokens for n in (1, 6, 13)]
    np.testing.assert_array_equal(np.concatenate(pieces, 1), whole.decode(20, how).tokens)


def test_a_given_step_after_decoding_sees_the_drawn_token(core: NativeModel) -> None:
    session, fresh = core.new_session(), core.new_session()
    session.prefill([PROMPTS[0]])
    drawn = session.decode(3).tokens[0].tolist()
    got = session.step([42])
    np.testing.assert_allclose(got, fresh.prefill([[*PROMPTS[0], *drawn, 42]]), atol=1e-5)


def test_a_stop_id_ends_its_row_only(core: NativeModel) -> None:
    session = core.new_session(4)
    session.prefill(PROMPTS)
    free = session.decode(20).tokens
    stop = int(free[1, 4])
    session.reset()
    session.prefill(PROMPTS)
    out = session.decode(20, stop_ids=[[stop], [stop], [], [stop]])
    for i in range(4):
        hits = np.flatnonzero(free[i] == stop) if i != 2 else np.array([])
        length = int(hits[0]) + 1 if hits.size else 20
        assert out.lengths[i] == length
        assert out.stopped[i] == bool(hits.size)
        np.testing.assert_array_equal(out.tokens[i, :length], free[i, :length])
        assert (out.tokens[i, length:] == -1).all()


def test_a_row_can_be_reset_and_refilled_while_others_go_on(core: NativeModel) -> None:
    session, alone = core.new_session(3), core.new_session(3)
    for s in (session, alone):
        s.prefill(PROMPTS[:3])
    expected = alone.decode(20).tokens
    first = session.decode(8).tokens
    session.reset([1])
    session.prefill([PROMPTS[3]], rows=[1])
    second = session.decode(12)
    for row in (0, 2):
        np.testing.assert_array_equal(np.concatenate([first[row], second.tokens[row]]), expected[row])
    fresh = core.new_session()
    fresh.prefill([PROMPTS[3]])
    np.testing.assert_array_equal(second.tokens[1], fresh.decode(12).tokens[0])


def test_a_copied_row_goes_on_as_its_source_and_leaves_it_alone(core: NativeModel) -> None:
    session, alone = core.new_session(3, max_slots=12), core.new_session(1, max_slots=12)
    session.prefill(PROMPTS[:3])
    alone.prefill([PROMPTS[2]])
    expected = alone.decode(20).tokens[0]
    session.decode(4, rows=[2])  # the last drawn token waits to be fed
    session.copy(2, 0)
    assert session.length(0) == session.length(2) == len(PROMPTS[2]) + 3
    np.testing.assert_array_equal(session.decode(16, rows=[0]).tokens[0], expected[4:])
    np.testing.assert_array_equal(session.decode(16, rows=[2]).tokens[0], expected[4:])


def filtered(logits: np.ndarray, how: SamplingParams) -> np.ndarray:
    """The distribution that the filters define, in the order of transformers' logits processors."""
    p = np.exp(log_softmax(logits / how.temperature))
    order = np.argsort(-p, kind="stable")
    if how.top_k:
        p[order[how.top_k :]] = 0
        p /= p.sum()
    before = np.cumsum(p[order]) - p[order]
    p[order[(before >= how.top_p) & (np.arange(p.size) > 0)]] = 0
    p[p < how.min_p * p.max()] = 0
    return p / p.sum()


@pytest.mark.parametrize(
    "how",
    [
        SamplingParams(temperature=1.0),
        SamplingParams(temperature=0.7, top_k=5),
        SamplingParams(temperature=1.0, top_p=0.6),
        SamplingParams(temperature=1.5, min_p=0.2),
        SamplingParams(temperature=0.8, top_k=40, top_p=0.9, min_p=0.02),
    ],
    ids=str,
)
def test_draws_follow_the_filtered_distribution(core: NativeModel, how: SamplingParams) -> None:
    rows, rounds = 64, 60
    session = core.new_session(rows)
    logits = session.prefill([PROMPTS[0]] * rows)[0]
    expected = filtered(logits, how)
    drawn = []
    for i in range(rounds):
        session.reset()
        session.prefill([PROMPTS[0]] * rows)
        each = [dataclasses.replace(how, seed=i * rows + r) for r in range(rows)]
        drawn.append(session.decode(1, each).tokens[:, 0])
    counts = np.bincount(np.concatenate(drawn), minlength=expected.size)
    assert counts[expected == 0].sum() == 0
    total = rows * rounds
    common = expected * total >= 5
    observed = np.append(counts[common], counts[~common].sum())
    predicted = np.append(expected[common], expected[~common].sum()) * total
    keep = predicted > 0
    chi_square = ((observed - predicted)[keep] ** 2 / predicted[keep]).sum()
    freedom = keep.sum() - 1
    assert chi_square < freedom + 5 * np.sqrt(2 * freedom) + 10


def test_a_seed_repeats_its_draws_and_another_does_not(core: NativeModel) -> None:
    def run(seed: int) -> np.ndarray:
        session = core.new_session()
        session.prefill([PROMPTS[0]])
        return session.decode(20, [SamplingParams(temperature=1.0, seed=seed)]).tokens

    np.testing.assert_array_equal(run(1), run(1))
    assert (run(1) != run(2)).any()


def test_repetition_penalty_weighs_down_what_was_seen(core: NativeModel) -> None:
    session = core.new_session()
    logits = session.prefill([PROMPTS[3]])[0].copy()
    for token in set(PROMPTS[3]):
        logits[token] = logits[token] * 5 if logits[token] < 0 else logits[token] / 5
    out = session.decode(12, [SamplingParams(repetition_penalty=1e6)])
    assert out.tokens[0, 0] == logits.argmax() or logits.argmax() in PROMPTS[3]
    everything = [*PROMPTS[3], *out.tokens[0].tolist()]
    assert len(set(everything)) == len(everything) - 3  # the prompt's own three repeats


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s.decode(1), "call prefill first"),
        (lambda s: s.prefill([[]]), "prompt is empty"),
        (lambda s: s.prefill([[509]]), "outside the vocabulary"),
        (lambda s: s.prefill([[-1]]), "outside the vocabulary"),
        (lambda s: s.prefill([[1], [2]], rows=[0, 0]), "named twice"),
        (lambda s: s.prefill([[1]], rows=[1]), "not in this session"),
        (lambda s: s.decode(0), "at least 1"),
        (lambda s: s.reset([1]), "not in this session"),
        (lambda s: s.copy(0, 1), "not in this session"),
    ],
    ids=range(9),
)
def test_a_wrong_call_gets_one_clear_line(core: NativeModel, call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        call(core.new_session())
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_memory_stays_flat_over_many_tokens(core: NativeModel) -> None:
    session = core.new_session(max_slots=64)
    session.prefill([PROMPTS[0]])
    session.decode(200)
    used = session.memory["cache_used"]
    for _ in range(20):
        session.decode(5000, [SamplingParams(temperature=1.0)])
    assert session.memory["cache_used"] == used
    assert session.length(0) == 4 + 100_199
