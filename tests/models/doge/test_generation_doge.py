"""`generate` with the bounded cache: greedy, sampling, beams, batched and padded, always as without a cache."""

from __future__ import annotations

import copy

import pytest
import torch

from small_doge import DogeCache

KINDS = ["dense", "mixture", "scores_per_query_head"]
NEVER_ENDS = {"eos_token_id": None, "max_new_tokens": 30}


def prompt(batch: int = 2, length: int = 20) -> torch.Tensor:
    return torch.randint(3, 60, (batch, length), generator=torch.Generator().manual_seed(3))


def generate(model, ids, mask=None, **options):
    mask = torch.ones_like(ids) if mask is None else mask
    model.generation_config.eos_token_id = None
    return model.generate(ids, attention_mask=mask, **(NEVER_ENDS | options))


def greedy_by_hand(model, ids, steps):
    for _ in range(steps):
        ids = torch.cat((ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)), 1)
    return ids


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_greedy_decoding_is_the_full_forward_token_by_token(kind, make_model):
    model = make_model(kind, dtype=torch.float64)
    expected = greedy_by_hand(model, prompt(), 30)
    assert len(set(expected[0, 20:].tolist())) > 1
    assert generate(model, prompt(), do_sample=False).tolist() == expected.tolist()
    assert generate(model, prompt(), do_sample=False, use_cache=False).tolist() == expected.tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_a_left_padded_batch_generates_what_each_row_does_alone(kind, make_model):
    model = make_model(kind, dtype=torch.float64)
    short, long = prompt()[:1, :11], prompt()[1:]
    rows = torch.cat((torch.cat((torch.full((1, 9), 2), short), 1), long))
    mask = torch.ones_like(rows)
    mask[0, :9] = 0
    together = generate(model, rows, mask, do_sample=False)
    assert together[0, 20:].tolist() == generate(model, short, do_sample=False)[0, 11:].tolist()
    assert together[1].tolist() == generate(model, long, do_sample=False)[0].tolist()


def test_sampling_with_a_seed_is_the_same_with_and_without_a_cache(make_model):
    model = make_model(dtype=torch.float64)
    samples = []
    for use_cache in (True, False):
        torch.manual_seed(7)
        samples.append(generate(model, prompt(), do_sample=True, temperature=1.3, top_p=0.9, use_cache=use_cache))
    assert samples[0].tolist() == samples[1].tolist()
    torch.manual_seed(8)
    assert generate(model, prompt(), do_sample=True, temperature=1.3, top_p=0.9).tolist() != samples[0].tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_beam_search_is_the_same_with_and_without_a_cache(kind, make_model):
    model = make_model(kind, dtype=torch.float64)
    options = {"num_beams": 3, "do_sample": False, "num_return_sequences": 2, "max_new_tokens": 15}
    found = generate(model, prompt(), **options)
    assert found.shape == (4, 35)
    assert found.tolist() == generate(model, prompt(), use_cache=False, **options).tolist()
    assert found[0].tolist() != found[1].tolist()


def test_several_samples_of_one_prompt_share_its_prefill(make_model):
    torch.manual_seed(0)
    samples = generate(make_model(), prompt(1), do_sample=True, num_return_sequences=4)
    assert samples.shape == (4, 50) and len({tuple(row) for row in samples.tolist()}) == 4


def test_generation_goes_on_from_a_returned_cache(make_model):
    model = make_model(dtype=torch.float64)
    options = {"do_sample": False, "return_dict_in_generate": True}
    first = generate(model, prompt(1), max_new_tokens=10, **options)
    second = generate(model, first.sequences, max_new_tokens=20, past_key_values=first.past_key_values, **options)
    assert second.sequences.tolist() == generate(model, prompt(1), do_sample=False).tolist()
    assert second.past_key_values.slots == 8


def test_a_long_prompt_is_prefilled_in_chunks(make_model):
    model = make_model(dtype=torch.float64)
    ids = prompt(2, 50)
    cache = DogeCache(model.config)
    chunked = generate(model, ids, do_sample=False, past_key_values=cache, prefill_chunk_size=16)
    assert chunked.tolist() == generate(model, ids, do_sample=False).tolist()


def assisted_by(model, candidates):
    """Options of `generate`: candidates from the prompt's own n-grams, or from the same model a little off."""
    if candidates == "n-grams of the prompt":
        return {"prompt_lookup_num_tokens": 4}
    assistant = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in assistant.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    return {"assistant_model": assistant}


@pytest.mark.parametrize("candidates", ["n-grams of the prompt", "another model"])
def test_assisted_generation_gives_the_tokens_of_the_plain_one(candidates, make_model):
    torch.manual_seed(0)
    model = make_model(dtype=torch.float64, keep_window_size=64)
    ids = prompt(1).repeat(1, 2)[:, :30]
    expected = generate(model, ids, do_sample=False)
    assert generate(model, ids, do_sample=False, **assisted_by(model, candidates)).tolist() == expected.tolist()


def test_assisted_generation_past_the_window_is_refused_with_the_mend(make_model):
    torch.manual_seed(0)
    model = make_model(dtype=torch.float64)
    with pytest.raises(ValueError, match="generate without an assistant, or raise keep_window_size"):
        generate(model, prompt(1), do_sample=False, **assisted_by(model, "another model"))


def test_a_model_that_checkpoints_its_layers_does_not_generate_in_training(make_model):
    """Without a cache each step would see its own token only, and the text would be nonsense."""
    model = make_model().train()
    model.gradient_checkpointing_enable()
    with pytest.raises(
        ValueError, match=r"there is no cache: call eval\(\) before generating, or pass use_cache=False"
    ):
        generate(model, prompt(), do_sample=False)
    expected = generate(model, prompt(), do_sample=False, use_cache=False)
    assert generate(model.eval(), prompt(), do_sample=False).tolist() == expected.tolist()


def test_generation_ends_at_the_end_token(make_model):
    model = make_model()
    free = generate(model, prompt(1), do_sample=False)[0, 20:].tolist()
    model.generation_config.eos_token_id = free[4]
    ended = model.generate(prompt(1), attention_mask=torch.ones(1, 20), max_new_tokens=30, do_sample=False)
    assert ended[0, 20:].tolist() == free[: free.index(free[4]) + 1]
