"""Text to token ids, fast: tiktoken with the tokenizer's ranks where the ids are the same, else `tokenizers`."""

from __future__ import annotations

import gc
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How text is cut before it is merged: the pattern of the released Doge tokenizer, which is Llama 3's."""

MARK, CUT = "\0", "\1"
"""What stands between documents, and at cuts in white space, in the text that tiktoken is given."""


class Encoder:
    """Encodes plain text with the ids of a `transformers` tokenizer, adding nothing and reading no special tokens.

    A document that happens to contain the characters of a special token (a page about chat templates does) gets the
    ids of those characters: text can never forge an end of turn. `encode` and `encode_documents` are safe to call from
    several threads and let them run at once.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, use_tiktoken: bool = True, quiet: bool = False) -> None:
        self.tokenizer = tokenizer
        with garbage_collection_paused():
            self._fast = FastBPE.of(tokenizer) if use_tiktoken else None
        if use_tiktoken and self._fast is None and not quiet:
            logger.warning("This tokenizer has no tiktoken form: encoding by `tokenizers`, about 5 times slower.")

    @property
    def backend(self) -> str:
        """`tiktoken` or `tokenizers`."""
        return "tokenizers" if self._fast is None else "tiktoken"

    def encode(self, text: str) -> NDArray[np.int32]:
        """The ids of a text, without BOS or EOS."""
        ids = None if self._fast is None else self._fast.encode(text)
        if ids is None:
            ids = np.asarray(self._plain.encode(text, add_special_tokens=False).ids, dtype=np.int32)
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """The ids of several texts, in order."""
        if self._fast is not None:
            return [self.encode(text) for text in texts]
        encoded = self._plain.encode_batch(list(texts), add_special_tokens=False)
        return [np.asarray(item.ids, dtype=np.int32) for item in encoded]

    def encode_documents(self, texts: Sequence[str], bos: int | None, eos: int) -> list[NDArray[np.int32]]:
        """The ids of several texts, in order, each with one BOS before (if there is one) and one EOS after."""
        found = None if self._fast is None else self._fast.encode_documents(texts, bos, eos)
        if found is None:
            before = [] if bos is None else [bos]
            found = [np.array([*before, *ids, eos], dtype=np.int32) for ids in self.encode_batch(texts)]
        return found

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


class FastBPE:
    """Byte-level BPE by tiktoken. Text that holds one of the marks is left to others: None is returned for it."""

    def __init__(self, pattern: str, ranks: dict[bytes, int]) -> None:
        import tiktoken

        # Without its look-ahead the pattern needs no backtracking. Cuts in the text then do what it did, which is known
        # of this pattern alone: it never keeps a last space of several with what follows.
        self._cuts = pattern == SPLIT_PATTERN
        if self._cuts:
            pattern = pattern.replace(r"|\s+(?!\S)", "")
        # tiktoken searches for special tokens at the speed of memory, where it has one; without any, at half its speed.
        last = max(ranks.values())
        self._mark, self._cut = last + 1, last + 2
        specials = {MARK: self._mark, CUT: self._cut}
        self._encoding = tiktoken.Encoding(
            "small-doge", pat_str=pattern, mergeable_ranks=ranks, special_tokens=specials
        )

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> FastBPE | None:
        """The encoding with the same ids as a byte-level BPE tokenizer, or None where it could differ.

        tiktoken merges by the rank of the merged token. A tokenizer does the same when its merges give every way to
        make each token, in order of id, as ours do; other tokenizers are refused, however alike.
        """
        spec = json.loads(_backend(tokenizer).to_str())
        model, pattern = spec["model"], _split_pattern(spec)
        if pattern is None or model["type"] != "BPE" or not model.get("ignore_merges") or spec.get("normalizer"):
            return None
        if model.get("dropout") or model.get("byte_fallback") or model.get("continuing_subword_prefix"):
            return None
        to_byte = {char: byte for byte, char in byte_to_char().items()}
        added = {token["content"] for token in spec["added_tokens"]}
        vocab = {token: rank for token, rank in model["vocab"].items() if token not in added}
        if not to_byte.keys() >= set().union(*vocab) or not vocab.keys() >= to_byte.keys():
            return None
        if any(way != tuple(merge or ()) for way, merge in zip_longest(rank_ordered_merges(vocab), model["merges"])):
            return None
        return cls(pattern, {bytes(map(to_byte.__getitem__, token)): rank for token, rank in vocab.items()})

    def encode(self, text: str) -> NDArray[np.int32] | None:
        """The ids of a text."""
        ids = self._encode(text)
        return None if ids is None or (ids == self._mark).any() else ids

    def encode_documents(self, texts: Sequence[str], bos: int | None, eos: int) -> list[NDArray[np.int32]] | None:
        """The ids of several texts with BOS and EOS, encoded in one call: other threads wait for Python but once."""
        around = [eos] if bos is None else [bos, eos]
        ids = self._encode("".join(f"{MARK[bos is None :]}{text}{MARK}" for text in texts))
        if ids is None:
            return None
        marks = np.flatnonzero(ids == self._mark)
        if len(marks) != len(texts) * len(around):
            return None
        places = marks.reshape(-1, len(around))
        ids[places] = around
        ends = (places[:, -1] + 1).tolist()
        return [ids[start:end] for start, end in zip([0, *ends], ends, strict=False)]

    def _encode(self, text: str) -> NDArray[np.int32] | None:
        """The ids of a text with marks in it; None if it holds a character that stands for a cut."""
        cuts = white_space_cuts(text) if self._cuts else []
        if cuts:
            text = CUT.join(text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True))
        ids = self._encoding.encode_to_numpy(text, allowed_special={MARK, CUT}).astype(np.int32)
        kept = ids != self._cut
        if kept.sum() + len(cuts) != len(ids):
            return None
        return ids[kept] if cuts else ids


@contextmanager
def garbage_collection_paused() -> Iterator[None]:
    """For many small objects that live shortly: a tokenizer's merges alone would have all that is imported searched."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


OTHER, SPACE, END = 0, 1, 2
_KINDS = np.full(0x3002, OTHER, dtype=np.uint8)
_KINDS[[ord(char) for char in "\t\v\f \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000"]] = SPACE
_KINDS[0x2000:0x200B] = SPACE
_KINDS[[ord(char) for char in "\r\n" + MARK]] = END


def white_space_cuts(text: str) -> list[int]:
    """Where SPLIT_PATTERN's look-ahead cuts: before the last of several spaces that something else follows.

    A space is one of Unicode's `White_Space` and no line end; a mark is the end of the text, which cuts nothing.
    """
    kinds = _KINDS.take(np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32), mode="clip")
    space = kinds == SPACE
    return (np.flatnonzero(space[:-2] & space[1:-1] & (kinds[2:] == OTHER)) + 1).tolist()


def rank_ordered_merges(ranks: dict[str, int]) -> Iterator[tuple[str, str]]:
    """Every way to make each token of `ranks` from two others, in order of the token made: tiktoken's merge rule."""
    for token in sorted(ranks, key=ranks.__getitem__):
        ways = []
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in ranks and right in ranks:
                ways.append((ranks[left], ranks[right], left, right))
        for _, _, left, right in sorted(ways):
            yield left, right


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
