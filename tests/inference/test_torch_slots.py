"""Sessions in plain torch, against the model with its own cache, row by row."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from models.small_models import KINDS, PROMPTS, small_model

from small_doge.inference.gpu_sampling import gumbel
from small_doge.inference.sampling import SamplingParams
from small_doge.inference.torch_slots import TorchSlots

GREEDY = SamplingParams()
NO_STOPS: list[tuple[int, ...]] = [()] * 4


@torch.inference_mode()
def alone(model, prompt: list[int], tokens: int) -> tuple[list[int], list[float]]:
    """Greedy tokens and their log-probabilities, one sequence at a time with `DogeCache`."""
    outputs = model(input_ids=torch.tensor([prompt]), use_cache=True)
    drawn, log_probs = [], []
    for _ in range(tokens):
        log_prob = outputs.logits[0, -1].log_softmax(-1)
        drawn.append(int(log_prob.argmax()))
        log_probs.append(float(log_prob.max()))
        token = torch.tensor([drawn[-1:]])
        outputs = model(input_ids=token, past_key_values=outputs.past_key_values, use_cache=True)
    return drawn, log_probs


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [2, 0, 3, 1]], ids=["rows in order", "rows in any order"])
def test_rows_draw_what_the_model_draws_alone(kind, rows):
    model = small_model(kind)
    session = TorchSlots(model, 4)
    logits = session.prefill(PROMPTS, rows)
    first = session.decode(12, [GREEDY] * 4, NO_STOPS, rows)
    second = session.decode(5, [GREEDY] * 4, NO_STOPS, rows)
    for i, (prompt, row) in enumerate(zip(PROMPTS, rows, strict=True)):
        tokens, log_probs = alone(model, prompt, 17)
        assert [*first.tokens[i], *second.tokens[i]] == tokens
        np.testing.assert_allclose([*first.logprobs[i], *second.logprobs[i]], log_probs, atol=1e-4)
        with torch.inference_mode():
            np.testing.assert_allclose(logits[i], model(input_ids=torch.tensor([prompt])).logits[0, -1], atol=1e-4)
        assert session.length(row) == len(prompt) + 16


def test_appending_in_pieces_equals_one_prefill():
    model = small_model()
    session = TorchSlots(model, 2)
    whole = session.prefill([PROMPTS[2]], [0])
    session.prefill([PROMPTS[2][:9]], [1])
    session.step(PROMPTS[2][9:10], [1])
    pieces = session.prefill([PROMPTS[2][10:]], [1])
    np.testing.assert_allclose(pieces, whole, atol=1e-4)
    assert session.length(0) == session.length(1) == len(PROMPTS[2])


def test_a_turn_after_drawing_takes_the_last_drawn_token_in():
    model = small_model()
    session = TorchSlots(model, 1)
    session.prefill([PROMPTS[0]], [0])
    drawn = session.decode(3, [GREEDY], [()], [0]).tokens[0].tolist()
    logits = session.prefill([[4, 2]], [0])
    with torch.inference_mode():
        expected = model(input_ids=torch.tensor([[*PROMPTS[0], *drawn, 4, 2]])).logits[0, -1]
    np.testing.assert_allclose(logits[0], expected, atol=1e-4)


def test_rows_end_come_and_go_without_moving_the_others():
    model = small_model()
    session = TorchSlots(model, 3)
    session.prefill(PROMPTS[:2], [0, 1])
    expected, _ = alone(model, PROMPTS[0], 10)
    stop = alone(model, PROMPTS[1], 10)[0][2]
    first = session.decode(5, [GREEDY] * 2, [(), (stop,)], [0, 1])
    assert first.stopped.tolist() == [False, True]
    assert first.tokens[1, first.lengths[1] - 1] == stop and (first.tokens[1, first.lengths[1] :] == -1).all()
    session.reset([1])
    session.copy(0, 2)
    session.prefill([PROMPTS[3]], [1])
    second = session.decode(5, [GREEDY] * 3, [()] * 3, [1, 0, 2])
    assert [*first.tokens[0], *second.tokens[1]] == expected
    assert second.tokens[0].tolist() == alone(model, PROMPTS[3], 5)[0]
    assert (second.tokens[2] == second.tokens[1]).all()


def test_a_seed_draws_the_same_whatever_stands_beside_it():
    model = small_model()
    how = SamplingParams(temperature=1.0, top_p=0.9, seed=2**40 + 7)
    together, single = TorchSlots(model, 4), TorchSlots(model, 1)
    together.prefill(PROMPTS, [3, 1, 0, 2])
    others = [SamplingParams(temperature=1.0, seed=i) for i in range(3)]
    beside = together.decode(9, [*others, how], NO_STOPS, [3, 1, 0, 2]).tokens[3]
    single.prefill(PROMPTS[3:], [0])
    parts = [single.decode(n, [how], [()], [0]).tokens[0] for n in (4, 5)]
    assert beside.tolist() == np.concatenate(parts).tolist()


@pytest.mark.parametrize(
    ("how", "allowed"),
    [
        pytest.param({"top_k": 2}, {0, 1}, id="top-k"),
        pytest.param({"top_p": 0.8}, {0, 1}, id="top-p"),
        pytest.param({"min_p": 0.3}, {0, 1}, id="min-p"),
        pytest.param({"repetition_penalty": 1e6}, {1, 2, 3}, id="a repetition penalty on token 0"),
        pytest.param({}, {0, 1, 2, 3}, id="no filter"),
    ],
)
def test_draws_follow_the_filtered_distribution(how, allowed):
    weights = np.array([0.5, 0.35, 0.1, 0.05])
    rows = 2000
    session = TorchSlots(small_model(vocab_size=4, num_hidden_layers=1), rows, max_length=16)
    session.prefill([[0]] * rows, range(rows))
    session.state.logits[:] = torch.tensor(weights).log()
    settings = [SamplingParams(temperature=1.0, seed=seed, **how) for seed in range(rows)]
    drawn = session.decode(1, settings, [()] * rows, range(rows)).tokens[:, 0]
    expected = np.array([weight if token in allowed else 0 for token, weight in enumerate(weights)])
    counts = np.bincount(drawn, minlength=4)
    # Five standard deviations of a binomial count at the most.
    np.testing.assert_allclose(counts / rows, expected / expected.sum(), atol=5 * 0.5 / rows**0.5)
    assert counts[[t for t in range(4) if t not in allowed]].sum() == 0


def test_noise_is_gumbel():
    noise = gumbel(torch.arange(64), torch.arange(64) * 7, 4096).double()
    assert abs(float(noise.mean()) - 0.5772) < 0.01 and abs(float(noise.var()) - np.pi**2 / 6) < 0.02
    assert abs(float(torch.corrcoef(noise)[0, 1:].mean())) < 0.01


def test_refresh_follows_the_model_in_place():
    model = small_model()
    session = TorchSlots(model, 1)
    address = session.weights.layers[0].qkv.data_ptr()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.05)
    session.refresh()
    session.prefill(PROMPTS[:1], [0])
    assert session.decode(6, [GREEDY], [()], [0]).tokens[0].tolist() == alone(model, PROMPTS[0], 6)[0]
    assert session.weights.layers[0].qkv.data_ptr() == address


def test_a_row_may_fill_its_slots_and_no_more():
    session = TorchSlots(small_model(), 1, max_length=6)
    session.prefill([[1, 2, 3]], [0])
    session.decode(4, [GREEDY], [()], [0])
    assert session.length(0) == 6
    for more in (lambda: session.decode(1, [GREEDY], [()], [0]), lambda: session.prefill([[1]], [0])):
        with pytest.raises(ValueError, match="give a higher max_length"):
            more()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s.prefill([[]], [0]), "empty"),
        (lambda s: s.prefill([[60]], [0]), "outside"),
        (lambda s: s.prefill([[1], [2]], [0, 0]), "once"),
        (lambda s: s.prefill([[1]], [2]), "once"),
        (lambda s: s.decode(1, [GREEDY], [()], [0]), "no tokens"),
        (lambda s: s.prefill([[1] * 7], [0]), "max_length"),
    ],
)
def test_mistakes_get_one_line(call, message):
    with pytest.raises(ValueError, match=message):
        call(TorchSlots(small_model(), 2, max_length=6))
