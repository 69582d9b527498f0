"""Download the pretraining sources.

python ./examples/utils/download_pt_datasets.py --save_dir ./datasets --cache_dir ./cache --num_proc 1 \
    --is_parallel False
"""

import argparse
import logging
import os


def yes_or_no(text: str) -> bool:
    """`True` and `False` as a person types them; argparse's own `bool` takes every text for true."""
    if text.lower() in ("true", "yes", "1"):
        return True
    if text.lower() in ("false", "no", "0"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")


def main(kind: str = "pretraining") -> None:
    """Read the flags, download, and print the number of rows of each source."""
    parser = argparse.ArgumentParser(description=f"Download the {kind} sources.")
    parser.add_argument("--save_dir", default="./datasets", help="one folder a source is made here")
    parser.add_argument("--cache_dir", default="./cache", help="cache of the Hub's client")
    parser.add_argument("--num_proc", type=int, default=1, help="sources fetched at once, with --is_parallel True")
    parser.add_argument("--is_parallel", type=yes_or_no, default=False, help="True or False")
    parser.add_argument("--names", nargs="+", help="names, paths or Hub ids; default those of the guide")
    parser.add_argument("--max_rows", type=int, help="the most rows to take of each; default all")
    arguments = parser.parse_args()
    # The Hub's client reads it when it is imported, which the next lines do.
    os.environ.setdefault("HF_HOME", arguments.cache_dir)
    from small_doge.processor.steps import FINETUNE_SOURCES, PRETRAIN_RATIOS, download
    from small_doge.trainer.recipe import run_stage

    names = arguments.names or list(PRETRAIN_RATIOS if kind == "pretraining" else FINETUNE_SOURCES)
    workers = arguments.num_proc if arguments.is_parallel else 1

    def fetch(_: list[str]) -> None:
        counts = download(names, arguments.save_dir, max_rows=arguments.max_rows, workers=workers)
        for name, rows in counts.items():
            print(f"{name}: {rows:,} rows in {arguments.save_dir}")

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    run_stage(fetch)


if __name__ == "__main__":
    main()
