"""Fixtures that several folders share: a tiny tokenizer and a tiny model, made once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before torch is imported, and for the processes that tests start: the workers of pytest-xdist fill the cores, and
# threads of small products that outnumber the cores wait for one another, ten times as long as they compute.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

TEXTS = [
    "The quick brown fox jumps over the lazy dog, and the dog does not mind at all.",
    "Tom has 7 apples. Tom buys 5 more. How many apples does Tom have now? 7 + 5 = 12.",
    "def add(a, b):\n    return a + b\n",
    "Return the median (middle value) of numeric data, using the common mean of middle two method.",
]


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved tokenizer of 512 tokens."""
    from small_doge.processor.tokenizer import train_tokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(TEXTS * 20, vocab_size=512, min_frequency=1).save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="session")
def model_folder(tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved tiny Doge, with that tokenizer, random weights and scores that differ."""
    import torch
    from transformers import AutoTokenizer

    from small_doge import DogeConfig, DogeForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(str(tokenizer_folder))
    torch.manual_seed(0)
    config = DogeConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    model = DogeForCausalLM(config)
    for layer in model.model.layers:
        torch.nn.init.normal_(layer.self_attn.A)
        torch.nn.init.normal_(layer.self_attn.dt_proj.weight)
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    return folder
