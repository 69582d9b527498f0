"""Text to packed rows on disk: our pipeline beside `datasets.map` with a function that takes one row, as is usual.

    python benchmarks/data_pipeline.py [--source FILE.jsonl.zst] [--workers 2] [--rounds 3] [--out DIR]

Both read the same zstd JSON lines, tokenize with the same tokenizer, pack rows of 2048 and save a data set that
`load_from_disk` reads, with the same number of workers, each run in a process of its own, interleaved, imports not
counted. First it checks that the ids of all documents are those of the saved tokenizer; where they are not, nothing is
timed. Beside them: the BPE library alone (the floor), and reading the rows back by the trainer's loader. On a machine
that others use too, compare tokens a CPU second. Rows go to DIR/data_pipeline_DEVICE_DATE.json; the last line printed
is JSON.
"""

import argparse
import importlib
import itertools
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import accelerate
from rows import RESULTS, Table, save

MAX_LENGTH = 2048
READ_PASSES = 3
BATCH_DOCUMENTS = 100


class Stopwatch:
    """Seconds and processor seconds since it was made or started again."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Leave out what was done so far."""
        self.start, self.before = time.perf_counter(), cpu_seconds()

    def read(self) -> dict[str, float]:
        """What has passed."""
        return {"seconds": time.perf_counter() - self.start, "cpu_seconds": cpu_seconds() - self.before}


def run_ours(source: str, tokenizer: str, out: Path, workers: int, watch: Stopwatch) -> int:
    """Our pipeline, as `small-doge data prepare` runs it; returns the tokens written."""
    from small_doge.processor.prepare import prepare

    recipe = {
        "stage": "pt",
        "output": str(out / "saved"),
        "tokenizer": tokenizer,
        "datasets_and_ratios": [{source: 1.0}],
        "max_length": MAX_LENGTH,
        "dataset_num_proc": workers,
        "test_share": 0,
    }
    return prepare(recipe).figures["train"]["tokens_out"]


def run_map(source: str, tokenizer: str, out: Path, workers: int, watch: Stopwatch) -> int:
    """`datasets.map` one row at a time, then TRL's packing, then `save_to_disk`; returns the tokens written."""
    from datasets import load_dataset
    from transformers import AutoTokenizer
    from trl import pack_dataset

    loaded = AutoTokenizer.from_pretrained(tokenizer)
    rows = load_dataset("json", data_files=source, split="train", cache_dir=str(out / "cache"))

    def tokenize(row: dict) -> dict:
        return {"input_ids": [loaded.bos_token_id, *loaded(row["text"])["input_ids"], loaded.eos_token_id]}

    rows = rows.map(tokenize, remove_columns=rows.column_names, num_proc=workers)
    packed = pack_dataset(rows, MAX_LENGTH, "wrapped", map_kwargs={"num_proc": workers})
    packed.save_to_disk(str(out / "saved"))
    return packed.data.column("input_ids").combine_chunks().value_lengths().sum().as_py()


def run_floor(source: str, tokenizer: str, out: Path, workers: int, watch: Stopwatch) -> int:
    """The BPE library alone on one thread, texts in memory, called as the pipeline does: the floor under it."""
    from small_doge.processor.documents import iter_documents
    from small_doge.processor.encoding import Encoder
    from small_doge.processor.token_stream import DocumentEncoder
    from small_doge.processor.tokenizer import load_tokenizer

    encoder = DocumentEncoder(Encoder(load_tokenizer(tokenizer)))
    texts = [document.text for document in iter_documents(source)]
    batches = [texts[start : start + BATCH_DOCUMENTS] for start in range(0, len(texts), BATCH_DOCUMENTS)]
    watch.restart()
    return sum(len(ids) for batch in batches for ids in encoder(batch))


def run_read(source: str, tokenizer: str, out: Path, workers: int, watch: Stopwatch) -> int:
    """Prepared rows as pretraining reads them: shuffled, in batches of 32 with labels and positions, in one process."""
    from datasets import load_from_disk
    from torch.utils.data import DataLoader

    from small_doge.processor.row_reader import RowReader
    from small_doge.trainer.doge.pt import PackedRows

    reader = RowReader(load_from_disk(source)["train"])
    loader = DataLoader(reader, batch_size=32, shuffle=True, collate_fn=PackedRows(document_masking=True))
    loader = accelerate.Accelerator(cpu=True).prepare_data_loader(loader)
    started = time.perf_counter()
    next(iter(accelerate.skip_first_batches(loader, len(loader) - 1)))
    print(json.dumps({"resume_seconds": time.perf_counter() - started}))
    watch.restart()
    return sum(batch["input_ids"].numel() for _ in range(READ_PASSES) for batch in loader)


RUNS = {"ours": run_ours, "datasets.map": run_map, "bpe alone, 1 thread": run_floor, "read back": run_read}
IMPORTS = ("trl", "transformers.trainer", "small_doge.processor.prepare", "small_doge.trainer.doge.pt")


def child(variant: str, source: str, tokenizer: str, workers: int) -> None:
    """One run, measured; prints a JSON line."""
    out = Path(tempfile.mkdtemp(prefix="data_pipeline_"))
    for module in IMPORTS:
        importlib.import_module(module)
    watch = Stopwatch()
    tokens = RUNS[variant](source, tokenizer, out, workers, watch)
    measured = watch.read()
    shutil.rmtree(out)
    peak = own_peak_kib() + resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print(json.dumps({"tokens": tokens, **measured, "peak_mib": peak / 1024}))


def own_peak_kib() -> int:
    """The most memory this process has held; `getrusage` would give its parent's where that was larger."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


def cpu_seconds() -> float:
    """Processor time of this process and its finished children."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def measure(variant: str, source: str, tokenizer: str, workers: int) -> dict:
    """A run in a process of its own, imports not counted."""
    command = [sys.executable, __file__, "--child", variant, "--source", source, "--tokenizer", tokenizer]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run([*command, "--workers", str(workers)], env=env, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    found: dict = {}
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            found.update(json.loads(line))
    return found


def check_ids(source: str, tokenizer: str) -> int:
    """How many documents there are, all encoded exactly as the saved tokenizer does; else the benchmark stops."""
    from transformers import AutoTokenizer

    from small_doge.processor.documents import iter_documents
    from small_doge.processor.encoding import Encoder
    from small_doge.processor.token_stream import DocumentEncoder

    loaded = AutoTokenizer.from_pretrained(tokenizer)
    encoder = DocumentEncoder(Encoder(loaded))
    documents, checked = iter_documents(source), 0
    while batch := list(itertools.islice(documents, BATCH_DOCUMENTS)):
        texts = [document.text for document in batch]
        for document, wanted, found in zip(batch, loaded(texts).input_ids, encoder(texts), strict=True):
            if found.tolist() != [loaded.bos_token_id, *wanted, loaded.eos_token_id]:
                raise SystemExit(f"{document.origin}: other ids than the saved tokenizer's; nothing is timed")
        checked += len(batch)
    return checked


def cut_source(source: str, folder: Path, most_bytes: int, name: str = "source") -> str:
    """The first documents of a source, as zstd JSON lines."""
    import zstandard

    from small_doge.processor.documents import iter_documents

    lines, size = [], 0
    for document in iter_documents(source):
        lines.append(json.dumps({"text": document.text}, ensure_ascii=False) + "\n")
        size += len(lines[-1].encode())
        if size >= most_bytes:
            break
    path = folder / f"{name}.jsonl.zst"
    path.write_bytes(zstandard.compress("".join(lines).encode()))
    return str(path)


def main() -> None:
    """Check, time, write."""
    data = Path(os.environ.get("SMALL_DOGE_DATA", "."))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", default=str(data / "pretrain" / "wiki_en-00.jsonl.zst"))
    parser.add_argument("--megabytes", type=int, default=60, help="how much of the source to use")
    parser.add_argument("--tokenizer", help="a saved tokenizer; default: one of 32,768 tokens trained on the source")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--larger", type=int, default=4, help="also prepare so many times the text, for its memory")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--child")
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments.source, arguments.tokenizer, arguments.workers)
        return
    folder = Path(tempfile.mkdtemp(prefix="data_pipeline_"))
    source = cut_source(arguments.source, folder, arguments.megabytes * 1_000_000)
    if arguments.tokenizer is None:
        from small_doge.processor.tokenizer_tools import train_tokenizer_on

        arguments.tokenizer = str(folder / "tokenizer")
        train_tokenizer_on([{source: 1.0}], total_bytes=20_000_000).save_pretrained(arguments.tokenizer)
    checked = check_ids(source, arguments.tokenizer)
    prepared = folder / "prepared"
    from small_doge.processor.pt_datasets_process import mix_datasets_by_ratio

    whole = mix_datasets_by_ratio([{source: 1.0}], processing_class=arguments.tokenizer, cache_dir=folder / "cache")
    whole.save_to_disk(str(prepared))
    results: dict[str, list[dict]] = {name: [] for name in RUNS}
    if arguments.larger:
        larger = cut_source(arguments.source, folder, arguments.megabytes * arguments.larger * 1_000_000, "larger")
        variant = f"ours, {arguments.larger} times the text"
        results[variant] = [measure("ours", larger, arguments.tokenizer, arguments.workers)]
        print(variant, results[variant][-1], flush=True)
    for number in range(arguments.rounds):
        for variant in RUNS:
            where = str(prepared) if variant == "read back" else source
            results[variant].append(measure(variant, where, arguments.tokenizer, arguments.workers))
            print(number, variant, results[variant][-1], flush=True)
    shutil.rmtree(folder)
    write(arguments, results, checked)


def write(arguments: argparse.Namespace, results: dict[str, list[dict]], checked: int) -> None:
    """Write the rows of the benchmark and print the last line."""
    device = f"cpu-{platform.machine()}-{os.cpu_count()}cores"
    more = {"workers": arguments.workers, "documents_with_equal_ids": checked}
    table, size = Table("data_pipeline", device, digits="", **more), f"{arguments.megabytes} MB"
    for variant, runs in results.items():
        measured = {
            "tokens/s": [run["tokens"] / run["seconds"] for run in runs],
            "tokens/CPU second": [run["tokens"] / run["cpu_seconds"] for run in runs],
            "peak MiB": [run["peak_mib"] for run in runs],
        }
        if variant == "read back":
            measured["seconds to the last batch, skipping all others"] = [run["resume_seconds"] for run in runs]
        for metric, values in measured.items():
            table.add(variant, size, metric, values)

    def ratio(over: str, under: str, key: str) -> list[float]:
        """Round by round: how many times the tokens a second (or CPU second) of one variant those of another are."""
        pairs = zip(results[over], results[under], strict=True)
        return [(a["tokens"] / a[key]) / (b["tokens"] / b[key]) for a, b in pairs]

    floor = "bpe alone, 1 thread"
    compared = {
        "times datasets.map": ratio("ours", "datasets.map", "seconds"),
        "times datasets.map, by CPU time": ratio("ours", "datasets.map", "cpu_seconds"),
        "share of the CPU time in the BPE": ratio("ours", floor, "cpu_seconds"),
        "share of the time in the BPE, were it spread evenly": [
            share / arguments.workers for share in ratio("ours", floor, "seconds")
        ],
    }
    for metric, values in compared.items():
        table.add("ours", size, metric, values)
    save(table.rows, arguments.out, table.name, device)
    medians = {f"{row['variant']}: {row['metric']}": row["value"] for row in table.rows}
    print(json.dumps(medians))


if __name__ == "__main__":
    main()
