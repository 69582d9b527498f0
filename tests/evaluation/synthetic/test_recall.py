"""The recall tasks are what they say: solvable from the sequence alone, and the same from the same seed."""

import pytest
import torch

from small_doge.evaluation.synthetic.recall import multi_query_recall, needle_recall


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_every_mqar_answer_follows_its_key_among_the_pairs():
    batch = multi_query_recall(8, 96, 24, 128, generator())
    for ids, asked, answers in zip(*(x.tolist() for x in batch), strict=True):
        pairs = dict(zip(ids[:48:2], ids[1:48:2], strict=True))
        assert len(pairs) == 24
        assert sorted(asked) == sorted(set(asked)) and min(asked) >= 48
        assert [pairs[ids[position]] for position in asked] == answers
        assert max(pairs) < 64 <= min(pairs.values())


def test_mqar_queries_stand_mostly_near_the_pairs():
    distance = multi_query_recall(512, 256, 8, 128, generator()).asked - 16
    assert distance.float().median() < 0.2 * 240


def test_the_needle_is_spelled_out_again_at_the_end():
    batch = needle_recall(64, 50, 32, generator())
    starts = set()
    for ids, asked, answers in zip(*(x.tolist() for x in batch), strict=True):
        first, second = (i for i, token in enumerate(ids) if token == 0)
        starts.add(first)
        assert second == 44
        assert ids[first : first + 6] == ids[second:]
        assert [ids[position + 1] for position in asked] == answers == ids[46:]
    assert len(starts) > 10


@pytest.mark.parametrize(("depth", "start"), [(0.0, 0), (0.5, 19), (1.0, 38)])
def test_the_needle_stands_at_the_depth_asked_for(depth, start):
    ids = needle_recall(2, 50, 32, generator(), depth=depth).ids
    assert (ids[:, start] == 0).all()


def test_a_seed_gives_the_same_examples_and_another_seed_others():
    for task in (lambda g: multi_query_recall(2, 64, 8, 64, g), lambda g: needle_recall(2, 64, 64, g)):
        assert torch.equal(task(generator(1)).ids, task(generator(1)).ids)
        assert not torch.equal(task(generator(1)).ids, task(generator(2)).ids)


@pytest.mark.parametrize(
    ("make", "mend"),
    [
        (lambda: multi_query_recall(1, 32, 16, 64, generator()), "raise the length"),
        (lambda: multi_query_recall(1, 320, 64, 64, generator()), "raise vocab_size"),
        (lambda: needle_recall(1, 8, 64, generator()), "raise 8"),
        (lambda: needle_recall(1, 64, 64, generator(), depth=1.5), "from 0 to 1"),
    ],
    ids=["too many pairs", "too few tokens", "too short for the needle", "a depth outside"],
)
def test_what_cannot_be_made_is_refused_with_the_mend(make, mend):
    with pytest.raises(ValueError, match=mend):
        make()
