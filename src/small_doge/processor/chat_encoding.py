"""Conversations to token ids with a mask of what the assistant says."""

from __future__ import annotations

import copy
import json
import re
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GENERATION_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")


class ChatEncoder:
    """Renders conversations with a tokenizer's chat template and encodes them; several threads may call it at once.

    Raises:
        ValueError: the tokenizer has no chat template, or one without `{% generation %}` marks.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not isinstance(tokenizer.chat_template, str):
            raise ValueError("processing_class has no chat template: set its chat_template, or train one of ours.")
        if not GENERATION_MARK.search(tokenizer.chat_template):
            raise ValueError(
                "The chat template of processing_class does not mark what the assistant says: put {% generation %} "
                "and {% endgeneration %} around it, or take the one of small_doge.processor.tokenizer.chat_template()."
            )
        self.tokenizer = tokenizer
        self._mine = threading.local()

    def __call__(self, messages: list[dict[str, Any]], tools: str | None = None) -> dict[str, NDArray[Any]]:
        """`input_ids` (int32) and `assistant_masks` (int8, 1 on the assistant's tokens), of equal length."""
        if not hasattr(self._mine, "tokenizer"):
            # A tokenizer of `transformers` changes its own state while it encodes, so each thread has a copy.
            self._mine.tokenizer = copy.deepcopy(self.tokenizer)
        encoded: Any = self._mine.tokenizer.apply_chat_template(
            messages,
            tools=None if tools is None else json.loads(tools),
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        return {
            "input_ids": np.asarray(encoded["input_ids"], dtype=np.int32),
            "assistant_masks": np.asarray(encoded["assistant_masks"], dtype=np.int8),
        }
