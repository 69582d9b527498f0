"""A little model that was trained a little, with its tokenizer, for tests that need neither speed nor sense."""

import os
from pathlib import Path

import pytest
import torch

from small_doge import DogeConfig, DogeForCausalLM
from small_doge.processor.tokenizer import train_tokenizer

SENTENCES = [
    "The cat sits on the mat and looks at the rain.",
    "Question: What is two plus two?\nAnswer: four",
    "Question: Which animal barks?\nAnswer: a dog",
    "A river runs down from the hills to the sea.",
    "Numbers such as 12, 305 and 7 are easy to add.",
] * 4


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Folder of a checkpoint: 2 layers, trained for 40 steps on a few sentences."""
    folder = tmp_path_factory.mktemp("checkpoint")
    tokenizer = train_tokenizer(iter(SENTENCES), 400, show_progress=False)
    torch.manual_seed(0)
    config = DogeConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        keep_window_size=256,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = DogeForCausalLM(config).train()
    ids = tokenizer([tokenizer.bos_token + s for s in SENTENCES[:5]], padding=True, return_tensors="pt")["input_ids"]
    labels = ids.masked_fill(ids == tokenizer.pad_token_id, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The real evaluation files."""
    folder = os.environ.get("SMALL_DOGE_DATA")
    if not folder:
        pytest.skip("needs real data: set SMALL_DOGE_DATA to its folder")
    return Path(folder) / "eval"
