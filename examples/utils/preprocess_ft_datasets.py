"""Make rows of each downloaded fine-tuning source: conversations rendered and encoded, preference pairs split out.

python ./examples/utils/preprocess_ft_datasets.py --datasets_dir ./datasets --save_dir ./datasets \
    --tokenizer_name_or_path ./tokenizer --num_proc 8
"""

import argparse
from collections.abc import Sequence

from small_doge.processor.steps import FINETUNE_SOURCES, process_chats
from small_doge.trainer.recipe import run_stage


def main(argv: Sequence[str]) -> None:
    """Read the flags, make the rows, print what became of the input."""
    parser = argparse.ArgumentParser(description="Make rows of each downloaded fine-tuning source.")
    parser.add_argument("--datasets_dir", default="./datasets", help="where the sources were downloaded to")
    parser.add_argument("--save_dir", default="./datasets", help="NAME_processed folders are made here")
    parser.add_argument("--tokenizer_name_or_path", required=True)
    parser.add_argument("--max_length", type=int, default=2048, help="longer conversations are left out and counted")
    parser.add_argument("--num_proc", type=int, default=1)
    parser.add_argument("--names", nargs="+", default=list(FINETUNE_SOURCES))
    arguments = parser.parse_args(argv)
    reports = process_chats(
        arguments.names,
        arguments.datasets_dir,
        arguments.save_dir,
        arguments.tokenizer_name_or_path,
        max_length=arguments.max_length,
        num_proc=arguments.num_proc,
    )
    for name, report in reports.items():
        print(f"{name}: {report.summary()}")


if __name__ == "__main__":
    run_stage(main)
