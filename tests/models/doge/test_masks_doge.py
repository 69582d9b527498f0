import pytest
import torch

from small_doge.models.doge.masks_doge import document_limits, new_tokens_mask, padding_limits


def test_a_restart_of_the_positions_ends_the_document_before_it():
    positions = torch.tensor([[0, 1, 2, 0, 1, 0], [5, 6, 7, 8, 9, 10]])
    assert document_limits(positions, 2).tolist() == [[3, 3, 3, 5, 5, 6], [6, 6, 6, 6, 6, 6]]


def test_positions_without_a_restart_need_no_limits():
    assert document_limits(torch.arange(7)[None], 3) is None


def test_one_row_of_positions_serves_the_whole_batch():
    assert document_limits(torch.tensor([[0, 1, 0]]), 4).tolist() == [[2, 2, 3]] * 4


def test_the_mask_of_the_new_tokens_is_the_end_of_the_attention_mask():
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 1]])
    assert new_tokens_mask(mask, 2).tolist() == [[True, True], [False, True]]
    assert new_tokens_mask(mask, 1) is None
    assert new_tokens_mask(None, 2) is None


def test_padding_on_the_right_alone_needs_no_limits():
    assert padding_limits(torch.tensor([[True, True, False], [True, False, False]])) is None


def test_padding_on_the_left_or_between_is_seen_by_no_query():
    valid = torch.tensor([[False, True, True], [True, False, True]])
    assert padding_limits(valid).tolist() == [[0, 3, 3], [3, 0, 3]]


def test_a_four_dimensional_mask_is_refused_with_the_mend():
    with pytest.raises(ValueError, match=r"attention_mask has 4 dimensions.*pass \[batch, length\]"):
        new_tokens_mask(torch.ones(1, 1, 3, 3), 3)
