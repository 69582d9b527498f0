"""The model class that lm-eval's tasks run on: the answers of its own `hf` class, sooner.

Tokenization, truncation, chat template and everything else that decides what is asked are inherited from
`lm_eval.models.huggingface.HFLM`; what differs is how it is computed. Log-probabilities are taken in fp32 at any dtype
of the model, where HFLM's have the model's.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import (
    _add_special_kwargs,
    handle_stop_sequences,
    has_bos_prefix,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from transformers import AutoTokenizer

from small_doge.evaluation.generation import generate_greedily
from small_doge.evaluation.scoring import Continuation, score_continuations
from small_doge.models.loading import load_checkpoint
from small_doge.utils.hardware import check_device

DTYPES = ("float32", "bfloat16", "float16")

logger = logging.getLogger(__name__)


@register_model("small-doge")
class SmallDogeLM(HFLM):
    """A causal language model for lm-eval, with `batch_tokens` padded tokens a forward instead of a batch size.

    Args:
        pretrained: A loaded model, or what `from_pretrained` takes.
        batch_tokens: Padded tokens of one forward; memory grows with it, answers do not change.
        options: Those of HFLM.
    """

    def __init__(self, pretrained: Any, batch_tokens: int = 16384, **options: Any) -> None:
        super().__init__(pretrained, **options)
        self.batch_tokens = batch_tokens

    def encode_all(self, texts: Sequence[str]) -> dict[str, list[int]]:
        """Token ids of each text as `tok_encode` would give them, every different text once and all together."""
        bos = self.tokenizer.decode(self.prefix_token_id)
        with_bos = {text for text in texts if has_bos_prefix(text, bos)}
        default = _add_special_kwargs(None, self.add_bos_token)
        encoded: dict[str, list[int]] = {}
        for group, options in ((with_bos, {"add_special_tokens": False}), (set(texts) - with_bos, default)):
            ordered = list(group)
            if ordered:
                encoded |= dict(zip(ordered, self.tokenizer(ordered, **options)["input_ids"], strict=True))
        return encoded

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        pairs = [request.args for request in requests]
        # A space at the end of a context belongs to the first token of the continuation.
        split = [(context.rstrip(), context[len(context.rstrip()) :] + rest) for context, rest in pairs]
        ids = self.encode_all([text for context, rest in split if context for text in (context, context + rest)])
        encoded = []
        for pair, (context, rest) in zip(pairs, split, strict=True):
            if context:
                encoded.append((pair, ids[context], ids[context + rest][len(ids[context]) :]))
                continue
            tokens = self.tok_encode(rest, add_special_tokens=False)
            start = self.prefix_token_id
            encoded.append((pair, [start], tokens) if tokens[0] != start else (pair, tokens[:1], tokens[1:]))
        return self._loglikelihood_tokens(encoded, disable_tqdm=disable_tqdm)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **options: Any
    ) -> list[tuple[float, bool]]:
        continuations = [Continuation(context, tokens) for _, context, tokens in requests]
        scores = score_continuations(self.model, continuations, self.max_length, self.batch_tokens)
        for (text, _, _), score in zip(requests, scores, strict=True):
            if text is not None:
                self.cache_hook.add_partial("loglikelihood", text, tuple(score))
        return [(score.log_probability, score.greedy) for score in scores]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        windows: list[tuple[None, list[int], list[int]]] = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            pieces = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for piece in pieces:
                windows.append((None, *make_disjoint_window(piece)))
                owners.append(number)
        totals = [0.0] * len(requests)
        for owner, (log_probability, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[owner] += log_probability
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Greedy requests are generated here; those that sample go to HFLM.

        An answer has at most half of what the model sees; a task that asks for more is cut to that, with a warning.
        """
        settings = [normalize_gen_kwargs(request.args[1], self.max_gen_toks) for request in requests]
        sampled = [number for number, setting in enumerate(settings) if setting.get("do_sample")]
        answers: dict[int, str] = {}
        if sampled:
            texts = super().generate_until([requests[i] for i in sampled], disable_tqdm)
            answers |= dict(zip(sampled, texts, strict=True))
        end = self.tok_decode(self.eot_token_id, skip_special_tokens=False)
        groups: dict[tuple[int, tuple[str, ...]], list[int]] = {}
        for number, setting in enumerate(settings):
            if number not in answers:
                stops = handle_stop_sequences(setting.get("until"), eos=end)
                groups.setdefault((setting["max_gen_toks"], tuple(stops)), []).append(number)
        ids = self.encode_all([request.args[0] for request in requests])
        for (max_new_tokens, stops), numbers in groups.items():
            if max_new_tokens > self.max_length // 2:
                logger.warning(
                    f"answers may have {self.max_length // 2} tokens, not {max_new_tokens}: half of the "
                    f"{self.max_length} that the model sees are kept for the prompt."
                )
                max_new_tokens = self.max_length // 2
            room = self.max_length - max_new_tokens
            prompts = [ids[requests[number].args[0]][-room:] for number in numbers]
            found = generate_greedily(self.model, self.tokenizer, prompts, max_new_tokens, stops, self.batch_tokens)
            for number, text in zip(numbers, found, strict=True):
                think_end = self.think_end_token if isinstance(self.think_end_token, str) else None
                answers[number] = postprocess_generated_text(text, list(stops), think_end)
                self.cache_hook.add_partial("generate_until", requests[number].args, answers[number])
        return [answers[number] for number in range(len(requests))]


def load_lm(path: str, device: str, dtype: str = "float32", batch_tokens: int = 16384) -> SmallDogeLM:
    """The lm-eval model for a checkpoint folder or hub id.

    Raises:
        ValueError: an unknown dtype or device, or a folder that is no whole checkpoint.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}: choose one of {', '.join(DTYPES)}.")
    check_device(device)
    model: Any = load_checkpoint(path, getattr(torch, dtype))
    model = model.to(device).eval()
    return SmallDogeLM(model, batch_tokens=batch_tokens, tokenizer=AutoTokenizer.from_pretrained(path))
