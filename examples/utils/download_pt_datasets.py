"""Download the pretraining sources.

python ./examples/utils/download_pt_datasets.py --save_dir ./datasets --cache_dir ./cache --num_proc 1 \
    --is_parallel False
"""

import argparse
import logging
import os

from small_doge.processor.steps import PRETRAIN_RATIOS, download


def yes_or_no(text: str) -> bool:
    """`True` and `False` as a person types them; argparse's own `bool` takes every text for true."""
    if text.lower() in ("true", "yes", "1"):
        return True
    if text.lower() in ("false", "no", "0"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")


def parser(description: str, names: list[str]) -> argparse.ArgumentParser:
    """The flags of the two download scripts."""
    result = argparse.ArgumentParser(description=description)
    result.add_argument("--save_dir", default="./datasets", help="one folder a source is made here")
    result.add_argument("--cache_dir", default="./cache", help="cache of the Hub's client")
    result.add_argument("--num_proc", type=int, default=1, help="sources fetched at once, with --is_parallel True")
    result.add_argument("--is_parallel", type=yes_or_no, default=False, help="True or False")
    result.add_argument("--names", nargs="+", default=names, help="names, paths or Hub ids")
    result.add_argument("--max_rows", type=int, help="the most rows to take of each; default all")
    return result


def main(arguments: argparse.Namespace) -> None:
    """Download, and print the number of rows of each source."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    os.environ.setdefault("HF_HOME", arguments.cache_dir)
    workers = arguments.num_proc if arguments.is_parallel else 1
    counts = download(arguments.names, arguments.save_dir, max_rows=arguments.max_rows, workers=workers)
    for name, rows in counts.items():
        print(f"{name}: {rows:,} rows in {arguments.save_dir}")


if __name__ == "__main__":
    main(parser("Download the pretraining sources.", list(PRETRAIN_RATIOS)).parse_args())
