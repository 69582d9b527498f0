"""The training guide's three steps on disk: download named sources, make rows of each, put them together."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from small_doge.processor import ft_datasets_process, pt_datasets_process
from small_doge.processor.mixing import parse_ratios
from small_doge.processor.report import Report
from small_doge.processor.row_store import shard_counts
from small_doge.processor.sources import open_source
from small_doge.processor.sources.catalog import catalog

logger = logging.getLogger(__name__)

PRETRAIN_RATIOS = {"fineweb-edu-dedup": 0.7, "cosmopedia-v2": 0.2, "python-edu": 0.05, "finemath": 0.05}
FINETUNE_SOURCES = (
    "smoltalk",
    "ultrafeedback_binarized",
    "Bespoke-Stratos-17k",
    "NuminaMath-TIR",
    "OpenThoughts-114k",
    "OpenR1-Math-220k",
)
ROWS_A_FILE = 100_000
TOKENIZED = "{}_tokenized"
PROCESSED = "{}_processed"


def download(
    names: Sequence[str], save_dir: str | Path, *, max_rows: int | None = None, workers: int = 1
) -> dict[str, int]:
    """Save the rows of sources as `save_dir/NAME/part-00000.jsonl.zst`, ...; finished ones are not fetched again.

    Returns the number of rows of each source. `workers` sources are fetched at once.

    Raises:
        ValueError: two names would share a folder, or a source cannot be read.
    """
    folders = [Path(save_dir) / Path(name).name for name in names]
    if len(set(folders)) < len(folders):
        raise ValueError(
            f"Two of {', '.join(names)} would be saved under one name: download them to different folders."
        )
    with ThreadPoolExecutor(workers) as pool:
        counts = list(pool.map(_download_one, names, folders, itertools.repeat(max_rows)))
    return dict(zip(names, counts, strict=True))


def _download_one(name: str, folder: Path, max_rows: int | None) -> int:
    import zstandard

    # No suffix: the folder is read back as a source, and this is no data.
    done = folder / "COMPLETE"
    if done.exists():
        return int(done.read_text())
    folder.mkdir(parents=True, exist_ok=True)
    report = Report()
    rows = itertools.islice(open_source(name, report), max_rows)
    total = 0
    for number in itertools.count():
        part = list(itertools.islice(rows, ROWS_A_FILE))
        if not part and number:
            break
        lines = "".join(json.dumps(row.fields, ensure_ascii=False, default=str) + "\n" for row in part)
        path = folder / f"part-{number:05d}.jsonl.zst"
        partial = path.with_suffix(".partial")
        partial.write_bytes(zstandard.compress(lines.encode("utf-8", "surrogatepass")))
        partial.replace(path)
        total += len(part)
        logger.info("%s: %d rows", name, total)
    for line in report.notes:
        logger.info("%s", line)
    for reason, places in report.examples.items():
        logger.warning("%s: %d rows left out: %s, first at %s", name, report.dropped[name][reason], reason, places[0])
    done.write_text(str(total))
    return total


def tokenize_sources(
    ratios: Mapping[str, float],
    datasets_dir: str | Path,
    save_dir: str | Path,
    processing_class: Any,
    *,
    train_examples: int,
    test_examples: int,
    max_length: int = 2048,
    num_proc: int = 1,
    **options: Any,
) -> dict[str, Report]:
    """Make packed rows of each source under `datasets_dir`: its share of the examples, in `save_dir/NAME_tokenized`."""
    names, shares = parse_ratios([ratios])
    reports = {}
    for name, share in zip(names, shares, strict=True):
        mixed = pt_datasets_process.mix_datasets_by_ratio(
            [{str(source_folder(datasets_dir, name)): 1.0}],
            max(1, round(train_examples * share)),
            processing_class=processing_class,
            max_length=max_length,
            dataset_num_proc=num_proc,
            test_sample_size=max(1, round(test_examples * share)),
            cache_dir=Path(save_dir) / ".partial",
            **options,
        )
        mixed.save_to_disk(str(Path(save_dir) / TOKENIZED.format(name)))
        reports[name] = mixed.report
    return reports


def process_chats(
    names: Sequence[str],
    datasets_dir: str | Path,
    save_dir: str | Path,
    processing_class: Any,
    *,
    max_length: int = 2048,
    num_proc: int = 1,
    **options: Any,
) -> dict[str, Report]:
    """Make rows of each fine-tuning source under `datasets_dir`, in `save_dir/NAME_processed`.

    Conversations are rendered and encoded, thoughts whole; preference rows stay prompt, chosen and rejected.
    """
    reports = {}
    for name in names:
        spec = catalog().get(name.lower())
        kind = spec.kind if spec is not None else None
        mixed = ft_datasets_process.mix_datasets_by_ratio(
            [{str(source_folder(datasets_dir, name)): 1.0}],
            processing_class=processing_class,
            max_length=max_length,
            dataset_num_proc=num_proc,
            apply_chat_template=kind != "preference",
            apply_thinking_template=True,
            kind=kind,
            cache_dir=Path(save_dir) / ".partial",
            **options,
        )
        mixed.save_to_disk(str(Path(save_dir) / PROCESSED.format(name)))
        reports[name] = mixed.report
    return reports


def concatenate(
    folders: Sequence[str | Path],
    save_dir: str | Path,
    *,
    train_examples: int | None = None,
    test_examples: int | None = None,
    seed: int = 233,
    num_proc: int | None = None,
) -> dict[str, int]:
    """Put saved data sets of the same columns together, shuffled; returns the rows of each part.

    Raises:
        ValueError: a folder is missing, or the columns differ.
    """
    from datasets import DatasetDict, concatenate_datasets, load_from_disk

    missing = [str(folder) for folder in folders if not (Path(folder) / "dataset_dict.json").exists()]
    if missing or not folders:
        raise ValueError(
            f"No prepared data set in {', '.join(missing) or 'an empty list'}: run the preprocessing first."
        )
    sets = [load_from_disk(str(folder)) for folder in folders]
    columns = {tuple(sorted(item["train"].column_names)) for item in sets}
    if len(columns) > 1:
        raise ValueError(f"The data sets have different columns ({columns}): put together those of one kind.")
    joined = DatasetDict()
    for part, most in (("train", train_examples), ("test", test_examples)):
        whole = concatenate_datasets([item[part] for item in sets if len(item[part])] or [sets[0][part]])
        whole = whole.shuffle(seed=seed)
        joined[part] = whole if most is None else whole.select(range(min(most, len(whole))))
    processes = num_proc if num_proc and num_proc > 1 else None
    joined.save_to_disk(str(save_dir), num_shards=shard_counts(joined), num_proc=processes)
    return {part: len(rows) for part, rows in joined.items()}


def source_folder(datasets_dir: str | Path, name: str) -> Path:
    """The folder of a downloaded source.

    Raises:
        ValueError: it is not there.
    """
    folder = Path(datasets_dir) / name
    if not folder.exists():
        raise ValueError(f"There is no {folder}: download it, or put .jsonl or .parquet files of yours there.")
    return folder
