"""Training a tokenizer on a mix of sources, and showing what a tokenizer is and how well it compresses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from small_doge.processor.chat_encoding import GENERATION_MARK
from small_doge.processor.documents import is_test, iter_documents
from small_doge.processor.encoding import SPLIT_PATTERN, Encoder, split_pattern
from small_doge.processor.mixing import MixState, Sample, mix, parse_ratios
from small_doge.processor.report import Report
from small_doge.processor.tokenizer import DEFAULT_VOCAB_SIZE, load_tokenizer, train_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

SAMPLES = (
    "Hello, world! It's 2026.",
    "def f(x):\n    return x**2",
    "小狗在公园里跑。",
    "<think>\n1 + 1 = 2\n</think>\n\n2",
)


def train_tokenizer_on(
    datasets_and_ratios: Sequence[Mapping[str, float]],
    vocab_size: int = DEFAULT_VOCAB_SIZE,
    *,
    total_bytes: int | None = None,
    text_field: str = "text",
    from_tokenizer: PreTrainedTokenizerBase | str | Path | None = None,
    test_share: float = 0.01,
    formatting_func: Callable[[dict[str, Any]], Any] | None = None,
    show_progress: bool = False,
) -> PreTrainedTokenizerFast:
    """Train a tokenizer on sources mixed by their share of bytes; a second language is one more source.

    Args:
        datasets_and_ratios: as for `mix_datasets_by_ratio`.
        vocab_size: tokens in all.
        total_bytes: bytes of text to learn from; None takes as many as the ratios allow.
        text_field, formatting_func: where the text of a row is.
        from_tokenizer: take the way of cutting text from this byte-level tokenizer instead of ours.
        test_share: held-out documents, as in preparation, are not learnt from.
        show_progress: show a progress bar.

    Raises:
        ValueError: a source cannot be read, or `from_tokenizer` is not byte-level with one pattern.
    """
    pattern = SPLIT_PATTERN
    if from_tokenizer is not None:
        old = split_pattern(load_tokenizer(from_tokenizer))
        if old is None:
            raise ValueError(
                "from_tokenizer does not cut text by one pattern into bytes: give a byte-level one like Llama 3's."
            )
        pattern = old
    names, ratios = parse_ratios(datasets_and_ratios)

    def texts(name: str) -> Iterator[Sample[str]]:
        for document in iter_documents(name, text_field, formatting_func=formatting_func):
            if not is_test(document, test_share):
                yield Sample(len(document.text.encode()), document.text)

    state = MixState([0] * len(names), [0] * len(names))
    mixed = mix([texts(name) for name in names], ratios, total_bytes, state, _first_bytes)
    return train_tokenizer(
        (sample.payload for _, sample in mixed), vocab_size, pattern=pattern, show_progress=show_progress
    )


def _first_bytes(text: str, size: int) -> str:
    return text.encode()[:size].decode(errors="ignore")


def evaluate_tokenizers(
    tokenizers: Mapping[str, PreTrainedTokenizerBase | str],
    domains: Mapping[str, str],
    *,
    text_field: str = "text",
    max_bytes: int = 2_000_000,
    test_share: float | None = None,
) -> list[dict[str, Any]]:
    """Bytes a token of each tokenizer on each domain: more is better.

    Args:
        tokenizers: by the name to show, the tokenizer or where it is loaded from.
        domains: by the name to show, a source of text.
        text_field: the column of the text.
        max_bytes: bytes to read of a domain.
        test_share: read only the documents that preparation with this share holds out; None reads all.

    Returns:
        One dict a domain and tokenizer: domain, tokenizer, vocab_size, documents, bytes, tokens, bytes_per_token.
    """
    encoders = {name: Encoder(load_tokenizer(item), quiet=True) for name, item in tokenizers.items()}
    rows = []
    for domain, source in domains.items():
        texts, size = [], 0
        for document in iter_documents(source, text_field, report=Report()):
            if test_share is not None and not is_test(document, test_share):
                continue
            texts.append(document.text)
            size += len(document.text.encode())
            if size >= max_bytes:
                break
        if not texts:
            raise ValueError(f"{source} has no document to evaluate on: give another source, or a larger test_share.")
        for name, encoder in encoders.items():
            tokens = sum(map(len, encoder.encode_batch(texts)))
            rows.append(
                {
                    "domain": domain,
                    "tokenizer": name,
                    "vocab_size": len(encoder.tokenizer),
                    "documents": len(texts),
                    "bytes": size,
                    "tokens": tokens,
                    "bytes_per_token": size / tokens,
                }
            )
    return rows


def inspect_tokenizer(tokenizer: PreTrainedTokenizerBase | str, texts: Sequence[str] = SAMPLES) -> dict[str, Any]:
    """What a tokenizer is: sizes, special tokens, its template's powers, and the tokens of some texts."""
    loaded = load_tokenizer(tokenizer)
    template = loaded.chat_template if isinstance(loaded.chat_template, str) else ""
    cut = []
    for text in texts:
        ids = loaded(text, add_special_tokens=False).input_ids
        cut.append({"text": text, "tokens": [loaded.decode([i]) for i in ids], "exact": loaded.decode(ids) == text})
    return {
        "vocab_size": len(loaded),
        "special_tokens": {
            name: {"token": getattr(loaded, name), "id": getattr(loaded, f"{name}_id")}
            for name in ("bos_token", "eos_token", "pad_token")
        },
        "added_tokens": {token.content: i for i, token in sorted(loaded.added_tokens_decoder.items())},
        "adds_bos_to_text": loaded("a").input_ids[:1] == [loaded.bos_token_id],
        "chat_template": bool(template),
        "assistant_mask": bool(GENERATION_MARK.search(template)),
        "encoder": Encoder(loaded, quiet=True).backend,
        "texts": cut,
    }
