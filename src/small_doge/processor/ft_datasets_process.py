"""Fine-tuning data in one call: conversations, reasoning traces and preference pairs, mixed by ratio."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from small_doge.processor.arguments import check_arguments
from small_doge.processor.chat_encoding import ChatEncoder
from small_doge.processor.finetune_mix import KINDS, FinetuneMix
from small_doge.processor.mixing import parse_ratios
from small_doge.processor.pt_datasets_process import DEFAULT_CACHE, plan_name
from small_doge.processor.quality import QualityOptions, quality_options
from small_doge.processor.report import REPORT_FILE, Report
from small_doge.processor.row_store import read_shards, with_report
from small_doge.processor.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from datasets import DatasetDict
    from transformers import PreTrainedTokenizerBase


def mix_datasets_by_ratio(
    datasets_and_ratios: Sequence[Mapping[str, float]],
    total_sample_size: int | None = None,
    dataset_text_field: str = "text",
    processing_class: PreTrainedTokenizerBase | str | None = None,
    max_length: int = 2048,
    packing: bool = False,
    formatting_func: Callable[[dict[str, Any]], Any] | None = None,
    dataset_num_proc: int = 1,
    seed: int = 233,
    cache_dir: str | os.PathLike[str] | None = None,
    *,
    apply_chat_template: bool = False,
    apply_thinking_template: bool = False,
    kind: str | None = None,
    ratio_by: str | None = None,
    keep_columns: Sequence[str] = (),
    test_share: float = 0.01,
    test_sample_size: int = 1000,
    repeat: bool = False,
    shuffle: bool = True,
    quality: QualityOptions | Mapping[str, Any] | None = None,
    source_options: dict[str, dict[str, Any]] | None = None,
) -> DatasetDict:
    """Read, normalize and mix conversations or preference pairs; on request render and encode the conversations.

    Args:
        datasets_and_ratios: `[{"smoltalk": 0.8}, {"path/to/folder": 0.2}]`: builtin names, local files or folders,
            names of ours and Hub ids. Ratios need not add up to 1.
        total_sample_size: training rows wanted. None or -1 takes as many as the ratios allow.
        dataset_text_field: the column of the answer where rows have a prompt column and none of the usual answers.
        processing_class: the tokenizer, or its folder or name; needed with `apply_chat_template` only.
        max_length: tokens a row; a longer conversation is left out and counted, so that no thought is ever cut.
        packing: with `apply_chat_template`, rows hold several whole conversations, their lengths in `seq_lengths`.
        formatting_func: makes a row of a row (dict to dict), for example with a `conversation` of its own.
        dataset_num_proc: worker threads that render and encode; the result does not depend on it.
        seed, cache_dir, test_sample_size, repeat, shuffle, source_options: as in `pt_datasets_process`.
        quality: as in `pt_datasets_process`; a row is judged by the text of all its messages.
        apply_chat_template: give `input_ids` and `assistant_masks` (1 on what the assistant says, its thought and its
            end of turn) instead of `messages`.
        apply_thinking_template: move thoughts, from `<think>`, `<thinking>` or `<|begin_of_thought|>` tags or from a
            `thinking` or `reasoning` column, into the answer's `reasoning_content`, which the chat template renders.
        kind: "conversation" or "preference"; None decides by the first row of each source. In a mix of both, a
            preference row counts as the conversation with its chosen answer.
        ratio_by: "tokens" (the default with `apply_chat_template`) or "rows"; pairs are always counted by rows.
        keep_columns: columns to keep beside the messages, such as the `answer` that a reward checks; a dictionary is
            kept as JSON text.
        test_share: share of the rows held out, chosen by a hash of their `group`, or of all that comes before the
            first answer: the same question is never on both sides.

    Returns:
        A `DatasetDict` with `train` and `test`: `messages` (and `tools`); or `prompt`, `chosen`, `rejected` (messages,
        the prompt split out); or `input_ids`, `assistant_masks` (and `seq_lengths` when packed). `.report` says what
        was read, kept and left out and why; `save_to_disk` saves it too.

    Raises:
        ValueError: a source, a ratio or an argument cannot be used, with the mend.
    """
    ratio_by = ratio_by or ("tokens" if apply_chat_template else "rows")
    names, ratios = parse_ratios(datasets_and_ratios)
    check_arguments(locals())
    if kind is not None and kind not in KINDS:
        raise ValueError(f"kind is {kind!r}: give 'conversation', 'preference' or None.")
    if not apply_chat_template and (packing or ratio_by == "tokens"):
        raise ValueError("packing and ratio_by='tokens' need tokens: set apply_chat_template=True.")
    if packing and keep_columns:
        raise ValueError("A packed row is of several conversations, so it cannot keep columns: set packing=False.")
    tokenizer = load_tokenizer(processing_class) if apply_chat_template else None
    plan = FinetuneMix(
        names=names,
        ratios=ratios,
        kind=kind,
        encoder=None if tokenizer is None else ChatEncoder(tokenizer),
        max_length=max_length,
        total_rows=None if total_sample_size in (None, -1) else total_sample_size,
        ratio_by=ratio_by,
        packing=packing,
        thinking=apply_thinking_template,
        text_field=dataset_text_field,
        formatting_func=formatting_func,
        keep_columns=tuple(keep_columns),
        test_share=test_share,
        test_rows=test_sample_size,
        repeat=repeat,
        shuffle=shuffle,
        seed=seed,
        workers=dataset_num_proc,
        quality=quality_options(quality),
        source_options=dict(source_options or {}),
    )
    folder = Path(cache_dir or DEFAULT_CACHE).expanduser() / f"ft-{plan_name(plan, tokenizer)}"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / REPORT_FILE).exists():
        plan.run(folder).save(folder)
    parts = {part: read_shards(folder / part) for part in ("train", "test")}
    if not len(parts["test"]):
        parts["test"] = parts["train"].select([])
    return with_report(parts, Report.load(folder), folder)


mix_datasets_by_radio = mix_datasets_by_ratio
