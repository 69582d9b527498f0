"""Every architecture of the family goes through pretraining from a recipe: its losses are numbers and fall."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from small_doge import DogeForCausalLM, WonderfulMatricesConfig, WonderfulMatricesForCausalLM
from small_doge.models.doge.configuration_doge import SIZES as DOGE_SIZES
from small_doge.models.doge.folders import upcycle_folder
from small_doge.models.wonderful_matrices.configuration_wonderful_matrices import SIZES as WONDERFUL_MATRICES_SIZES
from small_doge.trainer.doge.pt import main
from small_doge.trainer.expert_load import ExpertLoadLog
from small_doge.trainer.setup import new_config

ROOT = Path(__file__).parents[2]
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
    used = recipe.log("run", "experts_used")
    assert bool(used) is bool(model.get("is_moe"))
    assert all(0 < share <= 1 for share in used.values())


def test_logging_the_load_of_experts_adds_no_balance_loss(recipe, monkeypatch):
    """The same losses, to the bit, as with nothing logged."""
    changes = {"model_config": DOGE | MIXTURE, "max_steps": 4, "save_strategy": "no"}
    main(recipe("logged", **changes))
    monkeypatch.setattr(ExpertLoadLog, "on_train_begin", lambda *args, **kwargs: None)
    main(recipe("unlogged", **changes))
    assert recipe.log("logged", "experts_used") and not recipe.log("unlogged", "experts_used")
    assert recipe.log("logged") == recipe.log("unlogged")


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


def test_the_window_recipe_is_the_full_recipe_with_a_shorter_window():
    window, full = (
        yaml.safe_load((ROOT / f"recipes/doge/Doge-20M/config_{name}.yaml").read_text()) for name in ("window", "full")
    )
    assert window.pop("model_config") == full.pop("model_config") | {"keep_window_size": 512}
    assert window.pop("output_dir") != full.pop("output_dir")
    # What compiled layers take was measured without a window.
    assert full.pop("auto_micro_batch") and window == full


def test_the_window_recipe_trains_rows_longer_than_its_window(recipe, tokenizer_folder):
    """The recipe as it is, but for a smaller model, shorter rows and a window of 8 in the place of 512."""
    values = yaml.safe_load((ROOT / "recipes/doge/Doge-20M/config_window.yaml").read_text())
    here = recipe.values | {"model_config": values["model_config"] | DOGE}
    recipe.values = values | here | {"bf16": False, "compile_layers": False, "eval_strategy": "no", "warmup_steps": 1}
    main(recipe("run", save_strategy="no"))
    assert_it_learns(recipe, "run")


@pytest.mark.parametrize("size", WONDERFUL_MATRICES_SIZES)
def test_the_first_generations_recipes_spell_out_its_table(size, tokenizer_folder):
    from transformers import AutoTokenizer

    values = yaml.safe_load((ROOT / f"recipes/wonderful_matrices/{size}/config_full.yaml").read_text())
    config = new_config(values["model_config"], AutoTokenizer.from_pretrained(tokenizer_folder))
    tokens = {name: getattr(config, name) for name in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")}
    assert config.to_dict() == WonderfulMatricesConfig.from_size(size, **tokens).to_dict()


@pytest.mark.parametrize(("size", "dense"), [("20M", "20M"), ("120M", "60M"), ("480M", "160M"), ("1.4B", "320M")])
def test_the_mixtures_recipes_say_how_to_grow_them_from_a_checkpoint_that_the_dense_recipe_writes(size, dense):
    text = (ROOT / f"recipes/doge/Doge-{size}-MoE/config_full.yaml").read_text()
    row = DOGE_SIZES[f"{size}-MoE"]
    grown = DOGE_SIZES[dense]
    assert (row.width, row.layers, row.intermediate) == (grown.width, grown.layers, grown.intermediate)
    assert f"--num-experts {row.experts} --num-experts-per-tok {row.experts_per_token}\n" in text
    step = int(text.split(f"Doge-{dense}/checkpoint-")[1].split()[0])
    full = yaml.safe_load((ROOT / f"recipes/doge/Doge-{dense}/config_full.yaml").read_text())
    assert step % full["save_steps"] == 0 and step == 0.9 * full["max_steps"]


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
