"""Text to token ids, fast: tiktoken with the tokenizer's ranks where the ids are the same, else `tokenizers`."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import tiktoken
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


class Encoder:
    """Encodes plain text with the ids of a `transformers` tokenizer, adding nothing and reading no special tokens.

    A document that happens to contain the characters of a special token (a page about chat templates does) gets the
    ids of those characters: text can never forge an end of turn. `encode` is safe to call from several threads and
    lets them run at once.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, use_tiktoken: bool = True, quiet: bool = False) -> None:
        self.tokenizer = tokenizer
        self._encoding = tiktoken_encoding(tokenizer) if use_tiktoken else None
        if use_tiktoken and self._encoding is None and not quiet:
            logger.warning("This tokenizer has no tiktoken form: encoding by `tokenizers`, about 5 times slower.")

    @property
    def backend(self) -> str:
        """`tiktoken` or `tokenizers`."""
        return "tokenizers" if self._encoding is None else "tiktoken"

    def encode(self, text: str) -> NDArray[np.int32]:
        """The ids of a text, without BOS or EOS."""
        if self._encoding is not None:
            return self._encoding.encode_to_numpy(text, disallowed_special=()).astype(np.int32)
        return np.asarray(self._plain.encode(text, add_special_tokens=False).ids, dtype=np.int32)

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """The ids of several texts, in order."""
        if self._encoding is not None:
            return [self.encode(text) for text in texts]
        encoded = self._plain.encode_batch(list(texts), add_special_tokens=False)
        return [np.asarray(item.ids, dtype=np.int32) for item in encoded]

    @cached_property
    def _plain(self) -> Any:
        """The Rust tokenizer without its added tokens, so that it sees their characters as text."""
        from tokenizers import Tokenizer

        spec = json.loads(_backend(self.tokenizer).to_str())
        spec["added_tokens"] = []
        return Tokenizer.from_str(json.dumps(spec))


def _backend(tokenizer: PreTrainedTokenizerBase) -> Any:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ValueError(
            "processing_class has no fast tokenizer behind it: load it with AutoTokenizer and use_fast=True."
        )
    return backend


def tiktoken_encoding(tokenizer: PreTrainedTokenizerBase) -> tiktoken.Encoding | None:
    """A tiktoken encoding with the same ids as a byte-level BPE tokenizer, or None where it could differ.

    tiktoken merges by the rank of the merged token. A tokenizer does the same when its merges give every way to make
    each token, in order of id, as ours do; other tokenizers are refused, however alike.
    """
    import tiktoken

    spec = json.loads(_backend(tokenizer).to_str())
    model, pattern = spec["model"], _split_pattern(spec)
    if pattern is None or model["type"] != "BPE" or not model.get("ignore_merges") or spec.get("normalizer"):
        return None
    if model.get("dropout") or model.get("byte_fallback") or model.get("continuing_subword_prefix"):
        return None
    to_byte = {char: byte for byte, char in byte_to_char().items()}
    added = {token["content"] for token in spec["added_tokens"]}
    vocab = {token: rank for token, rank in model["vocab"].items() if token not in added}
    if not all(char in to_byte for token in vocab for char in token) or not all(char in vocab for char in to_byte):
        return None
    if not _merges_follow_ranks([tuple(merge) for merge in model["merges"]], vocab):
        return None
    ranks = {bytes(to_byte[char] for char in token): rank for token, rank in vocab.items()}
    # Without a special token, tiktoken's search for one stops at every character: half its time. NUL is searched for at
    # the speed of memory, and never allowed, so that it is encoded as any other character.
    specials = {"\0": max(ranks.values()) + 1}
    return tiktoken.Encoding("small-doge", pat_str=pattern, mergeable_ranks=ranks, special_tokens=specials)


def rank_ordered_merges(ranks: dict[str, int]) -> list[tuple[str, str]]:
    """Every way to make each token of `ranks` from two others, in order of the token made: tiktoken's merge rule."""
    merges: list[tuple[str, str]] = []
    for token, _ in sorted(ranks.items(), key=lambda item: item[1]):
        ways = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        ways = [(left, right) for left, right in ways if left in ranks and right in ranks]
        merges.extend(sorted(ways, key=lambda way: (ranks[way[0]], ranks[way[1]])))
    return merges


def _merges_follow_ranks(merges: list[tuple[Any, ...]], ranks: dict[str, int]) -> bool:
    return merges == rank_ordered_merges(ranks)


def split_pattern(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The regular expression by which a byte-level tokenizer cuts text, or None where it has no single one."""
    return _split_pattern(json.loads(_backend(tokenizer).to_str()))


def _split_pattern(spec: dict[str, Any]) -> str | None:
    """The regular expression of a pre-tokenizer that splits by it and then maps bytes, or None for any other kind."""
    pre_tokenizer = spec.get("pre_tokenizer") or {}
    steps = pre_tokenizer.get("pretokenizers", [])
    if [step.get("type") for step in steps] != ["Split", "ByteLevel"]:
        return None
    split, byte_level = steps
    if byte_level["use_regex"] or byte_level["add_prefix_space"] or split["behavior"] != "Isolated" or split["invert"]:
        return None
    return split["pattern"].get("Regex")


def byte_to_char() -> dict[int, str]:
    """The printable stand-in of each byte in byte-level vocabularies (GPT-2's table)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    table = {byte: chr(byte) for byte in printable}
    others = [byte for byte in range(256) if byte not in table]
    return {**table, **{byte: chr(256 + number) for number, byte in enumerate(others)}}
