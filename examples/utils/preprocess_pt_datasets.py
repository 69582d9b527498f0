"""Make packed rows of tokens of each downloaded pretraining source.

python ./examples/utils/preprocess_pt_datasets.py --datasets_dir ./datasets --save_dir ./datasets \
    --tokenizer_name_or_path ./tokenizer --train_examples 128000000 --test_examples 1000 --max_length 2048 --num_proc 16
"""

import argparse
import json
from collections.abc import Sequence

from small_doge.processor.steps import PRETRAIN_RATIOS, tokenize_sources
from small_doge.trainer.recipe import run_stage


def main(argv: Sequence[str]) -> None:
    """Read the flags, make the rows, print what became of the input."""
    parser = argparse.ArgumentParser(description="Make packed rows of tokens of each downloaded pretraining source.")
    parser.add_argument("--datasets_dir", default="./datasets", help="where the sources were downloaded to")
    parser.add_argument("--save_dir", default="./datasets", help="NAME_tokenized folders are made here")
    parser.add_argument("--tokenizer_name_or_path", required=True)
    parser.add_argument("--train_examples", type=int, default=128_000_000, help="rows of all sources together")
    parser.add_argument("--test_examples", type=int, default=1000)
    parser.add_argument("--max_length", type=int, default=2048, help="tokens a row")
    parser.add_argument("--num_proc", type=int, default=1)
    parser.add_argument("--ratios", type=json.loads, default=PRETRAIN_RATIOS, help='JSON: {"NAME": RATIO, ...}')
    arguments = parser.parse_args(argv)
    reports = tokenize_sources(
        arguments.ratios,
        arguments.datasets_dir,
        arguments.save_dir,
        arguments.tokenizer_name_or_path,
        train_examples=arguments.train_examples,
        test_examples=arguments.test_examples,
        max_length=arguments.max_length,
        num_proc=arguments.num_proc,
    )
    for name, report in reports.items():
        print(f"{name}: {report.summary()}")


if __name__ == "__main__":
    run_stage(main)
