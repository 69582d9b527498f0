import pytest
import torch

from small_doge import DogeCache, DogeConfig, DogeForCausalLM
from small_doge.models.doge.accounting_doge import (
    cache_bytes_per_sequence,
    count_parameters,
    training_flops_per_token,
)
from small_doge.models.doge.configuration_doge import SIZES

# In millions, to three places: total and embedding.
PUBLISHED = {
    "20M": (13.119, 8.389),
    "60M": (54.572, 16.777),
    "160M": (152.676, 25.166),
    "320M": (335.750, 33.554),
}


@pytest.mark.parametrize("size", PUBLISHED)
def test_a_named_size_has_the_published_number_of_parameters(size):
    count = count_parameters(DogeConfig.from_size(size))
    assert (round(count.total / 1e6, 3), round(count.embedding / 1e6, 3)) == PUBLISHED[size]


@pytest.mark.parametrize("size", SIZES)
def test_the_count_equals_the_parameters_of_the_built_model(size):
    config = DogeConfig.from_size(size)
    with torch.device("meta"):
        model = DogeForCausalLM(config)
    assert count_parameters(config).total == model.num_parameters()


@pytest.mark.parametrize(
    "fields",
    [
        {"attention_bias": True, "mlp_bias": True},
        {"qk_norm": False},
        {"score_per_query_head": True},
        {"score_per_query_head": True, "attention_bias": True},
        {"tie_word_embeddings": False},
    ],
    ids=lambda fields: "_".join(fields),
)
def test_the_count_equals_the_built_model_with(fields, make_config):
    config = make_config("mixture", **fields)
    assert count_parameters(config).total == DogeForCausalLM(config).num_parameters()


def test_a_token_of_a_mixture_uses_only_its_own_experts(make_config):
    config = make_config("mixture")
    count = count_parameters(config)
    unused = config.num_experts - config.num_experts_per_tok
    assert count.total - count.active == config.num_hidden_layers * 2 * unused * config.hidden_size


def test_flops_grow_with_the_length_only_up_to_the_window(make_config):
    config = make_config(keep_window_size=64)
    short, window, long = (training_flops_per_token(config, length) for length in (16, 64, 64_000))
    assert short < window < long
    full = 12 * config.num_hidden_layers * config.hidden_size * 64
    assert long == pytest.approx(short + full - full * (16 + 1) / 2 / 64, rel=1e-3)


@pytest.mark.parametrize("kind", ["dense", "scores_per_query_head"])
def test_the_bytes_of_a_full_cache_are_those_that_the_cache_holds(kind, make_model):
    model = make_model(kind)
    cache = DogeCache(model.config)
    with torch.no_grad():
        model(torch.randint(60, (1, 40)), past_key_values=cache)
    assert cache.memory_bytes() == cache_bytes_per_sequence(model.config, bytes_per_element=4)
