"""Pretraining data in one call: named sources mixed by ratio, tokenized and packed into rows."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from small_doge.processor.arguments import check_arguments
from small_doge.processor.encoding import Encoder
from small_doge.processor.fingerprint import fingerprint
from small_doge.processor.mixing import parse_ratios
from small_doge.processor.pretrain_mix import PretrainMix
from small_doge.processor.quality import QualityOptions, quality_options
from small_doge.processor.report import REPORT_FILE, Report
from small_doge.processor.row_store import read_shards, with_report
from small_doge.processor.token_stream import DocumentEncoder
from small_doge.processor.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict
    from transformers import PreTrainedTokenizerBase

    from small_doge.processor.finetune_mix import FinetuneMix

FEATURES = {"input_ids": "int32", "seq_lengths": "int32"}
DEFAULT_CACHE = "~/.cache/small_doge/data"


def mix_datasets_by_ratio(
    datasets_and_ratios: Sequence[Mapping[str, float]],
    total_sample_size: int | None = None,
    dataset_text_field: str = "text",
    processing_class: PreTrainedTokenizerBase | str | None = None,
    max_length: int = 2048,
    packing: bool = True,
    formatting_func: Callable[[dict[str, Any]], Any] | None = None,
    dataset_num_proc: int = 1,
    seed: int = 233,
    cache_dir: str | os.PathLike[str] | None = None,
    *,
    ratio_by: str = "tokens",
    test_share: float = 0.01,
    test_sample_size: int = 1000,
    repeat: bool = False,
    shuffle: bool = True,
    quality: QualityOptions | Mapping[str, Any] | None = None,
    source_options: dict[str, dict[str, Any]] | None = None,
) -> DatasetDict:
    """Read, tokenize, mix and pack pretraining sources; only what is used is tokenized.

    Args:
        datasets_and_ratios: `[{"builtin:python-docs": 0.7}, {"path/to/folder": 0.3}]`: builtin names, local files or
            folders, names of ours and Hub ids. Ratios are shares of the training tokens and need not add up to 1.
        total_sample_size: training rows wanted. None or -1 takes as many as the ratios allow.
        dataset_text_field: the column that holds the text.
        processing_class: the tokenizer, or the folder or name it is loaded from.
        max_length: tokens a row.
        packing: rows hold several documents, their lengths in `seq_lengths`; else one document (or part of it) each.
        formatting_func: makes the text (a string, or a dict with `dataset_text_field`) of a row (a dict).
        dataset_num_proc: worker threads; the result does not depend on it.
        seed: of the order of documents and rows.
        cache_dir: where finished and interrupted mixes are kept (default ~/.cache/small_doge/data). The same call
            finds its result there; an interrupted one goes on.
        ratio_by: "tokens", or "rows" to make the ratios shares of documents.
        test_share: share of the documents held out, chosen by a hash of their `group` or text, hence always the same.
        test_sample_size: the most rows the test part may have, in the same ratios; further ones are left out.
        repeat: a source that runs out starts again; otherwise the mix ends there and the report says so.
        shuffle: documents are shuffled within blocks.
        quality: filters and deduplication (`QualityOptions` or its fields as a dict), applied to each source by itself.
        source_options: for a source, further arguments of `open_source` (such as `split`) or of the builtin.

    Returns:
        A `DatasetDict` with `train` and `test`, columns `input_ids` and `seq_lengths`. Every document is one BOS, its
        text and EOS. `.report` says what was read, kept and left out and why; `save_to_disk` saves it too.

    Raises:
        ValueError: a source, a ratio or an argument cannot be used, with the mend.
    """
    plan, name = pretrain_plan(locals())
    folder = Path(cache_dir or DEFAULT_CACHE).expanduser() / name
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / REPORT_FILE).exists():
        plan.run(folder).save(folder)
    return with_report(read_parts(folder), Report.load(folder), folder)


def read_parts(folder: Path) -> dict[str, Dataset]:
    """The `train` and `test` rows that a plan wrote into `folder`."""
    return {part: read_shards(folder / part, FEATURES) for part in ("train", "test")}


mix_datasets_by_radio = mix_datasets_by_ratio


def pretrain_plan(arguments: Mapping[str, Any]) -> tuple[PretrainMix, str]:
    """The plan that the arguments of `mix_datasets_by_ratio` describe, all of them given, and its name.

    Raises:
        ValueError: a ratio or an argument cannot be used, with the mend.
    """
    names, ratios = parse_ratios(arguments["datasets_and_ratios"])
    check_arguments(arguments)
    size = arguments["total_sample_size"]
    tokenizer = load_tokenizer(arguments["processing_class"])
    plan = PretrainMix(
        names=names,
        ratios=ratios,
        encoder=DocumentEncoder(Encoder(tokenizer)),
        max_length=arguments["max_length"],
        total_rows=None if size in (None, -1) else size,
        ratio_by=arguments["ratio_by"],
        packing=arguments["packing"],
        text_field=arguments["dataset_text_field"],
        formatting_func=arguments["formatting_func"],
        test_share=arguments["test_share"],
        test_rows=arguments["test_sample_size"],
        repeat=arguments["repeat"],
        shuffle=arguments["shuffle"],
        seed=arguments["seed"],
        quality=quality_options(arguments["quality"]),
        workers=arguments["dataset_num_proc"],
        source_options=dict(arguments["source_options"] or {}),
    )
    return plan, f"pt-{plan_name(plan, tokenizer)}"


def plan_name(plan: PretrainMix | FinetuneMix, tokenizer: PreTrainedTokenizerBase | None) -> str:
    """The name under which a plan's result is kept; the number of workers does not enter."""
    skip = {"encoder", "formatting_func", "workers", "progress", "read"}
    arguments = {item.name: getattr(plan, item.name) for item in fields(plan) if item.name not in skip}
    return fingerprint([*plan.names, *plan.quality.decontaminate], tokenizer, plan.formatting_func, arguments)
