import json
from pathlib import Path

import numpy as np
import pytest
import torch
from native_reference import SIZES, random_model, size_model
from native_reference import logits as reference_logits
from transformers import DogeForCausalLM

from small_doge.inference import native
from small_doge.inference.native import NativeModel


def isas() -> list[str]:
    return native.available_isas() if native.is_available() else ["plain"]


def distinct_tokens(vocab: int, n: int) -> list[int]:
    """Parity with transformers is judged without repeats: its own topk breaks ties otherwise."""
    return torch.randperm(vocab, generator=torch.Generator().manual_seed(1))[:n].tolist()


@torch.no_grad()
def eager_logits(model: DogeForCausalLM, tokens: list[int]) -> np.ndarray:
    return model(torch.tensor([tokens])).logits[0].numpy()


@pytest.mark.parametrize("threads", [1, 2, 3], ids=lambda n: f"{n} threads")
@pytest.mark.parametrize("isa", isas())
def test_fp32_prefill_equals_transformers(tiny: tuple[DogeForCausalLM, Path], isa: str, threads: int) -> None:
    model, folder = tiny
    tokens = distinct_tokens(509, 300)
    session = NativeModel.load(folder, "fp32", threads, isa).new_session()
    got = session.prefill([tokens], all_positions=True)[0]
    np.testing.assert_allclose(got, eager_logits(model, tokens), atol=1e-4)


@pytest.mark.parametrize(
    "size", ["20M", *(pytest.param(s, marks=pytest.mark.slow) for s in SIZES if s != "20M")], ids=lambda s: s
)
def test_fp32_equals_transformers_over_512_tokens_at_the_released_shapes(size: str, tmp_path: Path) -> None:
    model = size_model(size)
    model.save_pretrained(tmp_path)
    tokens = distinct_tokens(32768, 512)
    session = NativeModel.load(tmp_path, "fp32", threads=1).new_session()
    got = session.prefill([tokens], all_positions=True)[0]
    np.testing.assert_allclose(got, eager_logits(model, tokens), atol=1e-4)


@pytest.mark.parametrize("dtype", native.DTYPES)
def test_prefill_then_steps_equal_one_prefill(tiny: tuple[DogeForCausalLM, Path], dtype: str) -> None:
    tokens = distinct_tokens(509, 150)
    core = NativeModel.load(tiny[1], dtype, threads=1)
    whole = core.new_session().prefill([tokens], all_positions=True)[0]
    session = core.new_session()
    steps = [session.prefill([tokens[:70]])[0]] + [session.step([t])[0] for t in tokens[70:]]
    # Sums run in another order, which in the quantized types can tip a rounding of an activation.
    np.testing.assert_allclose(np.stack(steps), whole[69:], atol={"fp32": 1e-5, "bf16": 0.02}.get(dtype, 0.2))
    assert session.length(0) == 150


@pytest.mark.parametrize("dtype", ["fp32", "int8"])
def test_a_change_of_one_token_moves_nothing_before_it(tiny: tuple[DogeForCausalLM, Path], dtype: str) -> None:
    core = NativeModel.load(tiny[1], dtype, threads=1)
    tokens = distinct_tokens(509, 130)
    changed = [*tokens[:90], 3, *tokens[91:]]
    for slots in (None, 20):
        before = core.new_session(1, slots).prefill([tokens], all_positions=True)[0]
        after = core.new_session(1, slots).prefill([changed], all_positions=True)[0]
        np.testing.assert_array_equal(before[:90], after[:90])
        assert np.abs(before[90:] - after[90:]).max(-1).min() > 0


@pytest.mark.parametrize("window", [1, 7, 33], ids=lambda w: f"window {w}")
@pytest.mark.parametrize("repeats", [False, True], ids=["distinct tokens", "few tokens that tie"])
def test_bounded_cache_equals_the_definition(window: int, repeats: bool, tmp_path: Path) -> None:
    model = random_model(seed=window, keep_window_size=window)
    model.save_pretrained(tmp_path)
    tokens = distinct_tokens(509, 80)
    if repeats:
        tokens = [t % 11 for t in tokens]
    expected = reference_logits(model, tokens, window).numpy()
    for threads in (1, 3):  # one takes all tokens of the prompt, three share them out
        core = NativeModel.load(tmp_path, "fp32", threads)
        whole = core.new_session().prefill([tokens], all_positions=True)[0]
        np.testing.assert_allclose(whole, expected, atol=1e-4)
    session = core.new_session()
    steps = np.stack([session.step([t])[0] for t in tokens])
    np.testing.assert_allclose(steps, expected, atol=1e-4)
    assert session.memory["cache_used"] == 2 * 2 * window * (2 * 16 * 4 + 12)


def test_max_slots_acts_as_a_narrower_window(tiny: tuple[DogeForCausalLM, Path]) -> None:
    tokens = distinct_tokens(509, 60)
    expected = reference_logits(tiny[0], tokens, 10).numpy()
    got = NativeModel.load(tiny[1], "fp32").new_session(max_slots=10).prefill([tokens], all_positions=True)[0]
    np.testing.assert_allclose(got, expected, atol=1e-4)


@pytest.mark.parametrize("tied", [True, False], ids=["tied head", "own head"])
@pytest.mark.parametrize("experts", [0, 64], ids=["dense", "mixture"])
def test_every_architecture_equals_the_definition(tied: bool, experts: int, tmp_path: Path) -> None:
    mixture = {"is_moe": True, "num_experts": experts, "num_experts_per_tok": 12} if experts else {}
    model = random_model(tie_word_embeddings=tied, num_attention_heads=2, num_key_value_heads=1, **mixture)
    model.save_pretrained(tmp_path)
    if experts:
        mark_per_token_routing(tmp_path)
    tokens = distinct_tokens(509, 80)
    expected = reference_logits(model, tokens, 2048).numpy()
    for threads in (1, 3):
        core = NativeModel.load(tmp_path, "fp32", threads)
        np.testing.assert_allclose(core.new_session().prefill([tokens], all_positions=True)[0], expected, atol=1e-4)
    session = core.new_session()
    steps = np.stack([session.step([t])[0] for t in tokens])
    np.testing.assert_allclose(steps, expected, atol=1e-4)


def mark_per_token_routing(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "legacy_routing": False}))


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default", "rope_theta": 500000.0},
        {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
        {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64},
        {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ],
    ids=lambda r: r["rope_type"],
)
def test_each_kind_of_rope_equals_transformers(rope: dict[str, object], tmp_path: Path) -> None:
    model = random_model(rope_parameters=rope)
    model.save_pretrained(tmp_path)
    tokens = distinct_tokens(509, 200)
    got = NativeModel.load(tmp_path, "fp32").new_session().prefill([tokens], all_positions=True)[0]
    np.testing.assert_allclose(got, eager_logits(model, tokens), atol=1e-4)


@pytest.mark.parametrize(("dtype", "worst"), [("bf16", 0.01), ("int8", 0.05), ("int4", 0.5)], ids=lambda v: str(v))
def test_quantized_logits_stay_close_to_fp32(dtype: str, worst: float, tmp_path: Path) -> None:
    size_model("20M").save_pretrained(tmp_path)
    tokens = distinct_tokens(32768, 64)
    exact = NativeModel.load(tmp_path, "fp32").new_session().prefill([tokens], all_positions=True)[0]
    got = NativeModel.load(tmp_path, dtype).new_session().prefill([tokens], all_positions=True)[0]
    assert np.sqrt(np.mean((got - exact) ** 2)) < worst * exact.std()


@pytest.mark.parametrize("dtype", native.DTYPES)
def test_a_saved_file_gives_the_same_logits(tiny: tuple[DogeForCausalLM, Path], dtype: str, tmp_path: Path) -> None:
    tokens = distinct_tokens(509, 40)
    core = NativeModel.load(tiny[1], dtype)
    core.save(tmp_path / "model.native")
    again = NativeModel.load(tmp_path / "model.native")
    assert again.dtype == dtype
    np.testing.assert_array_equal(core.new_session().prefill([tokens]), again.new_session().prefill([tokens]))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.native"]


def test_shards_and_half_precision_weights_load(tmp_path: Path) -> None:
    tokens = distinct_tokens(509, 40)
    for dtype in (torch.bfloat16, torch.float16):
        folder = tmp_path / str(dtype)
        random_model().to(dtype).save_pretrained(folder, max_shard_size="50KB")
        assert len(list(folder.glob("*.safetensors"))) > 1
        stored = DogeForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
        expected = eager_logits(stored, tokens)
        got = NativeModel.load(folder, "fp32").new_session().prefill([tokens], all_positions=True)[0]
        np.testing.assert_allclose(got, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llama"}, "runs 'doge'"),
        ({"attention_bias": True}, "attention_bias"),
        ({"qk_norm": False}, "qk_norm"),
        ({"score_per_query_head": True}, "score_per_query_head"),
        ({"num_hidden_layers": 3}, "has no model.layers.2"),
        ({"intermediate_size": 112}, "another shape"),
        ({"is_moe": True, "num_experts": 60}, "perfect square"),
        ({"is_moe": True, "num_experts": 64}, "legacy_routing"),
        ({"rope_parameters": {"rope_type": "dynamic"}}, "dynamic"),
    ],
    ids=lambda v: str(v),
)
def test_a_checkpoint_that_the_core_cannot_run_is_refused(
    tiny: tuple[DogeForCausalLM, Path], change: dict[str, object], message: str, tmp_path: Path
) -> None:
    config = json.loads((tiny[1] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    (tmp_path / "model.safetensors").write_bytes((tiny[1] / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match=message):
        NativeModel.load(tmp_path)


def test_hidden_states_equal_transformers(tiny: tuple[DogeForCausalLM, Path]) -> None:
    model, folder = tiny
    prompts = [distinct_tokens(509, 100), [4, 9]]
    got = NativeModel.load(folder, "fp32").hidden(prompts)
    for states, prompt in zip(got, prompts, strict=True):
        with torch.no_grad():
            expected = model.model(torch.tensor([prompt])).last_hidden_state[0].numpy()
        np.testing.assert_allclose(states, expected, atol=1e-4)


def test_a_file_cut_short_is_refused(tiny: tuple[DogeForCausalLM, Path], tmp_path: Path) -> None:
    NativeModel.load(tiny[1]).save(tmp_path / "whole")
    data = (tmp_path / "whole").read_bytes()
    (tmp_path / "part").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="cut short"):
        NativeModel.load(tmp_path / "part")
