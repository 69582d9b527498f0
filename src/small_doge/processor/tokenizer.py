"""The tokenizer: byte-level BPE trained from text, with the special tokens and the chat template of the Doge family."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from small_doge.processor.encoding import SPLIT_PATTERN, rank_ordered_merges
from small_doge.utils.places import HUB_ID

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

BOS_TOKEN = "<|begin_of_text|>"
EOS_TOKEN = "<|end_of_text|>"
PAD_TOKEN = "<|finetune_right_pad_id|>"
EOT_TOKEN = "<|eot_id|>"
CONTROL_TOKENS = (BOS_TOKEN, EOS_TOKEN, PAD_TOKEN, "<|start_header_id|>", "<|end_header_id|>", EOT_TOKEN)
# Tags are single tokens but stay visible when special tokens are skipped, so that parsers and rewards can read them.
TAG_TOKENS = ("<think>", "</think>", "<tool_call>", "</tool_call>")
BYTES = 256
DEFAULT_VOCAB_SIZE = 32_768
MODEL_MAX_LENGTH = 131_072


def special_tokens(vocab_size: int = DEFAULT_VOCAB_SIZE) -> list[str]:
    """The special tokens, in order of id from 0. Larger vocabularies reserve more unused ones (4 to 54) for later."""
    named = [*CONTROL_TOKENS, *TAG_TOKENS]
    reserved = max(4, min(64 - len(named), vocab_size // 512))
    return [*named, *(f"<|reserved_special_token_{i}|>" for i in range(reserved))]


def smallest_vocab_size() -> int:
    """The smallest vocabulary that holds the special tokens and the 256 bytes."""
    return len(special_tokens(0)) + BYTES


def chat_template() -> str:
    """The Jinja chat template that `train_tokenizer` attaches."""
    return Path(__file__).with_name("chat_template.jinja").read_text(encoding="utf-8").strip()


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int = DEFAULT_VOCAB_SIZE,
    *,
    pattern: str = SPLIT_PATTERN,
    min_frequency: int = 2,
    show_progress: bool = False,
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer with exactly `vocab_size` tokens, or fewer where the texts have too few merges.

    Special tokens take the first ids, the 256 bytes the next, then come the merges in the order in which they were
    learnt. Encoding adds no token by itself (packing and the chat template write the one BOS), so rendering a
    conversation and encoding the text never doubles it; `AutoTokenizer.from_pretrained(path, add_bos_token=True)`
    gives one that adds BOS to plain prompts.

    Args:
        texts: what to learn from; read once.
        vocab_size: tokens in all, special ones included.
        pattern: the regular expression that cuts text into the parts within which merges are learnt.
        min_frequency: a pair must occur so often to be merged.
        show_progress: show the progress bar of `tokenizers`.

    Raises:
        ValueError: the vocabulary cannot hold the special tokens and the 256 bytes, or there is no text.
    """
    from tokenizers import Tokenizer, models, trainers
    from tokenizers.pre_tokenizers import ByteLevel

    if vocab_size < smallest_vocab_size():
        raise ValueError(
            f"vocab_size {vocab_size} is too small: the special tokens and the 256 bytes need {smallest_vocab_size()}."
        )
    specials = special_tokens(vocab_size)
    tokenizer = Tokenizer(models.BPE())
    _set_byte_level(tokenizer, pattern)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=specials,
        initial_alphabet=sorted(ByteLevel.alphabet()),
        show_progress=show_progress,
    )
    counter = _CountingIterator(texts)
    tokenizer.train_from_iterator(counter, trainer=trainer)
    if counter.characters == 0:
        raise ValueError("There is no text to train a tokenizer on: give at least one non-empty document.")
    if tokenizer.get_vocab_size() < vocab_size:
        logger.warning(
            "The text supports only %d of the %d tokens asked for: give more text or a smaller vocab_size.",
            tokenizer.get_vocab_size(),
            vocab_size,
        )
    return wrap_tokenizer(_with_rank_order(tokenizer, specials, pattern))


def wrap_tokenizer(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """A `transformers` tokenizer around `tokenizer`, which must hold our special tokens, with our chat template."""
    from transformers import PreTrainedTokenizerFast

    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS_TOKEN,
        eos_token=EOS_TOKEN,
        pad_token=PAD_TOKEN,
        model_max_length=MODEL_MAX_LENGTH,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
    wrapped.chat_template = chat_template()
    return wrapped


def load_tokenizer(processing_class: PreTrainedTokenizerBase | str | Path | None) -> PreTrainedTokenizerBase:
    """The tokenizer itself, or the one in a folder, in a `tokenizer.json` file or of that name on the Hub.

    Raises:
        ValueError: none was given, or none can be loaded from there.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if processing_class is None:
        raise ValueError(
            "processing_class is missing (in a recipe: tokenizer): give a tokenizer, or the folder or name of one."
        )
    if not isinstance(processing_class, (str, Path)):
        return processing_class
    path = Path(processing_class)
    if path.suffix == ".json" and path.is_file():
        return PreTrainedTokenizerFast(tokenizer_file=str(path))
    if not path.exists() and not HUB_ID.fullmatch(str(processing_class)):
        raise ValueError(
            f"There is no tokenizer {processing_class}: correct the path, or run `small-doge tokenizer train` first."
        )
    try:
        return AutoTokenizer.from_pretrained(str(processing_class))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"No tokenizer can be loaded from {processing_class} ({reason}): give a folder that holds one."
        ) from None


def _set_byte_level(tokenizer: Tokenizer, pattern: str) -> None:
    from tokenizers import Regex, decoders, pre_tokenizers

    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()


def _with_rank_order(trained: Tokenizer, specials: list[str], pattern: str) -> Tokenizer:
    """The same vocabulary, merged by the rank of the result (tiktoken's rule), not by the trainer's list of pairs.

    The trainer keeps one way to make each token. Listing every way, ordered by the token made, makes `tokenizers` and
    tiktoken agree on any input instead of on nearly any.
    """
    from tokenizers import AddedToken, Tokenizer, models

    vocab = trained.get_vocab()
    ranks = {token: rank for token, rank in vocab.items() if token not in set(specials)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=list(rank_ordered_merges(ranks)), ignore_merges=True))
    _set_byte_level(tokenizer, pattern)
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=token not in TAG_TOKENS) for token in specials])
    return tokenizer


class _CountingIterator:
    """Passes texts through and counts their characters, so that an empty input is noticed without a second pass."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.texts = texts
        self.characters = 0

    def __iter__(self) -> Iterator[str]:
        for text in self.texts:
            self.characters += len(text)
            yield text
