from __future__ import annotations

import copy

import pytest
import torch

from small_doge import DogeCache
from small_doge.models.doge.cache_doge import DogeCacheLayer
from small_doge.ops.dynamic_mask_attention import naive_mask


def fed(scores_BGT: torch.Tensor, window: int, pieces: list[int], valid_BT: torch.Tensor | None = None):
    """A layer that took in these scores, in pieces; key and value of a token are its position."""
    layer = DogeCacheLayer(window)
    batch, groups, length = scores_BGT.shape
    positions = torch.arange(length, dtype=torch.float32).expand(batch, groups, length)[..., None].repeat(1, 1, 1, 4)
    start = 0
    for piece in pieces:
        span = slice(start, start + piece)
        valid = None if valid_BT is None else valid_BT[:, span]
        layer.update(positions[:, :, span], -positions[:, :, span], scores_BGT[:, :, span], valid)
        start += piece
    assert start == length
    return layer


def held(layer: DogeCacheLayer) -> list:
    """The positions held by each head of each row, padding left out."""
    return [
        [sorted(p for p, ok in zip(head, valid, strict=True) if ok) for head in row]
        for row, valid in zip(layer.positions.tolist(), layer.valid.tolist(), strict=True)
    ]


SCORES = {
    "random": torch.rand(2, 3, 40, generator=torch.Generator().manual_seed(0)),
    "few_values_so_that_many_tie": torch.randint(3, (2, 3, 40), generator=torch.Generator().manual_seed(0)).float(),
    "constant": torch.ones(2, 3, 40),
    "rising": torch.arange(40.0).expand(2, 3, 40),
    "falling": -torch.arange(40.0).expand(2, 3, 40),
}
PIECES = {"whole": [40], "tokens": [1] * 40, "chunks": [3, 17, 1, 1, 2, 16], "prompt_then_tokens": [20] + [1] * 20}


@pytest.mark.parametrize("pieces", PIECES.values(), ids=PIECES)
@pytest.mark.parametrize("scores", SCORES.values(), ids=SCORES)
def test_the_slots_are_the_keys_that_the_last_query_sees(scores, pieces):
    layer = fed(scores, 7, pieces)
    mask = naive_mask(scores, 1, 7)[:, :, 0]
    assert held(layer) == [[head.nonzero().flatten().tolist() for head in row] for row in mask]
    # Keys, values and scores moved together with their positions.
    torch.testing.assert_close(layer.keys[..., 0], layer.positions.float())
    torch.testing.assert_close(layer.values, -layer.keys)
    torch.testing.assert_close(layer.scores, scores.gather(2, layer.positions))


@pytest.mark.parametrize("pieces", PIECES.values(), ids=PIECES)
def test_padding_leaves_before_any_key(pieces):
    scores, valid = SCORES["few_values_so_that_many_tie"], torch.ones(2, 40, dtype=torch.bool)
    valid[0, :36] = False
    valid[1, 10:14] = False
    layer = fed(scores, 7, pieces, valid)
    limit = valid.long() * 40
    mask = naive_mask(scores, 1, 7, limit)[:, :, 0]
    assert held(layer) == [[head.nonzero().flatten().tolist() for head in row] for row in mask]
    assert held(layer)[0] == [[36, 37, 38, 39]] * 3


@torch.no_grad()
def test_there_are_never_more_than_w_slots_and_memory_stays_flat(make_model):
    model = make_model()
    cache = DogeCache(model.config)
    model(torch.randint(60, (1, 30)), past_key_values=cache)
    assert cache.slots == 8
    after_prompt = cache.memory_bytes()
    for token in range(40):
        model(torch.tensor([[token]]), past_key_values=cache)
        assert cache.slots == 8
        assert {layer.keys.shape[2] for layer in cache.layers} == {8}
        assert cache.memory_bytes() == after_prompt
    assert cache.get_seq_length() == 70


def test_a_short_text_takes_no_more_slots_than_it_has_tokens(make_model):
    model = make_model()
    cache = DogeCache(model.config)
    assert (cache.slots, cache.memory_bytes()) == (0, 0)
    model(torch.randint(60, (1, 5)), past_key_values=cache)
    assert cache.slots == 5


def test_scores_are_kept_and_not_made_again(make_model):
    model = make_model()
    cache = DogeCache(model.config)
    with torch.no_grad():
        model(torch.randint(60, (1, 20)), past_key_values=cache)
        before = cache.layers[0].scores.clone()
        model.model.layers[0].self_attn.A.add_(1.0)
        model(torch.tensor([[2]]), past_key_values=cache)
    assert (before[..., None] == cache.layers[0].scores[..., None, :]).any(-1).sum() >= before.numel() - 2


@torch.no_grad()
def test_rows_can_be_reordered_repeated_and_selected(make_model):
    model, ids = make_model(), torch.randint(60, (3, 20))
    token = torch.tensor([[5], [6], [7]])
    cache = DogeCache(model.config)
    model(ids, past_key_values=cache)

    def logits(change, tokens):
        changed = copy.deepcopy(cache)
        change(changed)
        return model(tokens, past_key_values=changed).logits

    def alone(row, tok):
        fresh = DogeCache(model.config)
        model(ids[row : row + 1], past_key_values=fresh)
        return model(tok[None], past_key_values=fresh).logits

    order = torch.tensor([2, 0, 0])
    for change, rows in (
        (lambda c: c.reorder_cache(order), [2, 0, 0]),
        (lambda c: c.batch_repeat_interleave(2), [0, 0, 1, 1, 2, 2]),
        (lambda c: c.batch_select_indices(torch.tensor([1])), [1]),
    ):
        tokens = token[: len(rows)].repeat(2, 1)[: len(rows)]
        expected = torch.cat([alone(row, tok) for row, tok in zip(rows, tokens, strict=True)])
        torch.testing.assert_close(logits(change, tokens), expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_cache_goes_back_while_nothing_was_evicted(make_model):
    model, ids = make_model(keep_window_size=32), torch.randint(60, (2, 20))
    cache = DogeCache(model.config)
    model(ids, past_key_values=cache)
    cache.crop(-6)
    assert cache.get_seq_length() == 14
    after = model(ids[:, 14:], past_key_values=cache).logits
    torch.testing.assert_close(after, model(ids).logits[:, 14:], atol=1e-5, rtol=1e-4)


def test_a_cache_that_evicted_cannot_go_back():
    layer = fed(SCORES["random"], 7, [40])
    with pytest.raises(ValueError, match=r"saw 40 tokens and keeps 7.*generate without an assistant"):
        layer.crop(-1)
    with pytest.raises(ValueError, match="as a negative integer, not 3"):
        layer.crop(3)


def test_a_reset_cache_is_empty(make_model):
    model = make_model()
    cache = DogeCache(model.config)
    ids = torch.randint(60, (1, 20))
    first = model(ids, past_key_values=cache).logits
    cache.reset()
    assert (cache.slots, cache.get_seq_length()) == (0, 0)
    torch.testing.assert_close(model(ids, past_key_values=cache).logits, first)
