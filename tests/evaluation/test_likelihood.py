"""Bits per byte, answer loss and preferences are what a plain forward of each sequence alone gives."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from small_doge.evaluation.likelihood import (
    Scored,
    answer_loss,
    bits_per_byte,
    gzip_bits_per_byte,
    log_likelihoods,
    preference_scores,
    text_windows,
)
from small_doge.evaluation.statistics import mean_interval, paired_difference_interval, wilson_interval
from small_doge.models.loading import load_checkpoint

CHATS = [
    [{"role": "user", "content": "How many apples?"}, {"role": "assistant", "content": "Tom has 12 apples."}],
    [{"role": "user", "content": "Dog?"}, {"role": "assistant", "content": "Lazy."}],
]


@pytest.fixture(scope="module")
def model(model_folder: Path):
    return load_checkpoint(str(model_folder)).eval()


@pytest.fixture(scope="module")
def tokenizer(model_folder: Path):
    return AutoTokenizer.from_pretrained(str(model_folder))


def alone(model, ids: list[int], counted: list[bool]) -> float:
    with torch.no_grad():
        log_probs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(log_probs[i - 1, ids[i]].item() for i in range(1, len(ids)) if counted[i])


def test_a_batch_scores_each_sequence_as_alone(model) -> None:
    generator = torch.Generator().manual_seed(0)
    sequences = []
    for length in (3, 17, 9, 30, 2):
        ids = torch.randint(0, model.config.vocab_size, (length,), generator=generator).tolist()
        sequences.append(Scored(ids, (torch.rand(length, generator=generator) < 0.6).tolist()))
    for batch_tokens in (1, 64, 10_000):
        scored = log_likelihoods(model, sequences, batch_tokens)
        for (total, count), sequence in zip(scored, sequences, strict=True):
            assert total == pytest.approx(alone(model, sequence.ids, sequence.counted), abs=1e-4)
            assert count == sum(sequence.counted[1:])


def test_windows_predict_every_token_but_the_first_once() -> None:
    for length in (1, 2, 7, 8, 9, 50):
        ids = list(range(length))
        predicted = [i for w in text_windows(ids, 8) for i, c in zip(w.ids, w.counted, strict=True) if c]
        assert predicted == ids[1:]
        assert all(len(w.ids) <= 8 for w in text_windows(ids, 8))


def test_bits_per_byte_of_a_short_text_is_its_loss_over_its_bytes(model, tokenizer) -> None:
    text = "The dog näps."
    ids = [0, *tokenizer(text, add_special_tokens=False)["input_ids"], 1]
    expected = -alone(model, ids, [True] * len(ids)) / math.log(2) / len(text.encode())
    assert bits_per_byte(model, tokenizer, [text], 256) == pytest.approx(expected, rel=1e-4)


def test_gzip_bits_per_byte_is_gzips() -> None:
    texts = ["abc " * 100, "def " * 100]
    data = "\n".join(texts).encode()
    assert gzip_bits_per_byte(texts) == 8 * len(gzip.compress(data, 9)) / len(data)


def test_answer_loss_counts_the_assistants_tokens_alone(model, tokenizer) -> None:
    total, count = 0.0, 0
    for chat in CHATS:
        encoded = tokenizer.apply_chat_template(
            chat, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        mask = [bool(m) for m in encoded["assistant_masks"]]
        assert 0 < sum(mask) < len(mask)
        total -= alone(model, encoded["input_ids"], mask)
        count += sum(mask)
    assert answer_loss(model, tokenizer, CHATS) == pytest.approx(total / count, rel=1e-4)


def test_a_preference_is_the_difference_of_the_two_answers(model, tokenizer) -> None:
    pair = {"prompt": CHATS[0][:1], "chosen": CHATS[0][1:], "rejected": CHATS[1][1:]}
    swapped = {"prompt": CHATS[0][:1], "chosen": CHATS[1][1:], "rejected": CHATS[0][1:]}
    scores = preference_scores(model, tokenizer, [pair, swapped])
    ratios = scores.log_ratios.tolist()
    assert ratios[0] == pytest.approx(-ratios[1], abs=1e-4)
    assert abs(ratios[0]) > 0.1
    means = (scores.totals / scores.tokens)[0].tolist()
    assert scores.prefers_chosen == [means[0] > means[1], means[1] > means[0]]


def test_the_loss_on_chosen_answers_is_their_answer_loss(model, tokenizer) -> None:
    pairs = [{"prompt": chat[:1], "chosen": chat[1:], "rejected": CHATS[0][1:]} for chat in CHATS]
    chosen = [[*pair["prompt"], *pair["chosen"]] for pair in pairs]
    expected = answer_loss(model, tokenizer, chosen)
    assert preference_scores(model, tokenizer, pairs).chosen_loss == pytest.approx(expected, rel=1e-5)


def test_intervals() -> None:
    low, high = wilson_interval(50, 100)
    assert (round(low, 3), round(high, 3)) == (0.404, 0.596)
    assert wilson_interval(0, 10)[0] == 0.0
    low, high = paired_difference_interval([False] * 50 + [True] * 50, [True] * 60 + [False] * 40)
    assert low < 0.1 < high
    low, high = mean_interval([1.0, 2.0, 3.0, 4.0])
    assert (low + high) / 2 == pytest.approx(2.5)
    assert high - low == pytest.approx(2 * 1.959964 * math.sqrt(5 / 3 / 4))
