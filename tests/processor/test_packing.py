from __future__ import annotations

import numpy as np
import pytest

from small_doge.processor.packing import best_fit, one_piece_a_row, pack, split_lengths


def lengths_like_text(count: int, seed: int = 0) -> np.ndarray:
    return np.clip(np.random.default_rng(seed).lognormal(5, 1.2, count).astype(int), 1, 6000)


def sequences(packed):
    """The pieces of each row, as lists of their tokens."""
    rows = packed.to_arrow().to_pylist()
    for row in rows:
        ends = np.cumsum(row["seq_lengths"])
        yield [row["input_ids"][end - size : end] for end, size in zip(ends, row["seq_lengths"], strict=True)]


@pytest.mark.parametrize("fill", [False, True])
def test_every_token_is_placed_once(fill):
    lengths = lengths_like_text(500)
    tokens = np.arange(lengths.sum(), dtype=np.int32)
    packed, stats = pack({"input_ids": tokens}, lengths, 512, np.random.default_rng(1), fill=fill)
    assert sorted(packed.columns["input_ids"].tolist()) == tokens.tolist()
    assert stats.tokens_in == stats.tokens_out == len(tokens)
    assert stats.truncation_rate == 0


@pytest.mark.parametrize("fill", [False, True])
def test_rows_hold_whole_runs_of_their_sequences_and_never_too_much(fill):
    lengths = lengths_like_text(300)
    owner = np.repeat(np.arange(len(lengths)), lengths).astype(np.int32)
    packed, _ = pack({"input_ids": owner}, lengths, 256, fill=fill)
    for pieces in sequences(packed):
        assert sum(map(len, pieces)) <= 256
        assert all(len(set(piece)) == 1 for piece in pieces)


def test_short_sequences_stay_whole_without_fill():
    lengths = np.array([100, 30, 70, 60, 40, 100, 5])
    packed, stats = pack({"input_ids": np.zeros(lengths.sum(), dtype=np.int32)}, lengths, 100)
    assert sorted(packed.lengths.tolist()) == sorted(lengths.tolist())
    assert stats.split == 0
    assert stats.rows == 5


def test_a_long_sequence_continues_in_further_rows():
    packed, stats = pack({"input_ids": np.arange(250, dtype=np.int32)}, [250], 100)
    assert sorted(len(piece) for row in sequences(packed) for piece in row) == [50, 100, 100]
    assert stats.split == 1


def test_best_fit_puts_a_piece_where_the_least_room_is_left():
    assert best_fit(np.array([60, 50, 40, 30]), 100) == [[0, 2], [1, 3]]


@pytest.mark.parametrize("seed", range(5))
def test_fill_makes_the_fewest_rows_possible(seed):
    lengths = lengths_like_text(40, seed)
    _, stats = pack({"input_ids": np.zeros(lengths.sum(), dtype=np.int32)}, lengths, 512, fill=True)
    assert stats.rows == -(-lengths.sum() // 512)


def test_fill_fills_every_row_where_the_tokens_allow():
    lengths = [300] * 512
    packed, stats = pack({"input_ids": np.zeros(300 * 512, dtype=np.int32)}, lengths, 512, fill=True)
    assert stats.padding_rate == 0
    assert {sum(map(len, row)) for row in sequences(packed)} == {512}


def test_best_fit_wastes_little_room_on_text():
    lengths = lengths_like_text(3000)
    _, stats = pack({"input_ids": np.zeros(lengths.sum(), dtype=np.int32)}, lengths, 2048)
    assert stats.padding_rate < 0.01


def test_the_same_seed_gives_the_same_rows():
    lengths = lengths_like_text(200)
    tokens = np.arange(lengths.sum(), dtype=np.int32)
    one, two, other = (pack({"input_ids": tokens}, lengths, 512, np.random.default_rng(seed))[0] for seed in (5, 5, 6))
    assert one.to_arrow().equals(two.to_arrow())
    assert not one.to_arrow().equals(other.to_arrow())


def test_columns_move_together():
    lengths = lengths_like_text(100)
    tokens = np.arange(lengths.sum(), dtype=np.int32)
    packed, _ = pack({"input_ids": tokens, "assistant_masks": (tokens % 2).astype(np.int8)}, lengths, 512)
    assert (packed.columns["input_ids"] % 2 == packed.columns["assistant_masks"]).all()


def test_without_packing_each_row_is_one_piece():
    packed, stats = one_piece_a_row({"input_ids": np.arange(130, dtype=np.int32)}, [30, 100], 60)
    assert [len(row) for row in sequences(packed)] == [1, 1, 1]
    assert packed.lengths.tolist() == [30, 60, 40]
    assert stats.padding_rate == pytest.approx(1 - 130 / 180)


def test_split_lengths_cuts_at_full_rows():
    starts, sizes = split_lengths([5, 12], 5)
    assert starts.tolist() == [0, 5, 10, 15]
    assert sizes.tolist() == [5, 5, 5, 2]
