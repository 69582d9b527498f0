"""The first generation: its table, its attention and mixture from the definition, and the ways of running it."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    Trainer,
    TrainingArguments,
)

from small_doge import WonderfulMatricesConfig, WonderfulMatricesForCausalLM
from small_doge.models.wonderful_matrices.configuration_wonderful_matrices import SIZES

# As the project's first notebook prints its 25M file, with the two heads that the model printed beside it has.
YAML = {
    "vocab_size": 32768,
    "hidden_size": 256,
    "num_hidden_layers": 8,
    "hidden_bias": False,
    "hidden_dropout": 0.0,
    "hidden_act": "silu",
    "max_position_embeddings": 16384,
    "rope_theta": 10000.0,
    "use_cache": True,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "num_attention_heads": 2,
    "num_inner_values": 2,
    "cross_domain_intermediate_size": 1024,
    "private_expert_intermediate_size": 256,
    "num_cdmmoe_experts": 256,
    "num_cdmmoe_heads": 1,
    "num_cdmmoe_experts_per_head": 2,
}


def make(dtype=torch.float64, attn="sdpa", randomized=None, **fields):
    torch.manual_seed(0)
    shape = {
        "vocab_size": 60,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_inner_values": 3,
        "cross_domain_intermediate_size": 48,
        "private_expert_intermediate_size": 32,
        "num_cdmmoe_experts": 36,
        "num_cdmmoe_heads": 2,
        "num_cdmmoe_experts_per_head": 3,
        "max_position_embeddings": 128,
    }
    model = WonderfulMatricesForCausalLM(WonderfulMatricesConfig(**(shape | fields)))
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.randn_like(p) * p.shape[-1] ** -0.5 * (2.4 if "embed" in name else 1.0))
            if "layernorm" in name:
                p.copy_(1 + 0.1 * torch.randn_like(p))
    model = model.to(dtype).eval()
    model.set_attn_implementation(attn)
    return model


def text(batch=2, length=40):
    return torch.randint(3, 60, (batch, length), generator=torch.Generator().manual_seed(1))


def test_the_yaml_file_is_the_configuration_of_its_size():
    config = WonderfulMatricesConfig(**YAML)
    assert config.to_dict() == WonderfulMatricesConfig.from_size("25M").to_dict()
    assert config.rope_parameters["rope_theta"] == 10000.0


@pytest.mark.parametrize("size", SIZES)
def test_a_size_has_about_the_parameters_of_its_name_and_square_experts(size):
    config = WonderfulMatricesConfig.from_size(size)
    assert math.isqrt(config.num_cdmmoe_experts) ** 2 == config.num_cdmmoe_experts
    with torch.device("meta"):
        total = WonderfulMatricesForCausalLM(config).num_parameters()
    assert total == pytest.approx(float(size[:-1]) * 1e6, rel=0.12)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_cdmmoe_experts": 512}, "512 is not a perfect square: the nearest are 484 and 529"),
        ({"num_cdmmoe_experts": 768}, "768 is not a perfect square: the nearest are 729 and 784"),
        ({"private_expert_intermediate_size": 31}, "is odd"),
        ({"num_attention_heads": 3}, "does not split into 3 heads"),
        ({"num_cdmmoe_experts_per_head": 37}, "37 is more than num_cdmmoe_experts 36"),
    ],
)
def test_an_impossible_configuration_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        make(**fields)


def test_an_unknown_size_is_refused():
    with pytest.raises(ValueError, match="choose one of 25M, 80M, 200M, 450M"):
        WonderfulMatricesConfig.from_size("20M")


@torch.no_grad()
def test_attention_is_that_of_the_definition():
    model = make()
    attention, x = model.model.layers[0].attn, torch.randn(1, 6, 64, dtype=torch.float64)
    positions = torch.arange(6)[None]
    cos, sin = (t[:, None] for t in model.model.rotary_emb(x, positions))
    out, _ = attention(x, (cos, sin))
    q, k = attention.q_proj(x[0]), attention.k_proj(x[0])
    chosen = (attention.v_queries(x[0]) @ attention.v_keys.T).argmax(-1)
    assert len(set(chosen.tolist())) > 1
    v = x[0] * attention.v_embed.weight[chosen]
    rows = []
    for i in range(6):
        heads = []
        for h in range(4):
            span = slice(16 * h, 16 * h + 16)

            def turned(vector, position):
                a, b = vector[:8], vector[8:]
                angle = position * 10000.0 ** (-torch.arange(8, dtype=torch.float64) / 8)
                return torch.cat((a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()))

            logits = torch.stack([turned(q[i, span], i) @ turned(k[j, span], j) / 4 for j in range(i + 1)])
            heads.append(logits.softmax(0) @ v[: i + 1, span])
        rows.append(attention.o_proj(torch.cat(heads)))
    torch.testing.assert_close(out[0], torch.stack(rows), atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_the_mixture_is_that_of_the_definition():
    mixture = make().model.layers[0].feed_forward
    x = torch.randn(1, 5, 64, dtype=torch.float64)
    out = mixture(x)
    for t in range(5):
        h = mixture.shared_down_proj(F.silu(mixture.shared_up_proj(x[0, t])))
        query = mixture.queries(h).view(2, 2, 16)
        expected = h.clone()
        for head in range(2):
            first, second = (mixture.keys[head, :, half] @ query[half, head] for half in (0, 1))
            sums = (first[:, None] + second[None]).flatten()
            best = sums.topk(3)
            for weight, e in zip(best.values.softmax(0), best.indices, strict=True):
                expected += weight * F.silu(h @ mixture.down_embed.weight[e]) * mixture.up_embed.weight[e]
        torch.testing.assert_close(out[0, t], expected)


def test_the_choice_of_a_value_is_learnt_although_it_is_hard():
    model = make().train()
    model(text(), labels=text()).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def plain(model, ids):
    return model(ids, use_cache=False).logits


def trained(model, ids):
    return model.train()(ids).logits


def decoded(model, ids):
    past, logits = None, []
    for token in ids.split(1, 1):
        outputs = model(token, past_key_values=past, use_cache=True)
        past = outputs.past_key_values
        logits.append(outputs.logits)
    return torch.cat(logits, 1)


def prefilled(model, ids):
    return model(ids, use_cache=True).logits


def prefilled_in_chunks(model, ids):
    past, logits = None, []
    for chunk in ids.split([7, 1, 20, 12], 1):
        outputs = model(chunk, past_key_values=past, use_cache=True)
        past = outputs.past_key_values
        logits.append(outputs.logits)
    return torch.cat(logits, 1)


def packed(model, ids):
    row = torch.cat((ids[:, :9], ids, ids[:, :5]), 1)
    positions = torch.cat([torch.arange(n) for n in (9, ids.shape[1], 5)])[None].expand(row.shape[0], -1)
    return model(row, position_ids=positions).logits[:, 9 : 9 + ids.shape[1]]


def padded(model, ids):
    rows = torch.cat((torch.zeros_like(ids[:, :6]), ids), 1)
    mask = torch.cat((torch.zeros_like(ids[:, :6]), torch.ones_like(ids)), 1)
    return model(rows, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits[:, 6:]


WAYS = [plain, trained, decoded, prefilled, prefilled_in_chunks, packed, padded]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@torch.no_grad()
def test_every_way_gives_the_plain_logits_and_a_prefix_never_changes(attn, way):
    # transformers' eager attention computes its softmax in fp32 whatever the model is in.
    dtype, tolerance = (torch.float64, 1e-10) if attn == "sdpa" else (torch.float32, 1e-4)
    model = make(dtype, attn)
    ids = text()
    torch.testing.assert_close(way(model, ids).double(), plain(make(), ids), atol=tolerance, rtol=0)
    other = ids.clone()
    other[:, 25] = 55
    moved = (way(model, other) - way(model, ids)).abs().amax((0, 2))
    assert moved[:25].max() < tolerance / 10 and moved[25] > 1e-3


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@torch.no_grad()
def test_a_row_does_not_depend_on_its_neighbors(way):
    model = make()
    other = torch.cat((text()[:1], text(4)[3:]))
    torch.testing.assert_close(way(model, other)[:1], way(model, text())[:1], atol=1e-12, rtol=0)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
@torch.no_grad()
def test_in_lower_precision_every_way_stays_near_double(dtype, way):
    found = way(make(dtype), text())
    assert found.dtype == dtype
    expected = plain(make(), text())
    assert (found - expected).abs().mean() < (1e-5 if dtype == torch.float32 else 0.05) * expected.abs().mean()


def gradients(model, runs):
    model.train().zero_grad()
    for inputs in runs:
        model(**inputs, num_items_in_batch=1).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("packing", ["packed", "padded", "on the eager backend"])
def test_gradients_are_those_of_each_document_alone(packing):
    ids = text(1)
    apart = [{"input_ids": part, "labels": part} for part in ids.split([13, 27], 1)]
    dtype = torch.float64
    if packing == "packed":
        positions = torch.cat((torch.arange(13), torch.arange(27)))[None]
        runs = [{"input_ids": ids, "position_ids": positions, "labels": ids.masked_fill(positions == 0, -100)}]
    elif packing == "padded":
        rows = torch.cat((F.pad(ids[:, :13], (14, 0)), ids[:, 13:]))
        mask = torch.ones_like(rows)
        mask[0, :14] = 0
        labels = rows.masked_fill(mask.cumsum(1) < 2, -100)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        runs = [{"input_ids": rows, "attention_mask": mask, "position_ids": positions, "labels": labels}]
    else:
        # transformers' eager attention computes its softmax in fp32 whatever the model is in.
        runs, dtype = apart, torch.float32
    found = gradients(make(dtype, "eager" if runs is apart else "sdpa"), runs)
    for name, gradient in gradients(make(dtype), apart).items():
        torch.testing.assert_close(found[name], gradient, msg=name, atol=1e-4 if runs is apart else 1e-9, rtol=1e-4)


def test_generation_with_its_cache_is_generation_without():
    model = make()
    model.generation_config.eos_token_id = None
    options = {"attention_mask": torch.ones(2, 40), "max_new_tokens": 20, "do_sample": False}
    expected = model.generate(text(), use_cache=False, **options)
    assert torch.equal(model.generate(text(), **options), expected)


def test_it_does_not_generate_while_it_trains_with_checkpointed_layers():
    model = make().train()
    model.gradient_checkpointing_enable()
    with pytest.raises(ValueError, match=r"there is no cache: call eval\(\) before generating"):
        model.generate(text(), attention_mask=torch.ones(2, 40), max_new_tokens=3, do_sample=False)


def test_auto_classes_and_files_know_it(tmp_path):
    model = make(torch.float32)
    model.save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is WonderfulMatricesConfig
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is WonderfulMatricesForCausalLM
    torch.testing.assert_close(loaded(text()).logits, model(text()).logits)
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=3)
    assert classifier(text(1)).logits.shape == (1, 3)


def test_hidden_states_and_weights_come_out_on_request():
    outputs = make(attn="eager")(text(), output_hidden_states=True, output_attentions=True)
    assert len(outputs.hidden_states) == 3
    assert [w.shape for w in outputs.attentions] == [(2, 4, 40, 40)] * 2


def test_gradient_checkpointing_gives_the_same_gradients():
    gradients = []
    for checkpointing in (False, True):
        model = make().train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(text(), labels=text()).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


@pytest.mark.parametrize("way", ["packed", "without logits"])
def test_it_compiles_without_a_graph_break_and_once(way):
    torch._dynamo.reset()
    model = make(num_hidden_layers=1).train()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in range(2):
            ids = torch.randint(3, 60, (2, 24), generator=torch.Generator().manual_seed(seed))
            inputs = {"input_ids": ids, "labels": ids}
            if way == "packed":
                positions = torch.cat((torch.arange(5 + seed), torch.arange(19 - seed)))
                inputs["position_ids"] = positions.expand(2, -1).contiguous()
            else:
                inputs["loss_only"] = True
            loss = compiled(**inputs).loss
            loss.backward()
    torch.testing.assert_close(loss, model(**inputs).loss)


def test_transformers_trainer_trains_it(tmp_path):
    torch.manual_seed(0)
    rows = [{"input_ids": row, "labels": row} for row in (torch.arange(16) + torch.randint(3, 40, (64, 1)))]
    args = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=40,
        per_device_train_batch_size=8,
        learning_rate=5e-3,
        logging_steps=1,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    model = WonderfulMatricesForCausalLM(make().config)
    trainer = Trainer(model=model, args=args, train_dataset=rows)
    trainer.train()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert losses[-1] < 0.6 * losses[0]
