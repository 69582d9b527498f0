"""A smaller model guesses: decoding with its guesses draws what it draws without."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from generations import assert_same
from native_reference import random_model
from transformers import DogeForCausalLM

from small_doge.inference import load
from small_doge.inference.native import NativeModel, NativeSession
from small_doge.inference.sampling import SamplingParams

PROMPTS = [[7, 8, 9, 60, 61], [3, 4] * 40, [9]]
HOW = {
    "greedy": SamplingParams(),
    "greedy with a penalty": SamplingParams(repetition_penalty=1.3),
    "sampling": SamplingParams(temperature=0.8, seed=5),
    "filters and a penalty": SamplingParams(temperature=0.8, seed=7, top_k=20, top_p=0.95, repetition_penalty=1.1),
}
DRAFTS = 5


def sure_model(seed: int, **changes: object) -> DogeForCausalLM:
    """A random model whose distributions have a clear favourite, as those of trained models mostly do."""
    model = random_model(seed, **changes)
    with torch.no_grad():
        model.model.norm.weight.mul_(4)
    return model


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model; one that is nearly the same; an unrelated smaller one, and one whose cache holds few keys."""
    model = sure_model(0)
    near = sure_model(0)
    with torch.no_grad():
        for parameter in near.parameters():
            if parameter.ndim == 2:
                parameter.add_(0.1 * parameter.std() * torch.randn_like(parameter))
    smaller = {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 1}
    models = {
        "model": model,
        "near": near,
        "unrelated": sure_model(1, **smaller),
        "narrow": sure_model(0, keep_window_size=100),
    }
    folder = tmp_path_factory.mktemp("drafts")
    for name, each in models.items():
        each.save_pretrained(folder / name)
    return {name: folder / name for name in models}


def pair(
    folders: dict[str, Path], draft: str, dtype: str = "int8", batch: int = 1, slots: int = 150, threads: int = 1
) -> list[NativeSession]:
    """The same model's rows without guesses and with those of the model `draft`."""
    plain = NativeModel.load(folders["model"], dtype, threads=threads)
    drafted = NativeModel.load(folders["model"], dtype, threads=threads, drafts=DRAFTS, draft_model=str(folders[draft]))
    return [model.new_session(batch, max_slots=slots) for model in (plain, drafted)]


@pytest.mark.parametrize("how", HOW.values(), ids=HOW.keys())
@pytest.mark.parametrize("draft", ["model", "near", "unrelated", "narrow"])
@pytest.mark.parametrize("dtype", ["fp32", "int8"])
def test_a_draft_model_changes_no_token(folders, dtype, draft, how):
    plain, drafted = pair(folders, draft, dtype, batch=len(PROMPTS))
    for session in (plain, drafted):
        session.prefill(PROMPTS)
    for n in (1, 40, 130):  # the last passes the sizes of both caches, from where on nothing is guessed
        each = [how] * len(PROMPTS)
        assert_same(plain.decode(n, each), drafted.decode(n, each), exact=dtype == "int8")
        assert [plain.length(row) for row in range(3)] == [drafted.length(row) for row in range(3)]
    assert drafted.guesses > 0


def test_two_threads_draw_the_same_tokens(folders):
    plain, drafted = pair(folders, "near", threads=2)
    for session in (plain, drafted):
        session.prefill(PROMPTS[:1])
    # A team that lacks a core shrinks, which sums the probabilities in other parts.
    assert_same(plain.decode(100), drafted.decode(100), exact=False)


@pytest.mark.parametrize("how", HOW.values(), ids=HOW.keys())
def test_a_model_accepts_what_it_guessed_itself(folders, how):
    _, drafted = pair(folders, "model", "fp32")
    drafted.prefill(PROMPTS[:1])
    drafted.decode(1, [how])
    drafted.decode(120, [how])
    assert drafted.guesses > 40
    assert drafted.steps == 120 - drafted.guesses


def test_the_nearer_the_draft_model_the_more_of_its_guesses_are_right(folders):
    shares = {}
    for draft in ("model", "near", "unrelated"):
        _, drafted = pair(folders, draft)
        drafted.prefill(PROMPTS[:1])
        drafted.decode(120)
        shares[draft] = (119 - drafted.steps) / drafted.guesses
    assert shares["model"] > shares["near"] > 0.3 > 0.1 > shares["unrelated"]


def test_the_draft_model_forgets_what_was_refused(folders):
    plain, drafted = pair(folders, "near")
    for session in (plain, drafted):
        session.prefill(PROMPTS[:1])
    for _ in range(10):
        plain.decode(10)
        drafted.decode(10)
        held = plain.memory["cache_used"]
        a_token = held // plain.length(0)
        assert held < drafted.memory["cache_used"] <= 2 * held + DRAFTS * a_token


def test_a_draft_model_guesses_no_more_once_its_cache_is_full(folders):
    _, drafted = pair(folders, "narrow")
    drafted.prefill(PROMPTS[:1])
    drafted.decode(96)
    before = drafted.guesses
    drafted.decode(40)
    assert 0 < before == drafted.guesses


@pytest.mark.parametrize("how", HOW.values(), ids=HOW.keys())
def test_a_stop_token_among_the_guesses_ends_the_row_and_the_draft_model_goes_back_to_it(folders, how):
    plain, drafted = pair(folders, "model")
    plain.prefill(PROMPTS[:1])
    drawn = plain.decode(60, [how]).tokens[0].tolist()
    plain.reset()
    for session in (plain, drafted):
        session.prefill(PROMPTS[:1])
    drafted.decode(1, [how])
    plain.decode(1, [how])
    stop = next(token for token in drawn[5:] if token not in drawn[:5])
    ended = drafted.decode(59, [how], [[stop]])
    assert ended.stopped[0]
    assert_same(plain.decode(59, [how], [[stop]]), ended, exact=True)
    np.testing.assert_array_equal(plain.step([5]), drafted.step([5]))
    steps, guesses = drafted.steps, drafted.guesses
    drafted.decode(1, [how])
    drafted.decode(40, [how])
    assert drafted.guesses - guesses > 10
    assert drafted.steps - steps == 40 - (drafted.guesses - guesses)


def test_the_draft_model_follows_rows_that_are_cut_copied_reset_and_continued(folders):
    plain, drafted = pair(folders, "near", batch=3)
    for session in (plain, drafted):
        session.prefill(PROMPTS[:1], rows=[0])
        session.decode(10, rows=[0])
        session.copy(0, 1)
        session.step([5], rows=[1])
        session.reset([0])
        session.prefill(PROMPTS[2:], rows=[0])
        session.prefill(PROMPTS[1:2], rows=[2])
    for rows in ([1], [0, 2], [2, 1, 0]):
        assert_same(plain.decode(20, rows=rows), drafted.decode(20, rows=rows), exact=True)
    assert drafted.guesses > 60


def test_a_draft_model_with_another_vocabulary_is_refused(folders, tmp_path):
    random_model(vocab_size=300).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"has a vocabulary of 300 tokens and .*model of 509"):
        NativeModel.load(folders["model"], drafts=4, draft_model=tmp_path)


def test_a_draft_model_without_a_number_of_guesses_is_refused(folders):
    with pytest.raises(ValueError, match="draft_model needs drafts"):
        NativeModel.load(folders["model"], draft_model=folders["near"])


def test_an_engine_completes_alike_with_a_draft_model(model_folder):
    plain = load(str(model_folder))
    drafted = load(str(model_folder), drafts=3, draft_model=str(model_folder))
    how = {"max_new_tokens": 20, "temperature": 0.8, "seed": 3}
    prompts = ["The quick brown fox", [0, 50, 60]]
    assert drafted.generate(prompts, **how) == plain.generate(prompts, **how)
    assert "".join(drafted.stream(prompts[0], **how)) == "".join(plain.stream(prompts[0], **how))


def test_a_draft_model_with_another_tokenizer_is_refused(model_folder, tmp_path):
    shutil.copytree(model_folder, tmp_path / "other")
    path = tmp_path / "other" / "tokenizer.json"
    fields = json.loads(path.read_text(encoding="utf-8"))
    ids = fields["model"]["vocab"]
    ids["a"], ids["b"] = ids["b"], ids["a"]
    path.write_text(json.dumps(fields), encoding="utf-8")
    with pytest.raises(ValueError, match="has another tokenizer than the model"):
        load(str(model_folder), drafts=4, draft_model=str(tmp_path / "other"))


def test_a_draft_model_is_refused_where_torch_runs(model_folder):
    with pytest.raises(ValueError, match="drafts need the native core"):
        load(str(model_folder), device="cuda", dtype="bf16", drafts=4, draft_model=str(model_folder))
