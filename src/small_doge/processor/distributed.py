"""A pretraining recipe on many processes or machines: a datatrove pipeline on its local, Slurm or Ray executor.

Two steps. The first has as many tasks as asked for; each encodes its share of the input files, and a file that is done
is not encoded again. The second is one task that mixes and packs what the first wrote. The data set is the same, byte
for byte, as `prepare` makes on one machine.
"""

from __future__ import annotations

import inspect
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor
from datatrove.pipeline.base import PipelineStep

from small_doge.processor import pt_datasets_process
from small_doge.processor.encoded_documents import DocumentFile, EncodedDocument, Recorder, read_encoded
from small_doge.processor.prepare import checked_settings
from small_doge.processor.pretrain_mix import PretrainMix
from small_doge.processor.quality.duplicates import ExactDuplicates
from small_doge.processor.readers import Row, list_files, read_file_rows
from small_doge.processor.report import Report
from small_doge.processor.row_store import check_output, publish
from small_doge.processor.sources import is_file_source, local_copy, open_source
from small_doge.processor.sources.catalog import catalog

EXECUTORS = ("local", "slurm", "ray")
WORK_FOLDER = ".partial"


class EncodeFiles(PipelineStep):
    """The first step: task `rank` of `world_size` encodes the files number `rank`, `rank + world_size`, ..."""

    type = "Tokenizer"
    name = "SmallDoge encoding"

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        self.settings = settings

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Encode this task's files; yields nothing, since the next step reads them from disk."""
        plan, _ = _plan(self.settings)
        for number, (name, file) in enumerate(input_files(plan)):
            path = encoded_path(self.settings, number)
            if number % world_size != rank or path.exists():
                continue
            report = Recorder()
            writer = DocumentFile(name, plan.encoder, plan.quality, plan.text_field)
            with self.track_time():
                writer.write(_rows(plan, name, file, report), report, path)
            self.stat_update("tokens", value=writer.tokens)
        yield from ()


class MixEncoded(PipelineStep):
    """The second step, one task: mix, pack and publish what the first wrote."""

    type = "Writer"
    name = "SmallDoge mixing and packing"

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        self.settings = settings

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Make the data set; yields nothing."""
        plan, name = _plan(self.settings)
        files: dict[str, list[Path]] = {}
        for number, (source, _) in enumerate(input_files(plan)):
            files.setdefault(source, []).append(encoded_path(self.settings, number))

        def read(source: str, report: Report) -> Iterator[EncodedDocument]:
            duplicates = ExactDuplicates() if plan.quality.exact_duplicates else None
            for path in files[source]:
                yield from read_encoded(path, source, report, duplicates)

        plan.read = read
        output = Path(self.settings["output"])
        cache = output / WORK_FOLDER / name
        cache.mkdir(parents=True, exist_ok=True)
        with self.track_time():
            report = plan.run(cache)
        publish(pt_datasets_process.read_parts(cache), report, cache, output)
        shutil.rmtree(output / WORK_FOLDER)
        yield from ()


def prepare_distributed(
    recipe: str | Path | Mapping[str, Any],
    executor: str = "local",
    tasks: int = 1,
    workers: int = -1,
    overrides: Mapping[str, Any] | None = None,
    **executor_options: Any,
) -> Path:
    """Run a pretraining recipe as a datatrove pipeline; returns the folder of the data set.

    With "local" and "ray" the data set is there on return; with "slurm" the jobs are submitted, the second waiting for
    the first. A call after a failure goes on with the files that are missing. datatrove's logs are in OUTPUT.logs.

    Args:
        recipe, overrides: as for `prepare`, with `stage: pt`; paths are on a file system that all machines share.
        executor: "local", "slurm" or "ray" (a cluster that `ray.init` has joined).
        tasks: parts of the first step; more than there are files does not help.
        workers: tasks that run at once; -1 for all.
        executor_options: further arguments of datatrove's executor, such as `partition` and `time` for Slurm.

    Raises:
        ValueError: the recipe or the executor cannot be used, with the mend.
    """
    if executor not in EXECUTORS:
        raise ValueError(f"There is no executor {executor!r}: give one of {', '.join(EXECUTORS)}.")
    settings = checked_settings(recipe, overrides)
    if settings["stage"] != "pt":
        raise ValueError("Only pretraining recipes (stage: pt) run on many machines: use `prepare` for this one.")
    settings["output"] = os.path.abspath(settings["output"])
    check_output(Path(settings["output"]))
    plan, _ = _plan(settings)
    if plan.quality.near_duplicates:
        raise ValueError(
            "near_duplicates compares all texts with one another: run datatrove's MinHash blocks before, "
            "or `prepare` on one machine."
        )
    logs = Path(settings["output"] + ".logs")
    build: Any = {"local": LocalPipelineExecutor, "slurm": SlurmPipelineExecutor, "ray": RayPipelineExecutor}[executor]
    if executor == "slurm":
        executor_options.setdefault("job_name", "small-doge-data")
    encode = build(
        [EncodeFiles(settings)], tasks=tasks, workers=workers, logging_dir=str(logs / "encode"), **executor_options
    )
    after = {"depends": encode} if executor == "slurm" else {}
    mixing = build(
        [MixEncoded(settings)], tasks=1, workers=1, logging_dir=str(logs / "mix"), **executor_options, **after
    )
    if executor != "slurm":
        encode.run()
    mixing.run()
    return Path(settings["output"])


def input_files(plan: PretrainMix) -> list[tuple[str, Path | None]]:
    """Every input file with its source, in the order of reading; a source that is no files is one entry."""
    found: list[tuple[str, Path | None]] = []
    for name in plan.names:
        spec = catalog().get(name.lower())
        local = local_copy(spec) if spec is not None else None
        place = local if local is not None else name
        files = list_files(place) if is_file_source(place) else [None]
        found += [(name, file) for file in files]
    return found


def encoded_path(settings: Mapping[str, Any], number: int) -> Path:
    """Where the documents of an input file are kept between the two steps."""
    return Path(settings["output"]) / WORK_FOLDER / "encoded" / f"{number:06d}.arrow"


def _rows(plan: PretrainMix, name: str, file: Path | None, report: Report) -> Iterator[Row]:
    options = plan.source_options.get(name, {})
    if file is None:
        return open_source(name, report, **options)
    return read_file_rows(file, report, name, options.get("on_truncated", "refuse"))


def _plan(settings: Mapping[str, Any]) -> tuple[PretrainMix, str]:
    arguments = {key: value for key, value in settings.items() if key not in ("stage", "output", "tokenizer")}
    bound = inspect.signature(pt_datasets_process.mix_datasets_by_ratio).bind(
        **arguments, processing_class=settings.get("tokenizer")
    )
    bound.apply_defaults()
    return pt_datasets_process.pretrain_plan(bound.arguments)
