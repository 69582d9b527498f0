from __future__ import annotations

import numpy as np
import pytest

from small_doge.processor.mixing import MixState, Sample, mix, nearest_sum, parse_ratios, ratio_error, shares


def stream(weights, name=""):
    return iter([Sample(int(weight), f"{name}{number}") for number, weight in enumerate(weights)])


def random_weights(seed, count, mean=400):
    return np.random.default_rng(seed).geometric(1 / mean, count)


def cut(payload, weight):
    return f"{payload}[:{weight}]"


def run(streams, ratios, total=None, with_cut=True):
    state = MixState([0] * len(streams), [0] * len(streams))
    out = list(mix(streams, ratios, total, state, cut if with_cut else None))
    return out, state


def test_shares_are_exact_whatever_the_sizes():
    ratios = [0.7, 0.2, 0.05, 0.05]
    streams = [stream(random_weights(i, 5000, mean)) for i, mean in enumerate((100, 900, 3000, 50))]
    _, state = run(streams, ratios, total=100_000)
    assert sum(state.used) == 100_000
    assert ratio_error(state, ratios) < 1e-9


def test_at_no_moment_is_a_source_ahead_by_more_than_a_document():
    ratios = [0.6, 0.4]
    state = MixState([0, 0], [0, 0])
    largest = 0
    for _, sample in mix([stream(random_weights(i, 500)) for i in range(2)], ratios, None, state):
        largest = max(largest, sample.weight)
        assert abs(state.used[0] / 0.6 - state.used[1] / 0.4) <= 8000 / 0.4
    assert largest < 8000


def test_without_a_total_the_source_that_ends_first_bounds_the_mix():
    out, state = run([stream([10] * 100), stream([10] * 5)], [0.5, 0.5])
    assert state.used == [50, 50]
    assert state.ran_out == [1]
    assert len(out) == 10


def test_a_source_that_runs_out_keeps_the_ratios_and_is_named():
    _, state = run([stream([10] * 100), stream([7] * 5)], [0.75, 0.25], total=1000)
    assert state.used == [105, 35]
    assert state.ran_out == [1]
    assert shares(state) == [0.75, 0.25]


def test_the_document_in_the_middle_of_which_the_mix_ends_is_cut():
    out, state = run([stream([60, 60, 60])], [1.0], total=100)
    assert [(sample.weight, sample.payload) for _, sample in out] == [(60, "0"), (40, "1[:40]")]
    assert state.taken == [2]


def test_without_a_cut_the_mix_ends_as_near_to_the_total_as_whole_samples_can():
    near, _ = run([stream([60, 60, 60])], [1.0], total=100, with_cut=False)
    nearer, _ = run([stream([60, 60, 15, 30, 25])], [1.0], total=100, with_cut=False)
    assert [sample.payload for _, sample in near] == ["0", "1"]
    assert [sample.payload for _, sample in nearer] == ["0", "2", "4"]


@pytest.mark.parametrize("total", [60_000, None])
def test_whole_samples_meet_the_shares_within_a_thousandth_of_the_smallest_ratio(total):
    ratios = [0.6, 0.3, 0.06, 0.04]
    for seed in range(20):
        streams = [stream(random_weights([seed, i], 400, mean)) for i, mean in enumerate((200, 300, 150, 400))]
        _, state = run(streams, ratios, total, with_cut=False)
        assert ratio_error(state, ratios) < 1e-3


@pytest.mark.parametrize("total", [1, 10, 99, 100, 101])
def test_rows_are_as_many_as_asked_and_each_share_within_one_row(total):
    ratios = [1 / 3, 1 / 3, 0.29, 1 / 3 - 0.29]
    _, state = run([stream([1] * 200) for _ in ratios], ratios, total, with_cut=False)
    assert sum(state.used) == total
    assert all(abs(used - total * ratio) < 1 for used, ratio in zip(state.used, ratios, strict=True))


def test_the_look_ahead_ends_where_the_target_is_hit():
    samples = stream([7, 5, 3, 2, 9, 9, 9])
    assert [sample.payload for sample in nearest_sum(samples, 10)] == ["0", "2"]
    assert next(samples).payload == "3"


def test_a_mix_goes_on_from_its_state_as_if_never_stopped():
    weights = [random_weights(i, 400) for i in range(3)]
    ratios = [0.5, 0.3, 0.2]
    whole, _ = run([stream(w, f"{i}:") for i, w in enumerate(weights)], ratios, 60_000)
    state = MixState([0] * 3, [0] * 3)
    first = []
    for item in mix([stream(w, f"{i}:") for i, w in enumerate(weights)], ratios, 60_000, state, cut):
        first.append(item)
        if len(first) == 100:
            break
    rest_streams = []
    for i, w in enumerate(weights):
        rest = stream(w, f"{i}:")
        for _ in range(state.taken[i]):
            next(rest)
        rest_streams.append(rest)
    assert first + list(mix(rest_streams, ratios, 60_000, state, cut)) == whole


def test_ratios_are_normalized_and_the_argument_left_as_it_is():
    given = [{"a": 7}, {"b": 2}, {"c": 0.5}, {"d": 0.5}]
    assert parse_ratios(given) == (["a", "b", "c", "d"], [0.7, 0.2, 0.05, 0.05])
    assert given == [{"a": 7}, {"b": 2}, {"c": 0.5}, {"d": 0.5}]


@pytest.mark.parametrize(
    ("given", "mend"),
    [
        ([], "give at least one"),
        ({"a": 1.0}, "write one entry a source"),
        (["a"], "write one entry a source"),
        ("a", "write one entry a source"),
        (3, "write one entry a source"),
        ([{"a": 0}], "give a positive number"),
        ([{"a": -1}], "give a positive number"),
        ([{"a": "0.5"}], "give a positive number"),
        ([{"a": True}], "give a positive number"),
        ([{"a": float("nan")}], "give a positive number"),
        ([{"a": 0.5}, {"a": 0.5}], "listed twice"),
    ],
    ids=str,
)
def test_bad_ratios_are_refused(given, mend):
    with pytest.raises(ValueError, match=mend):
        parse_ratios(given)
