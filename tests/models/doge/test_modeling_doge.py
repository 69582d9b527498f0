"""What holds for every kind of Doge and every way of running it.

A prefix never depends on what follows, and the cached, packed and padded ways give the logits of the plain forward.

In double precision, so that a difference is a mistake and not a rounding; T = 8w, with tokens that repeat (and so
scores that tie) all through the text.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
from doge_ways import (
    LENGTH,
    WAYS,
    decoded,
    distinct_text,
    packed,
    padded_on_the_left,
    plain,
    prefilled_in_chunks,
    text,
    trained,
)

KINDS = ["dense", "mixture", "scores_per_query_head"]
BACKENDS = ["eager", "sdpa", "doge_blocked"]


@pytest.fixture(scope="module")
def logits_of(make_model):
    """logits_of(kind, backend, way, dtype, window): what a way of running the model makes of the text, made once."""

    @cache
    @torch.no_grad()
    def run(kind, backend, way, dtype=torch.float64, window=8):
        return way(make_model(kind, dtype=dtype, attn=backend, keep_window_size=window), text())

    return run


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_changed_token_moves_no_output_before_it(kind, backend, way, make_model, logits_of):
    changed, other = 37, text()
    other[:, changed] = 55
    before, after = logits_of(kind, backend, way), way(make_model(kind, dtype=torch.float64, attn=backend), other)
    torch.testing.assert_close(after[:, :changed], before[:, :changed], atol=1e-12, rtol=0)
    assert (after[:, changed] - before[:, changed]).abs().max() > 1e-3


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_way_gives_the_logits_of_the_plain_forward(kind, backend, way, logits_of):
    torch.testing.assert_close(logits_of(kind, backend, way), logits_of(kind, "eager", plain), atol=1e-10, rtol=0)


@pytest.mark.parametrize("way", [prefilled_in_chunks, decoded, padded_on_the_left], ids=lambda way: way.__name__)
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_in_single_precision_distinct_tokens_agree_to_1e_4(kind, way, make_model):
    model, ids = make_model(kind, vocab_size=200), distinct_text()
    assert (way(model, ids) - plain(model, ids)).abs().max() < 1e-4


@pytest.mark.parametrize(
    "way", [trained, prefilled_in_chunks, decoded, packed, padded_on_the_left], ids=lambda way: way.__name__
)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_row_does_not_depend_on_its_neighbors(kind, backend, way, make_model, logits_of):
    ids, others = text(), text(4)[2:]
    together = way(make_model(kind, dtype=torch.float64, attn=backend), torch.cat((ids[:1], others[:1])))
    torch.testing.assert_close(together[:1], logits_of(kind, backend, way)[:1], atol=1e-12, rtol=0)


@pytest.mark.parametrize("way", [trained, decoded, packed, padded_on_the_left], ids=lambda way: way.__name__)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("kind", KINDS)
def test_in_half_precision_every_way_stays_near_single_precision(kind, dtype, way, logits_of):
    # Without a mask: where it hides keys, the noise of half precision may choose others.
    half, full = (logits_of(kind, "sdpa", way, d, 128).float() for d in (dtype, torch.float32))
    assert (half - full).abs().mean() < 0.05 * full.abs().mean()


def gradients(model, runs):
    """Gradients of the sum of the losses of some runs, each the arguments of the forward."""
    model.zero_grad()
    for inputs in runs:
        model(**inputs, num_items_in_batch=1).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def assert_same_gradients(found, expected):
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, msg=name)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_packed_documents_give_the_gradients_of_the_same_documents_apart(kind, backend, make_model):
    model = make_model(kind, dtype=torch.float64, attn=backend).train()
    documents = text(1).split([13, 30, 21], 1)
    positions = torch.cat([torch.arange(document.shape[1]) for document in documents])[None]
    row = {"input_ids": text(1), "position_ids": positions, "labels": text(1).masked_fill(positions == 0, -100)}
    apart = [{"input_ids": document, "labels": document} for document in documents]
    assert_same_gradients(gradients(model, [row]), gradients(model, apart))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_padded_batch_gives_the_gradients_of_its_rows_alone(kind, backend, make_model):
    model = make_model(kind, dtype=torch.float64, attn=backend).train()
    ids, mask = text(), torch.ones(2, LENGTH, dtype=torch.long)
    mask[0, :9] = 0
    batch = {
        "input_ids": ids.masked_fill(mask == 0, 2),
        "attention_mask": mask,
        "position_ids": (mask.cumsum(1) - 1).clamp(min=0),
        # The first token after the padding is predicted from padding, which no row alone does.
        "labels": ids.masked_fill(mask.cumsum(1) < 2, -100),
    }
    alone = [{"input_ids": row, "labels": row} for row in (ids[:1, 9:], ids[1:])]
    assert_same_gradients(gradients(model, [batch]), gradients(model, alone))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_window_matters_in_these_tests(kind, make_model):
    narrow, wide = (make_model(kind, keep_window_size=w) for w in (8, LENGTH))
    difference = (plain(narrow, text()) - plain(wide, text())).abs().amax((0, 2))
    assert difference[:8].max() < 1e-5 and difference[8:].max() > 1e-2


def test_packing_needs_no_flag_even_where_a_cache_is_the_default(make_model):
    model = make_model(use_cache=True)
    ids = text()
    outputs = model(torch.cat((ids, ids), 1), position_ids=torch.arange(LENGTH).repeat(2)[None])
    assert outputs.past_key_values is None
    torch.testing.assert_close(outputs.logits[:, LENGTH:], outputs.logits[:, :LENGTH], atol=1e-5, rtol=0)


def test_packed_rows_for_a_cache_are_refused(make_model):
    with pytest.raises(ValueError, match="packed rows have no cache: pass use_cache=False"):
        make_model()(text(), position_ids=torch.arange(32).repeat(2)[None], use_cache=True)


def test_a_token_that_was_not_asked_to_be_cached_in_training_is_not(make_model):
    assert make_model().train()(text()).past_key_values is None
    assert make_model()(text()).past_key_values.get_seq_length() == LENGTH


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_checkpointing_gives_the_same_gradients(kind, make_model):
    gradients = []
    for checkpointing in (False, True):
        model = make_model(kind).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(text(), labels=text()).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert gradient is not None and gradient.abs().max() > 0, name
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", ["sdpa", "doge_blocked"])
def test_a_backend_gives_the_gradients_of_the_definition(kind, backend, make_model):
    gradients = []
    for attn in ("eager", backend):
        model = make_model(kind, dtype=torch.float64, attn=attn).train()
        model(text(), labels=text()).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_the_loss_is_the_mean_cross_entropy_of_the_next_token(make_model):
    model, ids = make_model(), text()
    labels = ids.clone()
    labels[:, :10] = -100
    outputs = model(ids, labels=labels)
    expected = torch.nn.functional.cross_entropy(outputs.logits[:, 9:-1].flatten(0, 1), ids[:, 10:].flatten())
    torch.testing.assert_close(outputs.loss, expected)


def test_the_loss_of_micro_batches_sums_to_that_of_the_batch(make_model):
    model, ids = make_model(), text(4)
    whole = model(ids, labels=ids).loss
    parts = [model(part, labels=part, num_items_in_batch=torch.tensor(4 * (LENGTH - 1))).loss for part in ids.split(1)]
    torch.testing.assert_close(torch.stack(parts).sum(), whole)


def test_logits_to_keep_are_the_last_ones(make_model):
    model, ids = make_model(), text()
    torch.testing.assert_close(model(ids, logits_to_keep=3).logits, model(ids).logits[:, -3:])
    torch.testing.assert_close(
        model(ids, logits_to_keep=torch.tensor([4, 9])).logits, model(ids).logits[:, [4, 9]], atol=1e-5, rtol=1e-5
    )


def test_embeddings_can_be_given_instead_of_tokens(make_model):
    model, ids = make_model(), text()
    embeddings = model.get_input_embeddings()(ids)
    torch.testing.assert_close(model(inputs_embeds=embeddings).logits, model(ids).logits)


def test_a_tuple_is_returned_on_request(make_model):
    outputs = make_model()(text(), labels=text(), return_dict=False)
    assert isinstance(outputs, tuple) and outputs[0].dim() == 0 and outputs[1].shape == (2, LENGTH, 60)


def test_half_precision_stays_near_single_precision(make_model):
    ids = text()
    for dtype in (torch.bfloat16, torch.float16):
        half, full = make_model(keep_window_size=64, dtype=dtype)(ids), make_model(keep_window_size=64)(ids)
        assert half.logits.dtype == dtype
        assert (half.logits.float() - full.logits).abs().mean() < 0.05 * full.logits.abs().mean()


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "either input_ids or inputs_embeds, and not both"),
        ({"input_ids": text(), "attention_mask": torch.ones(2, 1, LENGTH, LENGTH)}, "has 4 dimensions"),
        ({"input_ids": text(), "output_attentions": True}, 'needs attn_implementation="eager"'),
    ],
    ids=["no_input", "a_mask_of_four_dimensions", "weights_of_a_fused_kernel"],
)
def test_an_input_that_cannot_be_served_is_refused(inputs, message, make_model):
    with pytest.raises(ValueError, match=message):
        make_model()(**inputs)


def test_a_cache_of_another_kind_is_refused(make_model):
    from transformers import DynamicCache

    with pytest.raises(ValueError, match=r"is a DynamicCache.*pass DogeCache\(config\)"):
        make_model()(text(), past_key_values=DynamicCache())


@pytest.mark.parametrize("name", ["flash_attention_2", "flex_attention", "doge_magic"])
def test_an_attention_that_does_not_exist_is_refused(name, make_model):
    with pytest.raises((ValueError, ImportError)):
        make_model().set_attn_implementation(name)


def test_another_model_is_told_not_to_use_our_attention():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    config._attn_implementation = "doge_blocked"
    with pytest.raises(ValueError, match="Doge's own"):
        LlamaForCausalLM(config)(torch.ones(1, 2, dtype=torch.long))
