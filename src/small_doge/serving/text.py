"""Text to tokens, and tokens back to text while they come."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from small_doge.processor.encoding import byte_to_char

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TextCodec:
    """A tokenizer as the server uses it: from several threads, and a token at a time.

    Raises:
        ValueError: the tokenizer is not byte-level, so a token has no bytes of its own.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        # A copy, because a tokenizer that is changed in one thread (padding, truncation) refuses to work in another.
        backend: Any = tokenizer
        self._backend = Tokenizer.from_str(backend.backend_tokenizer.to_str())
        self._backend.no_padding()
        self._backend.no_truncation()
        added = self._backend.get_added_tokens_decoder()
        self.control_tokens = [token.content for token in added.values() if token.special]

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """The bytes of each token id; none for special tokens."""
        added = self._backend.get_added_tokens_decoder()
        byte_of = {char: byte for byte, char in byte_to_char().items()}
        table = [b""] * (max(self._backend.get_vocab().values()) + 1)
        for text, token in self._backend.get_vocab().items():
            if token in added:
                table[token] = b"" if added[token].special else text.encode()
            elif all(char in byte_of for char in text):
                table[token] = bytes(byte_of[char] for char in text)
            else:
                raise ValueError(f"token {text!r} is not made of bytes: serve a model with a byte-level tokenizer.")
        return table

    @cached_property
    def serialized(self) -> str:
        """The tokenizer as JSON, as `tokenizers` writes it."""
        return self._backend.to_str()

    def bytes_of(self, token: int) -> bytes:
        """The bytes of a token; none for special and unused ones."""
        return self.token_bytes[token] if token < len(self.token_bytes) else b""

    def name_of(self, token: int) -> str:
        """How a token is shown to people: its text, or the name of a special token."""
        text = self.bytes_of(token).decode("utf-8", errors="replace")
        return text or self._backend.id_to_token(token) or ""

    def encode(self, text: str) -> list[int]:
        """Tokens of a text to continue: the beginning-of-text token, then the text."""
        bos = self.tokenizer.bos_token_id
        ids = self._backend.encode(text, add_special_tokens=False).ids
        return ids if bos is None else [int(bos), *ids]

    def render(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, enable_thinking: bool | None
    ) -> tuple[list[int], bool]:
        """Tokens of a conversation up to where the assistant answers, and whether a thought is open there.

        Raises:
            ValueError: the tokenizer has no chat template, or the template refuses the messages.
        """
        from jinja2 import TemplateError

        if not self.tokenizer.chat_template:
            raise ValueError("this model has no chat template: use /v1/completions.")
        # Left out, the variable is undefined in the template, which is not the same as false.
        options: dict[str, Any] = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
        functions: Any = tools
        try:
            text: Any = self.tokenizer.apply_chat_template(
                messages, tools=functions, tokenize=False, add_generation_prompt=True, **options
            )
        except TemplateError as error:
            raise ValueError(f"the chat template refuses these messages: {error}") from None
        ids = self._backend.encode(text, add_special_tokens=False).ids
        return ids, text.rstrip().endswith("<think>")


class TextStream:
    """The text of one completion, piece by piece: whole characters only, and never any part of a stop string.

    Args:
        codec: Knows the bytes of the tokens.
        stops: Strings that end the text; they are not part of it.
    """

    def __init__(self, codec: TextCodec, stops: Sequence[str] = ()) -> None:
        self.codec, self.stops = codec, tuple(stops)
        self.stopped = False
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""

    def push(self, token: int) -> str:
        """Take a token in, and return the text that is certain by now."""
        return self._release(self._decoder.decode(self.codec.bytes_of(token)))

    def finish(self) -> str:
        """The text that was held back, once no more tokens come."""
        text = self._release(self._decoder.decode(b"", final=True))
        if not self.stopped:
            text, self._held = text + self._held, ""
        return text

    def _release(self, more: str) -> str:
        if self.stopped:
            return ""
        self._held += more
        ends = [at for stop in self.stops if (at := self._held.find(stop)) >= 0]
        if ends:
            self.stopped = True
            text, self._held = self._held[: min(ends)], ""
            return text
        keep = max((partial_suffix(self._held, stop) for stop in self.stops), default=0)
        cut = len(self._held) - keep
        text, self._held = self._held[:cut], self._held[cut:]
        return text


def partial_suffix(text: str, word: str) -> int:
    """Length of the longest end of `text` that is a beginning of `word`, short of the whole word."""
    for length in range(min(len(text), len(word) - 1), 0, -1):
        if text.endswith(word[:length]):
            return length
    return 0
