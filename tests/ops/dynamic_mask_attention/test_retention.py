"""Horizons give exactly the mask of the definition."""

from __future__ import annotations

import pytest
import torch

from small_doge.ops.dynamic_mask_attention import naive_mask, retention, retention_horizon, round_score
from small_doge.ops.dynamic_mask_attention.retention import segment_length

from .attention_cases import LIMIT_KINDS, SCORE_KINDS, draw_limits, draw_scores


def mask_of_horizon(horizon, keys):
    position = torch.arange(keys)
    return (position <= position[:, None]) & (position[:, None] < horizon[:, :, None, :])


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("window", [1, 2, 13, 63, 64])
@pytest.mark.parametrize("limits", LIMIT_KINDS)
@pytest.mark.parametrize("scores", SCORE_KINDS)
def test_horizon_gives_the_mask_of_the_definition(scores, limits, window):
    score, limit = draw_scores(scores, 2, 3, 64), draw_limits(limits, 2, 64)
    mask = mask_of_horizon(retention_horizon(score, window, limit), 64)
    assert torch.equal(mask.expand(2, 3, 64, 64), naive_mask(score, 64, window, limit))


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("window", [1, 5, 16])
@pytest.mark.parametrize("limits", LIMIT_KINDS)
@pytest.mark.parametrize("scores", SCORE_KINDS)
def test_horizon_by_segments_is_that_of_the_whole(scores, limits, window, monkeypatch):
    score, limit = draw_scores(scores, 2, 3, 77), draw_limits(limits, 2, 77)
    whole = retention_horizon(score, window, limit)
    monkeypatch.setattr(retention, "segment_length", lambda window: 16)
    parted, place = retention_horizon(score, window, limit), torch.arange(77)
    # A key that is beaten before its own query sees it may have any horizon up to its place.
    assert torch.equal(torch.where(parted > place, parted, 0), torch.where(whole > place, whole, 0))


def test_a_segment_is_as_long_as_the_window_wants():
    assert [segment_length(w) for w in (1, 128, 129, 2048)] == [1 << 16, 1 << 16, 4 * 129**2, 1 << 24]


@pytest.mark.parametrize("scores", SCORE_KINDS)
def test_horizon_is_the_place_of_the_key_that_beats_it_out(scores):
    score, window = draw_scores(scores, 1, 1, 50), 6
    horizon = retention_horizon(score, window)[0, 0]
    value = round_score(score)[0, 0]
    for j in range(50):
        beaters = [k for k in range(50) if value[k] > value[j] or (value[k] == value[j] and k > j)]
        assert horizon[j] == (beaters[window - 1] if len(beaters) >= window else 50)


def test_horizon_is_the_limit_for_every_head_at_once_while_nothing_is_beaten_out():
    limit = draw_limits("packed and padded", 2, 40)
    assert torch.equal(retention_horizon(torch.rand(2, 3, 40), 40, limit), limit[:, None].int())
    assert torch.equal(retention_horizon(torch.rand(2, 3, 40), 99), torch.full((2, 1, 40), 40, dtype=torch.int32))


def test_horizon_of_a_row_does_not_depend_on_the_other_rows():
    score = draw_scores("random", 3, 2, 100)
    assert torch.equal(retention_horizon(score, 9)[1:2], retention_horizon(score[1:2], 9))


def test_horizon_of_a_prefix_is_the_whole_one_cut_off():
    score = draw_scores("of four values", 2, 2, 100)
    assert torch.equal(retention_horizon(score[..., :70], 9), retention_horizon(score, 9)[..., :70].clamp(max=70))


def test_horizon_at_a_length_that_no_mask_fits():
    score = draw_scores("random", 1, 1, 20_000)
    horizon = retention_horizon(score, 512)[0, 0]
    for i in (511, 512, 9_999, 19_999):
        visible = (torch.arange(i + 1) <= i) & (i < horizon[: i + 1])
        best = score[0, 0, : i + 1].topk(512).values.min()
        assert torch.equal(visible, score[0, 0, : i + 1] >= best) or visible.sum() == 512


def test_horizon_refuses_an_empty_window():
    with pytest.raises(ValueError, match="keep_window must be at least 1"):
        retention_horizon(torch.rand(1, 1, 8), 0)
