"""Our model class for lm-eval answers as lm-eval's own, item by item."""

import pytest
import torch

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'small-doge[eval]'")

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import AutoTokenizer

from small_doge.evaluation.generation import generate_greedily, generate_in_slots
from small_doge.evaluation.lm import SmallDogeLM, load_lm
from small_doge.models.loading import load_checkpoint


@pytest.fixture(scope="module", params=["trained", "random"])
def pair(request, checkpoint):
    """lm-eval's class and ours on one model."""
    model = load_checkpoint(checkpoint)
    if request.param == "random":
        torch.manual_seed(3)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    return HFLM(model, tokenizer=tokenizer, batch_size=3), SmallDogeLM(model, tokenizer=tokenizer, batch_tokens=300)


def instances(kind, arguments):
    return [Instance(kind, {}, args, i, metadata=("task", i, 1)) for i, args in enumerate(arguments)]


SHOTS = "Question: Which animal barks?\nAnswer: a dog\n\nQuestion: What is two plus two?\nAnswer: four\n\n"
PAIRS = [
    *(
        (f"{SHOTS}Question: Which animal {does}?\nAnswer:", f" {what}")
        for does in ("swims", "flies")
        for what in "abcd"
    ),
    ("The cat sits", " on the mat"),
    ("The cat sits ", "on the mat"),
    ("The cat sits\n ", "on the mat and looks at the rain."),
    ("", "A river runs down"),
    ("", "7"),
    ("Ünïcode 中文 and", " more of it 中"),
    ("word " * 300, "at the end"),
]


def test_log_likelihoods_are_those_of_the_stock_class(pair):
    stock, ours = pair
    expected = stock.loglikelihood(instances("loglikelihood", PAIRS), disable_tqdm=True)
    found = ours.loglikelihood(instances("loglikelihood", PAIRS))
    for pair_of_text, (value, greedy), (expected_value, expected_greedy) in zip(PAIRS, found, expected, strict=True):
        assert value == pytest.approx(expected_value, rel=1e-4, abs=1e-4), pair_of_text
        assert greedy == expected_greedy, pair_of_text


def test_rolling_log_likelihoods_are_those_of_the_stock_class(pair):
    stock, ours = pair
    texts = [("The cat sits on the mat. " * 60,), ("Short.",), ("A river runs. " * 30,)]
    expected = stock.loglikelihood_rolling(instances("loglikelihood_rolling", texts), disable_tqdm=True)
    assert ours.loglikelihood_rolling(instances("loglikelihood_rolling", texts)) == pytest.approx(expected, rel=1e-4)


def test_greedy_answers_are_those_of_the_stock_class(pair):
    stock, ours = pair
    line, free = {"until": ["\n"], "max_gen_toks": 20}, {"until": [], "max_gen_toks": 13, "do_sample": False}
    prompts = ["Question: Which animal barks?\nAnswer:", "The cat", "A river runs down from", "Numbers such as 12,"]
    requests = [(prompt, settings) for prompt in prompts for settings in (line, free)]
    expected = stock.generate_until(instances("generate_until", requests), disable_tqdm=True)
    assert ours.generate_until(instances("generate_until", requests)) == expected


def test_the_engine_gives_the_answers_of_the_models_own_cache(pair):
    lm = pair[1]
    texts = ["Question: Which animal barks?\nAnswer:", "The cat sits on", "The cat", "A river", "Numbers such"]
    prompts = sorted((lm.tok_encode(text) for text in texts), key=len, reverse=True)
    for stops, batch_tokens in ((["\n", "the rain"], 300), ([], 10000), (["at"], 1)):
        settings = (lm.model, lm.tokenizer, prompts, 70, stops, batch_tokens)
        expected, found = generate_greedily(*settings), generate_in_slots(*settings)
        for here, there in zip(found, expected, strict=True):
            shorter, longer = sorted((here, there), key=len)
            # Each may run past its stop string, by what lies between two looks.
            assert longer.startswith(shorter)
            assert len(shorter) == len(longer) or any(stop in shorter for stop in stops)


def test_an_answer_leaves_half_of_the_context_to_its_prompt(pair, caplog):
    (text,) = pair[1].generate_until(instances("generate_until", [("word " * 300, {"until": [], "max_gen_toks": 256})]))
    assert "half of the 256" in caplog.text
    assert len(pair[1].tok_encode(text)) <= 128


def test_a_checkpoint_loads_by_its_folder(checkpoint):
    lm = load_lm(checkpoint, "cpu")
    ((value, _),) = lm.loglikelihood(instances("loglikelihood", [("The cat sits", " on the mat")]))
    assert -30 < value < 0
