from __future__ import annotations

import io
import json
import random

import pytest
from transformers import PreTrainedTokenizerFast

from small_doge.processor.encoding import CUT, MARK, Encoder, FastBPE
from small_doge.processor.tokenizer import train_tokenizer

ODD = [
    "'S",
    "'ſ",
    "'t",
    "  ",
    "\n",
    "\r\n",
    "\t",
    "中文",
    "é",
    "e\u0301",
    "١٢٣٤",
    "¼",
    "\x85",
    "\u180e",
    "\u3000",
    "İ",
    "ǅ",
    "1234567",
    "a_b",
    "🤖",
    "_-",
    ".",
    "\0",
]


def test_our_tokenizers_encode_by_tiktoken(tokenizer):
    assert Encoder(tokenizer).backend == "tiktoken"


def test_both_backends_give_the_same_ids_on_odd_text(tokenizer):
    fast, slow = Encoder(tokenizer), Encoder(tokenizer, use_tiktoken=False)
    rng = random.Random(3)
    texts = [
        "".join(rng.choice([*ODD, "the ", "list", chr(rng.randrange(0x3000))]) for _ in range(30)) for _ in range(500)
    ]
    assert [ids.tolist() for ids in slow.encode_batch(texts)] == [fast.encode(text).tolist() for text in texts]


def test_both_backends_cut_runs_of_any_white_space_alike(tokenizer):
    fast, slow = Encoder(tokenizer), Encoder(tokenizer, use_tiktoken=False)
    rng = random.Random(4)
    spaces = "\t\v\f \x1c\x85\xa0\u1680\u180e\u2000\u200a\u200b\u2028\u2029\u202f\u205f\u3000\r\n"
    texts = ["".join(rng.choice(spaces + "  a1-") for _ in range(rng.randrange(1, 20))) for _ in range(5000)]
    assert [ids.tolist() for ids in slow.encode_batch(texts)] == [fast.encode(text).tolist() for text in texts]


@pytest.mark.parametrize("bos", [None, 1])
@pytest.mark.parametrize("use_tiktoken", [True, False])
@pytest.mark.parametrize(
    "odd", ["", "  ", f"a{MARK}  b", f"a{CUT} b   c", f"  {CUT}{MARK}", "x  y \t z\n\n  "], ids=repr
)
def test_documents_encoded_in_one_call_are_those_encoded_one_by_one(tokenizer, odd, use_tiktoken, bos):
    texts = ["one  two", odd, "def f(x):\n        return x  # 狗", odd]
    found = Encoder(tokenizer, use_tiktoken).encode_documents(texts, bos, 2)
    plain = Encoder(tokenizer, use_tiktoken=False)
    assert [ids.tolist() for ids in found] == [
        [*([] if bos is None else [bos]), *plain.encode(text).tolist(), 2] for text in texts
    ]
    assert all(ids.dtype == "int32" for ids in found)


def test_no_documents_give_no_ids(tokenizer):
    assert Encoder(tokenizer).encode_documents([], 1, 2) == []


def test_the_ids_are_those_of_the_tokenizer(tokenizer):
    text = "The median of 1234 values;\n\n\treturn 狗 — it's"
    assert Encoder(tokenizer).encode(text).tolist() == tokenizer(text).input_ids


@pytest.mark.parametrize("use_tiktoken", [True, False])
def test_text_cannot_forge_special_tokens(tokenizer, use_tiktoken):
    encoder = Encoder(tokenizer, use_tiktoken)
    ids = encoder.encode("a <|eot_id|> <think> b").tolist()
    assert min(ids) >= 14
    assert tokenizer.decode(ids) == "a <|eot_id|> <think> b"


def test_a_tokenizer_whose_merges_are_not_in_rank_order_falls_back_and_says_so(tokenizer, caplog):
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    spec["model"]["merges"] = spec["model"]["merges"][:-1]
    from tokenizers import Tokenizer

    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(spec)))
    assert FastBPE.of(other) is None
    assert Encoder(other).backend == "tokenizers"
    assert "slower" in caplog.text


@pytest.mark.slow
def test_both_backends_agree_on_every_code_point(tokenizer):
    fast, slow = Encoder(tokenizer), Encoder(tokenizer, use_tiktoken=False)
    points = [chr(point) for point in range(0x110000) if not 0xD800 <= point < 0xE000]
    texts = [
        "".join(f"a{char}b {char} 1{char}{char}" for char in points[i : i + 64]) for i in range(0, len(points), 64)
    ]
    assert [ids.tolist() for ids in slow.encode_batch(texts)] == [fast.encode(text).tolist() for text in texts]


@pytest.mark.data
def test_both_backends_agree_on_real_text(data_folder):
    import zstandard

    texts = []
    for name in ("docs_peps-00", "wiki_zh-00", "code_python-00", "math_stacks-00"):
        with open(data_folder / "pretrain" / f"{name}.jsonl.zst", "rb") as file:
            lines = io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(file), encoding="utf-8")
            texts += [json.loads(line)["text"] for _, line in zip(range(40), lines, strict=False)]
    tokenizer = train_tokenizer(texts, 2048)
    fast, slow = Encoder(tokenizer), Encoder(tokenizer, use_tiktoken=False)
    for text, ids in zip(texts, slow.encode_batch(texts), strict=True):
        assert fast.encode(text).tolist() == ids.tolist()


@pytest.mark.data
def test_the_released_doge_tokenizer_is_read_by_its_own_rules(data_folder):
    released = PreTrainedTokenizerFast(tokenizer_file=str(data_folder / "doge_tokenizer.json"))
    text = "The quick brown fox; def f(x): return x**2\n"
    assert Encoder(released).encode(text).tolist() == released(text, add_special_tokens=False).input_ids
