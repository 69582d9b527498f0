"""The server's own sampling against transformers' logits processors."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from small_doge.inference.sampling import filtered_weights
from small_doge.serving.choice import TokenChooser, TokenRules
from small_doge.serving.grammar import GrammarCompiler
from small_doge.serving.text import TextCodec

LOGITS = np.random.default_rng(0).normal(size=40).astype(np.float32) * 2


@pytest.mark.parametrize(
    ("options", "processors"),
    [
        ({"temperature": 0.7}, [TemperatureLogitsWarper(0.7)]),
        ({"top_k": 5}, [TopKLogitsWarper(5)]),
        ({"top_p": 0.8}, [TopPLogitsWarper(0.8)]),
        ({"min_p": 0.2}, [MinPLogitsWarper(0.2)]),
        (
            {"temperature": 1.3, "top_k": 20, "top_p": 0.9, "min_p": 0.1},
            [TemperatureLogitsWarper(1.3), TopKLogitsWarper(20), TopPLogitsWarper(0.9), MinPLogitsWarper(0.1)],
        ),
    ],
    ids=["temperature", "top-k", "top-p", "min-p", "all of them"],
)
def test_the_distribution_is_that_of_transformers(options, processors):
    weights = filtered_weights(LOGITS.astype(np.float64), TokenRules(**options))
    logits = torch.from_numpy(LOGITS)[None].double()
    for processor in processors:
        logits = processor(torch.zeros(1, 1, dtype=torch.long), logits)
    np.testing.assert_allclose(weights / weights.sum(), logits.softmax(-1)[0].numpy(), atol=1e-9)


def test_draws_follow_the_distribution():
    rules = TokenRules(temperature=0.8, top_p=0.9, seed=1)
    chooser = TokenChooser(rules, prompt=[0])
    counts = np.bincount([chooser.choose(LOGITS).token for _ in range(4000)], minlength=40)
    weights = filtered_weights(LOGITS.astype(np.float64), rules)
    assert counts[weights == 0].sum() == 0
    assert np.abs(counts / 4000 - weights / weights.sum()).max() < 0.03


def test_the_repetition_penalty_is_that_of_transformers():
    prompt = [3, 4, int(LOGITS.argmax())]
    ours = TokenChooser(TokenRules(temperature=0, repetition_penalty=5.0), prompt).choose(LOGITS).token
    theirs = RepetitionPenaltyLogitsProcessor(5.0)(torch.tensor([prompt]), torch.from_numpy(LOGITS)[None].clone())
    assert ours == int(theirs.argmax()) != int(LOGITS.argmax())


def test_temperature_zero_takes_the_likeliest_and_reports_its_log_probability():
    choice = TokenChooser(TokenRules(temperature=0, top_logprobs=3), [0]).choose(LOGITS)
    expected = torch.from_numpy(LOGITS).log_softmax(-1)
    assert choice.token == LOGITS.argmax() == choice.top[0][0]
    assert choice.logprob == pytest.approx(float(expected.max()), abs=1e-5)
    assert [token for token, _ in choice.top] == expected.topk(3).indices.tolist()


def test_penalties_lower_what_the_completion_has_and_not_what_the_prompt_has():
    rules = TokenRules(temperature=0, presence_penalty=2, frequency_penalty=1)
    likeliest = int(LOGITS.argmax())
    chooser = TokenChooser(rules, prompt=[likeliest])
    assert chooser.choose(LOGITS).token == likeliest
    for _ in range(3):
        chooser.take(likeliest, b"")
    lowered = LOGITS.copy()
    lowered[likeliest] -= 2 + 3
    assert chooser.choose(LOGITS).token == int(lowered.argmax())


def test_the_logits_are_left_as_they_are():
    before = LOGITS.copy()
    TokenChooser(TokenRules(logit_bias={1: 100}, repetition_penalty=2, top_k=2), [1]).choose(LOGITS)
    np.testing.assert_array_equal(LOGITS, before)


def test_a_grammar_with_the_tokens_of_thousands_of_draws_is_never_left(tokenizer):
    codec = TextCodec(tokenizer)
    schema = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 99, "minimum": 0}}}
    schema |= {"required": ["n"], "additionalProperties": False}
    constraint = GrammarCompiler(codec.serialized, len(tokenizer), [tokenizer.eos_token_id]).json_schema(schema)
    flat = np.zeros(len(tokenizer), dtype=np.float32)
    for seed in range(50):
        chooser, ids = TokenChooser(TokenRules(constraint=constraint, seed=seed), []), []
        while not chooser.finished and ids[-1:] != [tokenizer.eos_token_id]:
            token = chooser.choose(flat).token
            chooser.take(token, codec.bytes_of(token))
            ids.append(token)
        assert 0 <= json.loads(tokenizer.decode(ids, skip_special_tokens=True))["n"] <= 99
