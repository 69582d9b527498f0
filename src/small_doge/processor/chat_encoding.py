"""Conversations to token ids with a mask of what the assistant says."""

from __future__ import annotations

import json
import re
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from transformers.utils.chat_template_utils import render_jinja_template

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
        self._rendering = threading.Lock()

    def __call__(self, messages: list[dict[str, Any]], tools: str | None = None) -> dict[str, NDArray[Any]]:
        """`input_ids` (int32) and `assistant_masks` (int8, 1 on the assistant's tokens), of equal length.

        The same as `apply_chat_template(..., return_assistant_tokens_mask=True)`, which several threads cannot use.
        """
        specials: Any = self.tokenizer.special_tokens_map
        # The compiled template is shared and notes in itself where the assistant speaks: one rendering at a time.
        with self._rendering:
            rendered: Any = render_jinja_template(
                conversations=[[{k: v for k, v in message.items() if v is not None} for message in messages]],
                tools=None if tools is None else json.loads(tools),
                chat_template=self.tokenizer.chat_template,
                return_assistant_tokens_mask=True,
                **specials,
            )
        (text,), (spans,) = rendered
        backend: Any = self.tokenizer.backend_tokenizer
        encoded = backend.encode(text, add_special_tokens=False)
        starts = np.array([start for start, _ in encoded.offsets], dtype=np.int64)
        masks = np.zeros(len(starts), dtype=np.int8)
        for start, end in spans:
            masks[np.searchsorted(starts, start) : np.searchsorted(starts, end)] = 1
        return {"input_ids": np.asarray(encoded.ids, dtype=np.int32), "assistant_masks": masks}
