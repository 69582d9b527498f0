from __future__ import annotations

import json

import pytest
from transformers import PreTrainedTokenizerFast

from small_doge.processor.documents import iter_documents
from small_doge.processor.encoding import Encoder
from small_doge.processor.tokenizer import train_tokenizer
from small_doge.processor.tokenizer_tools import evaluate_tokenizers, inspect_tokenizer, train_tokenizer_on


def test_a_tokenizer_is_trained_on_a_mix_of_sources_without_the_held_out_documents(text_file, tokenizer, monkeypatch):
    from small_doge.processor import tokenizer_tools

    seen = []
    monkeypatch.setattr(tokenizer_tools, "train_tokenizer", lambda texts, size, **options: seen.extend(texts))
    sources = [{text_file("a.jsonl", 200): 0.8}, {text_file("b.jsonl", 200): 0.2}]
    train_tokenizer_on(sources, 400, total_bytes=50_000, test_share=0.3)
    size = {name: sum(len(text.encode()) for text in seen if text.startswith(name)) for name in "ab"}
    assert 0.9 * 50_000 < sum(size.values()) <= 50_000
    assert abs(size["a"] / sum(size.values()) - 0.8) < 0.05
    everything = len(seen)
    seen.clear()
    train_tokenizer_on(sources, 400, test_share=0)
    assert len(seen) > everything


def test_an_old_tokenizer_gives_its_way_of_cutting_text(text_file, tokenizer):
    path = text_file("a.jsonl", 40)
    other = train_tokenizer(["some text to learn from " * 20], 300, pattern=r"\s+|\S+")
    made = train_tokenizer_on([{path: 1.0}], 350, from_tokenizer=other)
    spec = json.loads(made.backend_tokenizer.to_str())
    assert spec["pre_tokenizer"]["pretokenizers"][0]["pattern"] == {"Regex": r"\s+|\S+"}
    assert made.convert_ids_to_tokens([0, 1, 2]) == [
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|finetune_right_pad_id|>",
    ]


def test_bytes_a_token_are_measured_by_domain_and_tokenizer(text_file, tokenizer):
    path = text_file("a.jsonl", 30)
    bytes_only = train_tokenizer(["x"], 270)
    rows = evaluate_tokenizers({"ours": tokenizer, "bytes": bytes_only}, {"made": path})
    by_name = {row["tokenizer"]: row for row in rows}
    assert by_name["bytes"]["bytes_per_token"] == 1
    texts = [document.text for document in iter_documents(path)]
    assert by_name["ours"]["tokens"] == sum(len(Encoder(tokenizer).encode(text)) for text in texts)
    assert by_name["ours"]["bytes_per_token"] > 1.5


def test_inspecting_shows_specials_powers_and_cuts(tokenizer):
    shown = inspect_tokenizer(tokenizer, ["the list"])
    assert shown["special_tokens"]["eos_token"] == {"token": "<|end_of_text|>", "id": 1}
    assert (shown["assistant_mask"], shown["adds_bos_to_text"], shown["encoder"]) == (True, False, "tiktoken")
    assert "".join(shown["texts"][0]["tokens"]) == "the list"
    assert shown["texts"][0]["exact"]


@pytest.mark.data
@pytest.mark.slow
def test_ours_compresses_as_well_as_the_released_one(data_folder, tmp_path):
    pretrain = data_folder / "pretrain"
    names = {"english": "wiki_en-00", "code": "code_python-00", "chinese": "wiki_zh-00"}
    ratios = {"english": 0.6, "code": 0.2, "chinese": 0.2}
    sources = [{str(pretrain / f"{names[d]}.jsonl.zst"): ratio} for d, ratio in ratios.items()]
    ours = train_tokenizer_on(sources, 32_768, total_bytes=40_000_000, test_share=0.05)
    released = PreTrainedTokenizerFast(tokenizer_file=str(data_folder / "doge_tokenizer.json"))
    domains = {domain: str(pretrain / f"{name}.jsonl.zst") for domain, name in names.items()}
    rows = evaluate_tokenizers({"ours": ours, "released": released}, domains, test_share=0.05)
    rate = {(row["domain"], row["tokenizer"]): row["bytes_per_token"] for row in rows}
    assert rate["english", "ours"] > 0.98 * rate["english", "released"]
    assert rate["code", "ours"] > rate["code", "released"]
    assert rate["chinese", "ours"] > 1.5 * rate["chinese", "released"]
