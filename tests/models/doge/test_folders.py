"""`small-doge upcycle` and `convert`: from one folder to another with the same logits, or the reason why not."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen2Config
from transformers.models.doge.modeling_doge import DogeForCausalLM as TheirModel
from typer.testing import CliRunner

from small_doge import DogeForCausalLM, WonderfulMatricesConfig
from small_doge.cli import app

# Distinct tokens: transformers leaves ties to topk.
IDS = torch.randperm(57, generator=torch.Generator().manual_seed(1))[:40].view(2, 20) + 3


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS, use_cache=False).logits


def run(*arguments):
    """The printed text of a verb; raises what the verb raises."""
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if result.exception is not None:
        raise result.exception
    return result.output


def save(model, folder):
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture
def saved(make_model, tmp_path):
    """saved(kind, **fields): a small model and the folder it was saved to."""

    def make(kind="dense", **fields):
        model = make_model(kind, **fields)
        return model, save(model, tmp_path / "saved")

    return make


def test_a_dense_folder_becomes_a_mixture_with_the_same_logits(saved, tmp_path):
    model, folder = saved()
    output = run("upcycle", folder, tmp_path / "out", "--num-experts", 16, "--num-experts-per-tok", 4)
    mixture = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(logits(mixture), logits(model))
    config = mixture.config
    assert (config.is_moe, config.num_experts, config.num_experts_per_tok) == (True, 16, 4)
    assert (config.legacy_routing, config.output_router_logits, config.router_aux_loss_coef) == (False, True, 0.001)
    assert f"{mixture.num_parameters():,} parameters" in " ".join(output.split())
    assert (tmp_path / "out" / "tokenizer.json").exists()


def test_the_balance_loss_of_a_grown_mixture_can_be_off(saved, tmp_path):
    _, folder = saved()
    run("upcycle", folder, tmp_path / "out", "--num-experts", 16, "--num-experts-per-tok", 4, "--balance", 0)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["output_router_logits"] is False


def test_a_llama_becomes_a_doge_with_its_logits(randomized, tmp_path):
    config = LlamaConfig(
        vocab_size=60,
        hidden_size=64,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    llama = randomized(LlamaForCausalLM(config))
    told = run("convert", save(llama, tmp_path / "llama"), tmp_path / "doge")
    assert "transformers' own Doge would read it wrongly: its queries and keys have no norm" in " ".join(told.split())
    doge = AutoModelForCausalLM.from_pretrained(tmp_path / "doge")
    assert type(doge) is DogeForCausalLM
    torch.testing.assert_close(logits(doge), logits(llama), atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="still computes what the Llama that it grew out of does"):
        run("convert", tmp_path / "doge", tmp_path / "back", "--to", "llama")


def test_todays_layout_without_norms_becomes_upstreams_older_one_and_comes_back(saved, tmp_path):
    model, folder = saved(qk_norm=False)
    run("convert", folder, tmp_path / "older", "--to", "older")
    older = AutoModelForCausalLM.from_pretrained(tmp_path / "older")
    assert older.model.layers[0].self_attn.A.shape == (4,)
    torch.testing.assert_close(logits(older), logits(model), atol=1e-5, rtol=1e-5)
    run("convert", tmp_path / "older", tmp_path / "doge", "--to", "doge")
    torch.testing.assert_close(
        logits(AutoModelForCausalLM.from_pretrained(tmp_path / "doge")), logits(model), atol=1e-5, rtol=1e-5
    )


def test_scores_per_query_head_are_shared_for_transformers(saved, tmp_path):
    model, folder = saved("scores_per_query_head", qk_norm=True)
    assert "wrongly" not in run("convert", folder, tmp_path / "out", "--to", "transformers")
    theirs = TheirModel.from_pretrained(tmp_path / "out", attn_implementation="eager")
    torch.testing.assert_close(logits(theirs), logits(model), atol=1e-4, rtol=1e-4)


def test_a_folder_with_its_code_is_written(saved, tmp_path):
    _, folder = saved()
    run("convert", folder, tmp_path / "out", "--to", "remote-code")
    assert (tmp_path / "out" / "modeling_doge.py").exists() and (tmp_path / "out" / "tokenizer.json").exists()


@pytest.mark.parametrize(
    ("kind", "fields", "to", "message"),
    [
        ("dense", {}, "older", "normed, and the older layout has no place for norms"),
        ("dense", {}, "llama", "norms on queries and keys, a score for each key, weighted residuals"),
        ("mixture", {}, "transformers", "transformers' Doge mixes tokens"),
        ("scores_per_query_head", {}, "transformers", "transformers' Doge always norms them"),
        ("dense", {}, "gguf", "no target 'gguf': choose one of doge, transformers"),
    ],
)
def test_what_has_no_equal_is_refused_with_the_reason(kind, fields, to, message, saved, tmp_path):
    _, folder = saved(kind, **fields)
    with pytest.raises(ValueError, match=message):
        run("convert", folder, tmp_path / "out", "--to", to)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Qwen2Config(num_hidden_layers=1), "model_type is 'qwen2'"),
        (WonderfulMatricesConfig(num_hidden_layers=1), "of the first generation"),
        (None, "holds no model"),
    ],
    ids=["another family", "the first generation", "an empty folder"],
)
def test_other_architectures_are_refused(config, message, tmp_path):
    folder = tmp_path / "other"
    folder.mkdir()
    if config is not None:
        config.save_pretrained(folder)
    with pytest.raises(ValueError, match=message):
        run("convert", folder, tmp_path / "out")


def test_a_folder_that_holds_a_model_is_not_overwritten(saved, tmp_path):
    _, folder = saved()
    with pytest.raises(ValueError, match="holds a model already"):
        run("convert", folder, folder)
