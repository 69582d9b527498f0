"""Logits of our Doge and of transformers' own, from the same files, in both directions.

transformers' eager path is the yardstick: its sdpa path used to let tokens see the future. Tokens are distinct, because
transformers leaves ties between repeated tokens to topk. `legacy_routing` mixtures are part of it.
"""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.doge.configuration_doge import DogeConfig as TheirConfig
from transformers.models.doge.modeling_doge import DogeForCausalLM as TheirModel

from small_doge import DogeConfig, DogeForCausalLM
from small_doge.ops.dynamic_mask_attention import naive

SIZES = ("20M", "60M", "160M", "320M")


def distinct_tokens(vocabulary: int, batch: int, length: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.stack([torch.randperm(vocabulary, generator=generator)[:length] for _ in range(batch)])


def largest_difference(ours, theirs, ids, **inputs):
    with torch.no_grad():
        expected = theirs(ids, **inputs).logits
        assert expected.std() > 0.1, "logits that are all alike would agree by themselves"
        return (ours(ids, **inputs).logits - expected).abs().max().item()


def theirs_from(folder):
    return TheirModel.from_pretrained(folder, attn_implementation="eager").eval()


@pytest.mark.parametrize("backend", ["eager", "sdpa", "doge_blocked"])
@pytest.mark.parametrize("window", [24, 64], ids=lambda w: "masked" if w < 48 else "unmasked")
@pytest.mark.parametrize("size", SIZES)
def test_ours_saved_then_read_by_transformers(size, window, backend, randomized, tmp_path):
    config = DogeConfig.from_size(size, num_hidden_layers=2, vocab_size=256, keep_window_size=window)
    ours = randomized(DogeForCausalLM(config)).eval()
    ours.set_attn_implementation(backend)
    ours.save_pretrained(tmp_path)
    assert largest_difference(ours, theirs_from(tmp_path), distinct_tokens(256, 2, 48)) < 1e-4


@pytest.mark.parametrize("size", SIZES)
def test_theirs_saved_then_read_by_us(size, randomized, tmp_path):
    ours = DogeConfig.from_size(size, num_hidden_layers=2, vocab_size=256, keep_window_size=24)
    fields = {name: getattr(ours, name) for name in TheirConfig.__annotations__ if hasattr(ours, name)}
    theirs = randomized(TheirModel(TheirConfig(**fields))).eval()
    theirs.set_attn_implementation("eager")
    theirs.save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(model) is DogeForCausalLM
    assert largest_difference(model, theirs, distinct_tokens(256, 2, 48)) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("window", [48, 96], ids=lambda w: "masked" if w < 96 else "unmasked")
@pytest.mark.parametrize("size", SIZES)
def test_the_full_sizes(size, window, randomized, tmp_path, monkeypatch):
    """Among so many layers some scores are equal once rounded, and there transformers goes by the bits we drop."""
    monkeypatch.setattr(naive, "round_score", lambda score: score)
    ours = randomized(DogeForCausalLM(DogeConfig.from_size(size, keep_window_size=window))).eval()
    ours.save_pretrained(tmp_path)
    ours.set_attn_implementation("eager")
    theirs = theirs_from(tmp_path).double()
    assert largest_difference(ours.double(), theirs, distinct_tokens(32768, 1, 96)) < 1e-4


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "linear", "factor": 2.0},
        {"rope_type": "dynamic", "factor": 4.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    ],
    ids=lambda scaling: scaling["rope_type"],
)
def test_a_scaled_rotary_embedding(scaling, make_model, tmp_path):
    ours = make_model(rope_parameters={"rope_theta": 5000.0, **scaling}, max_position_embeddings=32)
    ours.save_pretrained(tmp_path)
    plain = make_model(max_position_embeddings=32)
    ids = distinct_tokens(60, 2, 48)
    assert largest_difference(ours, theirs_from(tmp_path), ids) < 1e-4
    assert (ours(ids).logits - plain(ids).logits).abs().max() > 1e-2


def test_left_padding(make_model, tmp_path):
    ours = make_model(keep_window_size=100)
    ours.save_pretrained(tmp_path)
    ids = distinct_tokens(60, 2, 30)
    mask = torch.ones_like(ids)
    mask[0, :7] = 0
    with torch.no_grad():
        a, b = ours(ids, attention_mask=mask).logits, theirs_from(tmp_path)(ids, attention_mask=mask).logits
    assert (a - b)[mask.bool()].abs().max() < 1e-4


def test_hidden_states_and_attention_weights(make_model, tmp_path):
    ours = make_model(attn="eager")
    ours.save_pretrained(tmp_path)
    ids = distinct_tokens(60, 2, 30)
    wanted = {"output_hidden_states": True, "output_attentions": True}
    with torch.no_grad():
        a, b = ours(ids, **wanted), theirs_from(tmp_path)(ids, **wanted)
    assert len(a.hidden_states) == len(b.hidden_states) == 3
    assert len(a.attentions) == len(b.attentions) == 2
    for mine, other in zip(a.hidden_states + a.attentions, b.hidden_states + b.attentions, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-4)


def test_greedy_generation_past_the_window(make_model, tmp_path):
    ours = make_model(vocab_size=600)
    ours.save_pretrained(tmp_path)
    ids = distinct_tokens(600, 2, 20)
    # No token may come twice, or transformers leaves its ties to topk.
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": 600, "no_repeat_ngram_size": 1}
    mask = torch.ones_like(ids)
    expected = theirs_from(tmp_path).generate(ids, attention_mask=mask, **options)
    assert expected.shape == (2, 32)
    assert ours.generate(ids, attention_mask=mask, **options).tolist() == expected.tolist()


def test_a_legacy_mixture(make_model, tmp_path):
    ours = make_model("mixture", legacy_routing=True)
    ours.save_pretrained(tmp_path)
    theirs = theirs_from(tmp_path)
    ids = distinct_tokens(60, 2, 30)
    assert largest_difference(ours, theirs, ids) < 1e-4
    ours.model.layers[0].mlp.legacy_routing = ours.model.layers[1].mlp.legacy_routing = False
    assert largest_difference(ours, theirs, ids) > 1e-2
    # Token by token there is nothing to mix: both routings are one.
    assert largest_difference(ours, theirs, ids[:1, :1]) < 1e-4
