"""Doge among Hugging Face's tools: Auto classes, files, torch.compile, PEFT, tensor parallelism."""

from __future__ import annotations

import fnmatch
import json
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from small_doge import DogeConfig, DogeForCausalLM, DogeForSequenceClassification, DogeModel

KINDS = ["dense", "mixture", "scores_per_query_head"]


def text(batch=2, length=24):
    return torch.randint(3, 60, (batch, length), generator=torch.Generator().manual_seed(1))


# Files


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_comes_back_from_its_file(kind, make_model, tmp_path):
    model = make_model(kind)
    model.save_pretrained(tmp_path)
    loaded, report = DogeForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    torch.testing.assert_close(loaded(text()).logits, model(text()).logits, atol=1e-5, rtol=1e-5)


def test_the_tied_head_is_stored_once_and_tied_again(make_model, tmp_path):
    make_model().save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118 (the file is no dictionary)
    loaded = DogeForCausalLM.from_pretrained(tmp_path)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_an_untied_head_is_stored_and_read(make_model, tmp_path):
    model = make_model(tie_word_embeddings=False)
    model.save_pretrained(tmp_path)
    loaded = DogeForCausalLM.from_pretrained(tmp_path)
    assert loaded.lm_head.weight is not loaded.model.embed_tokens.weight
    assert torch.equal(loaded(text()).logits, model(text()).logits)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_in_shards_is_the_same_model(kind, make_model, tmp_path):
    model = make_model(kind)
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    shards = set(json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"].values())
    assert len(shards) > 2
    loaded = DogeForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(text()).logits, model(text()).logits, atol=1e-5, rtol=1e-5)


def test_a_model_loads_in_half_precision(make_model, tmp_path):
    make_model().save_pretrained(tmp_path)
    assert DogeForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)(text()).logits.dtype == torch.bfloat16


# Auto classes


def test_importing_the_package_is_enough_for_the_auto_classes(make_model, tmp_path):
    make_model("mixture").save_pretrained(tmp_path)
    code = (
        "import small_doge, sys\n"
        "from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification\n"
        "for auto in (AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification):\n"
        "    print(type(auto.from_pretrained(sys.argv[1])).__module__)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert done.stdout.split() == ["small_doge.models.doge.modeling_doge"] * 3, done.stderr[-2000:]


def test_a_new_model_is_made_from_its_configuration(make_config):
    made = [
        auto.from_config(make_config())
        for auto in (AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification)
    ]
    assert [type(model) for model in made] == [DogeModel, DogeForCausalLM, DogeForSequenceClassification]


def test_a_new_model_starts_neutral(make_config):
    model = DogeForCausalLM(make_config("mixture"))
    for layer in model.model.layers:
        assert (layer.self_attn.A == 0).all()
        assert (layer.input_residual == 1).all() and (layer.post_attention_residual == 1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_classifier_reads_the_last_token_that_is_not_padding(kind, make_config, randomized):
    model = randomized(DogeForSequenceClassification(make_config(kind, num_labels=3))).eval()
    ids = text()
    padded = ids.clone()
    padded[0, 15:] = 2
    mask = (torch.arange(24) < torch.tensor([[15], [24]])).long()
    outputs = model(padded, attention_mask=mask, labels=torch.tensor([0, 2]))
    assert outputs.logits.shape == (2, 3) and outputs.loss.requires_grad
    torch.testing.assert_close(outputs.logits[:1], model(ids[:1, :15]).logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["eager", "sdpa", "doge_naive", "doge_blocked"])
def test_an_attention_backend_is_named_when_loading(name, make_model, tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=name)
    assert loaded.config._attn_implementation == name
    torch.testing.assert_close(loaded(text()).logits, model(text()).logits, atol=1e-5, rtol=1e-4)


def test_a_vocabulary_can_grow(make_model):
    model = make_model()
    before = model(text()).logits
    model.resize_token_embeddings(70)
    torch.testing.assert_close(model(text()).logits[..., :60], before)
    assert model.lm_head.weight is model.model.embed_tokens.weight


# torch.compile


@pytest.mark.parametrize(("kind", "window"), [("mixture", 64), ("dense", 8)], ids=["unmasked mixture", "masked dense"])
def test_the_training_forward_and_backward_compile_without_a_graph_break(kind, window, make_model):
    """With the `aot_eager` backend: tracing is what can break; code generation is torch's own business."""
    torch._dynamo.reset()
    model = make_model(kind, keep_window_size=window, num_hidden_layers=1).train()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    loss = model(text(), labels=text()).loss
    loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    compiled_loss = compiled(text(), labels=text()).loss
    compiled_loss.backward()
    torch.testing.assert_close(compiled_loss, loss)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], msg=name)


@pytest.mark.parametrize("way", ["plain", "packed", "padded", "without logits"])
def test_a_compiled_model_is_not_compiled_again_for_the_same_shapes(way, make_model):
    """Other tokens, and other documents in the row, are no other graph; nor does either break the one there is."""
    torch._dynamo.reset()
    model = make_model("mixture", num_hidden_layers=1).train()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in range(3):
            ids = torch.randint(60, (2, 24), generator=torch.Generator().manual_seed(seed))
            inputs = {"input_ids": ids, "labels": ids}
            if way == "packed":
                lengths = (5 + seed, 19 - seed)
                inputs["position_ids"] = torch.cat([torch.arange(n) for n in lengths]).expand(2, -1).contiguous()
            elif way == "padded":
                inputs["attention_mask"] = (torch.arange(24) > torch.tensor([[2 + seed], [-1]])).long()
            elif way == "without logits":
                inputs["loss_only"] = True
            compiled(**inputs).loss.backward()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dense", "mixture"])
def test_the_generated_code_gives_the_same_loss(kind, make_model):
    torch._dynamo.reset()
    model = make_model(kind, keep_window_size=64).train()
    compiled = torch.compile(model, fullgraph=True)
    torch.testing.assert_close(compiled(text(), labels=text()).loss, model(text(), labels=text()).loss)


# PEFT


@pytest.mark.parametrize("kind", KINDS)
def test_lora_attaches_and_trains_only_itself(kind, make_model):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    model = make_model(kind)
    before = model(text()).logits.detach()
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "dt_proj", "down_proj"], task_type="CAUSAL_LM")
    lora = peft.get_peft_model(model, config).train()
    torch.testing.assert_close(lora(text()).logits, before)
    trainable = {name: p.detach().clone() for name, p in lora.named_parameters() if p.requires_grad}
    assert trainable and all("lora_" in name for name in trainable)
    optimizer = torch.optim.AdamW([p for p in lora.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(12):
        loss = lora(input_ids=text(), labels=text()).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0] - 0.1
    merged = lora.merge_and_unload().eval()
    assert type(merged) is DogeForCausalLM
    assert not torch.allclose(merged(text()).logits, before, atol=1e-2)


# Tensor parallelism


@pytest.mark.parametrize("kind", ["dense", "mixture"])
def test_the_tensor_parallel_plan_names_modules_that_exist_and_styles_that_transformers_has(kind, make_config):
    from transformers.integrations.tensor_parallel import ALL_PARALLEL_STYLES

    model = DogeForCausalLM(make_config(kind))
    names = [name for name, _ in model.named_modules()]
    assert model.tp_plan
    for pattern, style in model.tp_plan.items():
        assert fnmatch.filter(names, pattern), pattern
        assert style in ALL_PARALLEL_STYLES


def test_the_tensor_parallel_plan_is_a_part_of_transformers_own():
    """We cut less than it does (a score needs every value head, and the experts' tables are small), nothing else."""
    from transformers.models.doge.configuration_doge import DogeConfig as Theirs
    from transformers.models.doge.modeling_doge import DogeForCausalLM as TheirModel

    assert DogeConfig.base_model_tp_plan.items() <= Theirs.base_model_tp_plan.items()
    assert DogeForCausalLM._tp_plan == TheirModel._tp_plan


def test_columns_are_cut_where_rows_are_cut_after_them():
    """A cut of the columns alone would leave half of a hidden layer on each device."""
    plan = DogeConfig.base_model_tp_plan
    assert plan["layers.*.mlp.gate_proj"] == plan["layers.*.mlp.up_proj"] == "colwise"
    assert plan["layers.*.mlp.down_proj"] == "rowwise"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dense", "mixture"])
def test_two_processes_give_the_logits_of_one(kind, make_model, tmp_path):
    model = make_model(kind, vocab_size=64, intermediate_size=64)
    model.save_pretrained(tmp_path)
    torch.save(text(), tmp_path / "ids.pt")
    script = tmp_path / "run.py"
    script.write_text(
        "import sys, torch, small_doge, torch.distributed as dist\n"
        "from transformers import AutoModelForCausalLM\n"
        "folder = sys.argv[1]\n"
        "model = AutoModelForCausalLM.from_pretrained(folder, tp_plan='auto')\n"
        "shape = tuple(model.model.layers[0].mlp.down_proj.weight.shape)\n"
        "with torch.no_grad():\n"
        "    logits = model(torch.load(folder + '/ids.pt'), use_cache=False).logits\n"
        "if dist.get_rank() == 0:\n"
        "    torch.save((logits, shape), folder + '/logits.pt')\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", str(script), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    logits, _ = torch.load(tmp_path / "logits.pt")
    torch.testing.assert_close(logits, model(text(), use_cache=False).logits, atol=1e-5, rtol=1e-4)
