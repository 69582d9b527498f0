"""Every architecture of the family goes through pretraining from a recipe: its losses are numbers and fall."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from small_doge import DogeForCausalLM, WonderfulMatricesForCausalLM
from small_doge.models.doge.folders import upcycle_folder
from small_doge.trainer.doge.pt import main

# Small, and with windows of 8 tokens on rows of 32.
DOGE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "keep_window_size": 8,
}
MIXTURE = {"is_moe": True, "num_experts": 16, "num_experts_per_tok": 4}
FIRST_GENERATION = {
    "model_type": "wonderful_matrices",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_inner_values": 2,
    "cross_domain_intermediate_size": 64,
    "private_expert_intermediate_size": 16,
    "num_cdmmoe_experts": 16,
    "num_cdmmoe_heads": 1,
    "num_cdmmoe_experts_per_head": 2,
    "rope_theta": 10000.0,
}
MODELS = {
    "a Doge whose window is shorter than its rows": DOGE,
    "a mixture": DOGE | MIXTURE | {"output_router_logits": True},
    "a mixture without its balance loss": DOGE | MIXTURE,
    "the first generation": FIRST_GENERATION,
}


def assert_it_learns(recipe, name):
    losses = list(recipe.log(name).values())
    assert len(losses) == 12 and all(math.isfinite(loss) and loss > 0 for loss in losses)
    assert losses[-1] < losses[0] - 0.2


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_pretraining_teaches(model, recipe):
    main(recipe("run", model_config=model, save_strategy="no"))
    assert_it_learns(recipe, "run")
    trained = AutoModelForCausalLM.from_pretrained(recipe.folder / "run")
    first_generation = model is FIRST_GENERATION
    assert type(trained) is (WonderfulMatricesForCausalLM if first_generation else DogeForCausalLM)
    # The balance loss is a loss of its own: the load is logged where it is on.
    used = recipe.log("run", "experts_used")
    assert bool(used) is bool(model.get("output_router_logits"))
    assert all(0 < share <= 1 for share in used.values())


def test_documents_of_a_row_are_masked_in_the_first_generation_too(recipe):
    main(recipe("run", model_config=FIRST_GENERATION, document_masking=True, save_strategy="no"))
    assert_it_learns(recipe, "run")


def test_the_mask_is_trained_and_not_only_declared(recipe):
    """With a window as long as the rows, the same recipe gives other losses and other scores."""
    factors = []
    for name, window in (("masked", 8), ("unmasked", 32)):
        main(recipe(name, model_config=DOGE | {"keep_window_size": window}, max_steps=4, save_strategy="no"))
        model = AutoModelForCausalLM.from_pretrained(recipe.folder / name)
        factors.append(torch.stack([layer.self_attn.A for layer in model.model.layers]))
    assert recipe.log("masked") != recipe.log("unmasked")
    assert factors[0].ne(0).all() and factors[0].ne(factors[1]).any()


@pytest.mark.parametrize("starts", [None, [0.0, 0.25, 0.5, 0.75]], ids=["at once", "stage by stage"])
def test_a_grown_mixture_starts_at_the_dense_loss_and_learns(starts, recipe):
    main(recipe("dense", model_config=DOGE, save_strategy="no"))
    upcycle_folder(str(recipe.folder / "dense"), recipe.folder / "grown", 16, 4, balance=0.01)
    # The next step of the dense model gives the loss that the mixture must start from.
    changes = {"model_config": None, "lr_scheduler_type": "constant", "save_strategy": "no"}
    main(recipe("on", model_name_or_path=str(recipe.folder / "dense"), max_steps=1, **changes))
    grown = {"model_name_or_path": str(recipe.folder / "grown"), "staged_unfreezing": starts}
    main(recipe("mixture", **grown, **changes))

    losses = recipe.log("mixture")
    balance = 0.01 * 1.0
    assert losses[1] == pytest.approx(recipe.log("on")[1] + balance, abs=2e-2)
    assert all(math.isfinite(loss) and loss > 0 for loss in losses.values()) and losses[12] < losses[1]
    assert all(0 < entropy <= 1 + 1e-6 for entropy in recipe.log("mixture", "experts_entropy").values())
    before = AutoModelForCausalLM.from_pretrained(recipe.folder / "grown").state_dict()
    after = AutoModelForCausalLM.from_pretrained(recipe.folder / "mixture").state_dict()
    assert all(not torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "gpt2"}, "no model_type 'gpt2': choose one of doge, wonderful_matrices"),
        ({"model_type": "wonderful_matrices", "size": "20M"}, "no size '20M': choose one of 25M"),
        ({"model_type": "wonderful_matrices", "keep_window_size": 8}, "has no field 'keep_window_size'"),
    ],
)
def test_an_unknown_model_is_refused(fields, message, recipe):
    with pytest.raises(ValueError, match=message):
        main(recipe("run", model_config=fields))
