"""Put the tokenized pretraining sources together, shuffled with seed 233, as SAVE_DIR/pretrain.

python ./examples/utils/concatenate_pt_datasets.py --datasets_dir ./datasets --save_dir ./datasets \
    --train_examples 128000000 --test_examples 1000 --num_proc 16
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from small_doge.processor.steps import concatenate
from small_doge.trainer.recipe import run_stage


def main(argv: Sequence[str]) -> None:
    """Read the flags, put the folders together, print the number of rows."""
    parser = argparse.ArgumentParser(description="Put the tokenized pretraining sources together.")
    parser.add_argument("--datasets_dir", default="./datasets", help="where the NAME_tokenized folders are")
    parser.add_argument("--save_dir", default="./datasets", help="the folder `pretrain` is made here")
    parser.add_argument("--train_examples", type=int, default=128_000_000)
    parser.add_argument("--test_examples", type=int, default=1000)
    parser.add_argument("--num_proc", type=int, default=1)
    arguments = parser.parse_args(argv)
    rows = concatenate(
        sorted(Path(arguments.datasets_dir).glob("*_tokenized")),
        Path(arguments.save_dir) / "pretrain",
        train_examples=arguments.train_examples,
        test_examples=arguments.test_examples,
        num_proc=arguments.num_proc,
    )
    print(f"{arguments.save_dir}/pretrain: {rows['train']:,} rows to train on, {rows['test']:,} to test")


if __name__ == "__main__":
    run_stage(main)
