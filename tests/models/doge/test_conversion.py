from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM

from small_doge import DogeConfig, DogeForCausalLM
from small_doge.models.doge.conversion import (
    export_remote_code,
    from_llama,
    obstacle_for_transformers,
    read_doge,
    share_scores,
    upcycle,
)


def text(batch=2, length=40):
    return torch.randint(3, 60, (batch, length), generator=torch.Generator().manual_seed(1))


def logits(model, ids=None):
    with torch.no_grad():
        return model.eval()(text() if ids is None else ids, use_cache=False).logits


# A mixture out of a dense model


def test_a_new_mixture_has_the_logits_of_the_dense_model_bit_for_bit(make_model):
    dense = make_model()
    mixture = upcycle(dense, num_experts=64, num_experts_per_tok=8)
    assert mixture.config.is_moe and not mixture.config.legacy_routing
    assert torch.equal(logits(mixture), logits(dense))
    mixture.model.layers[0].mlp.up_embed.weight.data.normal_()
    assert not torch.equal(logits(mixture), logits(dense))


def test_a_mixture_grows_out_of_a_folder_and_goes_back_into_one(make_model, tmp_path):
    dense = make_model()
    dense.save_pretrained(tmp_path / "dense")
    upcycle(tmp_path / "dense", 64, 8, output_router_logits=True).save_pretrained(tmp_path / "mixture")
    mixture = DogeForCausalLM.from_pretrained(tmp_path / "mixture")
    assert mixture.config.output_router_logits and mixture.config.num_experts_per_tok == 8
    assert torch.equal(logits(mixture), logits(dense))


def test_the_seed_decides_the_router_and_the_callers_random_state_stays(make_model):
    dense = make_model()
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    routers = [upcycle(dense, 64, 8, seed=seed).model.layers[0].mlp.router_gate.weight for seed in (1, 1, 2)]
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(routers[0], routers[1]) and not torch.equal(routers[0], routers[2])


def test_every_expert_weight_of_a_new_mixture_learns(make_model):
    mixture = upcycle(make_model(), 16, 4, output_router_logits=True).train()
    before = {name: p.detach().clone() for name, p in mixture.named_parameters()}
    optimizer = torch.optim.AdamW(mixture.parameters(), lr=1e-3, weight_decay=0.0)
    losses = []
    for _ in range(25):
        loss = mixture(text(), labels=text()).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(torch.tensor(losses).isfinite()) and 0 < losses[-1] < losses[0]
    for name, parameter in mixture.named_parameters():
        assert parameter.isfinite().all() and not torch.equal(parameter, before[name]), name


def test_a_mixture_is_not_grown_twice(make_model):
    with pytest.raises(ValueError, match="a mixture of 36 experts already: give a dense one"):
        upcycle(make_model("mixture"), 64, 8)


def test_a_number_of_experts_that_is_no_square_is_refused(make_model):
    with pytest.raises(ValueError, match="perfect square"):
        upcycle(make_model(), 60, 8)


# A Doge out of a Llama


LLAMA = {
    "vocab_size": 60,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"tie_word_embeddings": True, "rms_norm_eps": 1e-5},
        {"attention_bias": True, "mlp_bias": True},
        {"rope_parameters": LLAMA3},
    ],
    ids=["plain", "tied", "with_biases", "with_scaled_positions"],
)
def test_a_doge_out_of_a_llama_has_its_logits(fields, randomized, tmp_path):
    llama = randomized(LlamaForCausalLM(LlamaConfig(**LLAMA, **fields)))
    llama.save_pretrained(tmp_path / "llama")
    doge = from_llama(tmp_path / "llama")
    torch.testing.assert_close(logits(doge), logits(llama), atol=1e-4, rtol=1e-4)
    doge.save_pretrained(tmp_path / "doge")
    torch.testing.assert_close(
        logits(DogeForCausalLM.from_pretrained(tmp_path / "doge")), logits(llama), atol=1e-4, rtol=1e-4
    )


def test_a_sliding_window_becomes_the_keep_window(randomized):
    mistral = randomized(MistralForCausalLM(MistralConfig(**LLAMA, sliding_window=9)))
    doge = from_llama(mistral)
    assert doge.config.keep_window_size == 9
    torch.testing.assert_close(logits(doge), logits(mistral), atol=1e-4, rtol=1e-4)


def test_the_scores_of_a_doge_out_of_a_llama_learn(randomized):
    doge = from_llama(randomized(LlamaForCausalLM(LlamaConfig(**LLAMA))), keep_window_size=16).train()
    doge(text(), labels=text()).loss.backward()
    for layer in doge.model.layers:
        assert (layer.self_attn.A.grad != 0).all()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Qwen2Config(**LLAMA), "model_type is 'qwen2': a Doge grows out of a llama or a mistral"),
        (LlamaConfig(**LLAMA, head_dim=32), "4 heads of size 32 do not make up the width 64"),
    ],
    ids=["another_family", "heads_wider_than_the_model"],
)
def test_a_model_of_another_shape_is_refused(config, message):
    model = (Qwen2ForCausalLM if config.model_type == "qwen2" else LlamaForCausalLM)(config)
    with pytest.raises(ValueError, match=message):
        from_llama(model)


# The oldest layouts


OLD_NAMES = {
    "model.embed_tokens.": "model.word_embed.",
    "model.norm.": "model.final_layernorm.",
    ".input_layernorm.": ".pre_layernorm.",
    ".input_residual": ".pre_residual.weight",
    ".post_attention_layernorm.": ".post_layernorm.",
    ".post_attention_residual": ".post_residual.weight",
    ".mlp.": ".feed_forward.",
}


@pytest.fixture
def oldest(make_model, tmp_path):
    """A model in the layout of the first releases, and its folder with the first names and without our fields."""
    model = make_model("scores_per_query_head", tie_word_embeddings=False)
    model.save_pretrained(tmp_path)
    weights = {}
    for name, tensor in load_file(tmp_path / "model.safetensors").items():
        for new, old in OLD_NAMES.items():
            name = name.replace(new, old)
        weights[name] = tensor
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    fields = json.loads((tmp_path / "config.json").read_text())
    del fields["qk_norm"], fields["score_per_query_head"]
    fields["auto_map"] = {"AutoConfig": "configuration_doge.DogeConfig"}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    return model, tmp_path


def test_the_oldest_layout_is_read_from_its_weights(oldest):
    model, folder = oldest
    read = read_doge(folder)
    assert (read.config.qk_norm, read.config.score_per_query_head) == (False, True)
    assert torch.equal(logits(read), logits(model))


@pytest.mark.parametrize("kind", ["dense", "mixture"])
def test_todays_layout_is_read_too(kind, make_model, tmp_path):
    model = make_model(kind)
    model.save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    torch.testing.assert_close(logits(read_doge(tmp_path)), logits(model), atol=1e-5, rtol=1e-5)


def test_a_file_older_than_the_window_masks_nothing(oldest):
    _, folder = oldest
    fields = json.loads((folder / "config.json").read_text())
    del fields["keep_window_size"]
    (folder / "config.json").write_text(json.dumps(fields))
    assert read_doge(folder).config.keep_window_size == 256


def test_weights_of_another_architecture_are_refused(oldest):
    _, folder = oldest
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.feed_forward.queries.weight"] = torch.ones(3)
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"no place in a Doge of this configuration: model.layers.0.mlp.queries.weight"
    ):
        read_doge(folder)


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no config.json with \*.safetensors beside it"):
        read_doge(tmp_path)


@pytest.mark.parametrize("bias", [False, True], ids=["without_bias", "with_bias"])
def test_scores_of_query_heads_become_scores_of_key_value_heads_of_their_own(bias, make_model):
    model = make_model("scores_per_query_head", attention_bias=bias)
    shared = share_scores(model)
    assert (shared.config.score_per_query_head, shared.config.num_key_value_heads) == (False, 4)
    torch.testing.assert_close(logits(shared), logits(model), atol=1e-5, rtol=1e-5)


def test_query_heads_that_score_alike_go_on_sharing_their_key_value_head(make_model):
    model = make_model("scores_per_query_head")
    with torch.no_grad():
        for layer in model.model.layers:
            attention = layer.self_attn
            attention.A.copy_(attention.A[[0, 0, 2, 2]])
            attention.dt_proj.weight.copy_(attention.dt_proj.weight[[0, 0, 2, 2]])
    shared = share_scores(model)
    assert shared.config.num_key_value_heads == 2
    torch.testing.assert_close(logits(shared), logits(model), atol=1e-5, rtol=1e-5)


def test_shared_scores_load_in_plain_transformers_where_the_norms_allow(make_model, tmp_path):
    from transformers.models.doge.modeling_doge import DogeForCausalLM as Theirs

    shared = share_scores(make_model("scores_per_query_head", qk_norm=True, vocab_size=200))
    assert obstacle_for_transformers(shared.config) is None
    shared.save_pretrained(tmp_path)
    ids = torch.randperm(200, generator=torch.Generator().manual_seed(0))[:40][None]
    theirs = Theirs.from_pretrained(tmp_path, attn_implementation="eager")
    torch.testing.assert_close(logits(theirs, ids), logits(shared, ids), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("kind", "fields", "reason"),
    [
        ("scores_per_query_head", {}, "share_scores first"),
        ("dense", {"qk_norm": False}, "queries and keys have no norm"),
        ("mixture", {}, "routes each token by itself"),
        ("mixture", {"legacy_routing": True}, None),
        ("dense", {}, None),
    ],
)
def test_what_keeps_transformers_from_running_a_model_is_said(kind, fields, reason, make_config):
    obstacle = obstacle_for_transformers(make_config(kind, **fields))
    assert obstacle is None if reason is None else reason in obstacle


# A checkpoint with its own code


RUN = """
import sys
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

class Refuse:
    def find_spec(name, *_):
        if name.split(".")[0] == "small_doge":
            raise ImportError(name)

sys.meta_path.insert(0, Refuse)
for folder in sys.argv[1:]:
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    ids = torch.load(folder + "/ids.pt")
    with torch.no_grad():
        torch.save(model(ids, use_cache=False).logits, folder + "/logits.pt")
        torch.save(model.generate(ids, max_new_tokens=20, do_sample=False), folder + "/generated.pt")
    base = AutoModel.from_pretrained(folder, trust_remote_code=True)
    classifier = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
    for part in (model, base, classifier, classifier.model):
        assert type(part).__module__.startswith("transformers_modules"), type(part).__module__
assert not any(name.split(".")[0] == "small_doge" for name in sys.modules), "the package was imported"
"""
EXPORTED = ("dense", "mixture", "scores_per_query_head")


@pytest.fixture(scope="module")
def exported(make_model, tmp_path_factory):
    """A folder for each kind, with what one process without the package computed from all of them."""
    root = tmp_path_factory.mktemp("exported")
    for kind in EXPORTED:
        export_remote_code(make_model(kind), root / kind)
        torch.save(text(), root / kind / "ids.pt")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"HF_MODULES_CACHE": str(root / "modules"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", RUN, *(str(root / kind) for kind in EXPORTED)]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return root


@pytest.mark.parametrize("kind", EXPORTED)
def test_an_exported_model_runs_where_only_transformers_and_torch_are(kind, exported, make_model):
    model = make_model(kind)
    torch.testing.assert_close(torch.load(exported / kind / "logits.pt"), logits(model))
    expected = model.generate(text(), max_new_tokens=20, do_sample=False)
    assert torch.equal(torch.load(exported / kind / "generated.pt"), expected)


@pytest.mark.parametrize("kind", EXPORTED)
def test_exported_code_names_nothing_of_the_package(kind, exported):
    for file in (exported / kind).glob("*.py"):
        assert "small_doge" not in "".join(line for line in file.read_text().splitlines() if "import " in line)


def test_an_exported_model_still_loads_with_the_package(make_model, tmp_path):
    from transformers import AutoModelForCausalLM

    model = make_model()
    export_remote_code(model, tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is DogeForCausalLM and isinstance(loaded.config, DogeConfig)
    assert torch.equal(logits(loaded), logits(model))
