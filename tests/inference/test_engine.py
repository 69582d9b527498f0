from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from models.small_models import PROMPTS, small_model

from small_doge import DogeForCausalLM
from small_doge.inference import load, native
from small_doge.inference.engine import Engine
from small_doge.inference.model_slots import ModelSlots
from small_doge.inference.sampling import SamplingParams
from small_doge.inference.slots import SlotSession
from small_doge.inference.torch_backend import TorchBackend
from small_doge.inference.torch_slots import TorchSlots

needs_native = pytest.mark.skipif(not native.is_available(), reason=native.reason())
BACKENDS = [pytest.param("native", marks=needs_native), "torch slots", "the model itself"]


def engine_of(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """An fp32 engine over one of the three sessions."""
    if kind != "native":
        monkeypatch.setattr(native, "_core", None)
        monkeypatch.setattr(native, "_reason", "the test asks for torch")
    if kind == "the model itself":
        monkeypatch.setattr("small_doge.inference.torch_backend.served_by_slots", lambda model: False)
    return load(str(folder), dtype="fp32")


@torch.inference_mode()
def greedy_by_hand(folder: Path, prompt: list[int], n: int) -> tuple[list[int], list[float]]:
    model = DogeForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids, log_probs = list(prompt), []
    for _ in range(n):
        log_prob = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        ids.append(int(log_prob.argmax()))
        log_probs.append(float(log_prob.max()))
    return ids[len(prompt) :], log_probs


@pytest.mark.parametrize("kind", BACKENDS)
def test_greedy_completions_are_the_models_own(kind, model_folder, monkeypatch):
    engine = engine_of(kind, model_folder, monkeypatch)
    prompts = [[0, 50, 60, 70], "The quick brown fox", [0, 9]]
    completions = engine.generate(prompts, max_new_tokens=12, stop_token_ids=(), batch_size=2)
    for prompt, completion in zip(prompts, completions, strict=True):
        ids = engine.encode(prompt)
        tokens, log_probs = greedy_by_hand(model_folder, ids, 12)
        assert completion.token_ids == tokens
        np.testing.assert_allclose(completion.log_probs, log_probs, atol=1e-4)
        assert completion.finish_reason == "length"
        assert completion.prompt_tokens == len(ids)
        assert completion.text == engine.tokenizer.decode(tokens, skip_special_tokens=True)


@pytest.mark.parametrize("kind", BACKENDS)
def test_a_stop_token_ends_a_completion_and_a_stream(kind, model_folder, monkeypatch):
    engine = engine_of(kind, model_folder, monkeypatch)
    free = engine.generate([[0, 50, 60]], max_new_tokens=12, stop_token_ids=())[0].token_ids
    (ended,) = engine.generate([[0, 50, 60]], max_new_tokens=12, stop_token_ids=(free[5],))
    assert ended.finish_reason == "stop"
    assert ended.token_ids == free[: free.index(free[5]) + 1]
    pieces, completion = drain(engine.stream([0, 50, 60], max_new_tokens=12, stop_token_ids=(free[5],)))
    assert completion == ended
    assert "".join(pieces) == engine.tokenizer.decode(ended.token_ids[:-1], skip_special_tokens=True)


@pytest.mark.parametrize("kind", BACKENDS)
@pytest.mark.parametrize("temperature", [1e-7, 1e-40, 1e-320])
def test_the_coldest_draws_are_greedy_ones(kind, temperature, model_folder, monkeypatch):
    engine = engine_of(kind, model_folder, monkeypatch)
    greedy = engine.generate([[0, 50, 60]], max_new_tokens=8, stop_token_ids=())[0].token_ids
    for filters in ({}, {"min_p": 0.5}, {"top_p": 1e-320}, {"top_k": 5, "top_p": 0.5}):
        cold = engine.generate(
            [[0, 50, 60]], max_new_tokens=8, stop_token_ids=(), temperature=temperature, seed=1, **filters
        )
        assert cold[0].token_ids == greedy


def drain(stream) -> tuple[list[str], object]:
    pieces = []
    while True:
        try:
            pieces.append(next(stream))
        except StopIteration as end:
            return pieces, end.value


@pytest.mark.parametrize("kind", BACKENDS)
def test_a_seed_repeats_its_draws_whatever_the_batch(kind, model_folder, monkeypatch):
    engine = engine_of(kind, model_folder, monkeypatch)
    prompts = [[0, 50, 60], [0, 7], [0, 8, 9, 10]]
    how = SamplingParams(max_new_tokens=10, temperature=1.0, top_k=50, seed=3, stop_token_ids=())
    together = [c.token_ids for c in engine.generate(prompts, how)]
    assert [c.token_ids for c in engine.generate(prompts, how, batch_size=1)] == together
    assert drain(engine.stream(prompts[0], how))[1].token_ids == together[0]
    assert [c.token_ids for c in engine.generate(prompts, how, seed=9)] != together


@pytest.mark.parametrize("kind", BACKENDS)
def test_an_embedding_is_the_mean_of_the_last_hidden_states(kind, model_folder, monkeypatch):
    engine = engine_of(kind, model_folder, monkeypatch)
    texts = [[0, 50, 60, 70, 80], [0, 4]]
    model = DogeForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        expected = [model.model(torch.tensor([ids])).last_hidden_state[0].mean(0).numpy() for ids in texts]
    np.testing.assert_allclose(engine.embed(texts), expected, atol=1e-4)


def sessions(folder: Path) -> dict[str, SlotSession]:
    model = small_model()
    model.save_pretrained(folder)
    made: dict[str, SlotSession] = {"torch slots": TorchSlots(model, 4), "the model itself": ModelSlots(model, 4)}
    if native.is_available():
        made["native"] = native.NativeModel.load(folder, "fp32", threads=1).new_session(4)
    return made


def test_every_session_gives_the_same_tokens_past_a_full_window(tmp_path):
    rows = [2, 0, 3, 1]
    greedy, none = [SamplingParams()] * 4, [()] * 4
    results = {}
    for name, session in sessions(tmp_path).items():
        logits = [session.prefill(PROMPTS, rows)]
        first = session.decode(9, greedy, none, rows)
        session.copy(rows[0], rows[1])
        second = session.decode(5, greedy, none, rows)
        logits.append(session.step([5, 6], rows[:2]))
        session.reset([3])
        logits.append(session.prefill([[0, 1, 2]], [3]))
        lengths = [session.length(row) for row in range(4)]
        results[name] = (np.concatenate([first.tokens, second.tokens], 1), np.concatenate(logits), lengths)
    tokens, logits, lengths = results["the model itself"]
    for other_tokens, other_logits, other_lengths in results.values():
        np.testing.assert_array_equal(other_tokens, tokens)
        np.testing.assert_allclose(other_logits, logits, atol=1e-4)
        assert other_lengths == lengths


@needs_native
def test_a_saved_native_file_loads_beside_its_tokenizer(model_folder):
    engine = load(str(model_folder), dtype="int8")
    engine.backend.save(model_folder / "int8.native")
    again = load(str(model_folder / "int8.native"))
    prompt = [0, 50, 60]
    assert again.generate([prompt], max_new_tokens=5) == engine.generate([prompt], max_new_tokens=5)


def test_without_the_core_torch_serves_and_one_warning_names_the_mend(model_folder, monkeypatch, caplog):
    monkeypatch.setattr(native, "_core", None)
    monkeypatch.setattr(native, "_reason", "install a C++17 compiler and reinstall small-doge")
    with caplog.at_level(logging.WARNING):
        engine = load(str(model_folder))
    assert isinstance(engine.backend, TorchBackend)
    (record,) = (r for r in caplog.records if r.name == "small_doge.inference")
    assert "fp32" in record.getMessage() and "install a C++17 compiler" in record.getMessage()


@needs_native
def test_what_the_core_does_not_compute_runs_through_torch(tmp_path, model_folder, caplog):
    for file in model_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    (tmp_path / "config.json").write_text(json.dumps({**config, "rope_parameters": rope}))
    with caplog.at_level(logging.WARNING):
        engine = load(str(tmp_path), dtype="fp32")
    assert "dynamic" in caplog.text
    assert isinstance(engine.new_session(1), ModelSlots)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dtype": "fp8"}, "choose one of fp32, bf16, int8, int4"),
        ({"dtype": "int8", "device": "cuda"}, "runs on a CPU only"),
    ],
    ids=["an unknown type", "int8 on a GPU"],
)
def test_a_type_that_does_not_run_is_refused(model_folder, arguments, message):
    with pytest.raises(ValueError, match=message):
        load(str(model_folder), **arguments)


def test_torchs_names_of_types_are_taken(model_folder):
    assert load(str(model_folder), dtype="float32").generate([[0, 5]], max_new_tokens=2)
