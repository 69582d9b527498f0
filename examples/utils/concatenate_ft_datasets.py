"""Put the processed fine-tuning sources together: conversations as SAVE_DIR/finetune, pairs as SAVE_DIR/preference.

python ./examples/utils/concatenate_ft_datasets.py --datasets_dir ./datasets --save_dir ./datasets --num_proc 16
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from datasets import load_from_disk

from small_doge.processor.steps import concatenate
from small_doge.trainer.recipe import run_stage


def main(argv: Sequence[str]) -> None:
    """Read the flags, put the folders of each kind together, print the number of rows."""
    parser = argparse.ArgumentParser(description="Put the processed fine-tuning sources together.")
    parser.add_argument("--datasets_dir", default="./datasets", help="where the NAME_processed folders are")
    parser.add_argument("--save_dir", default="./datasets", help="`finetune` and `preference` are made here")
    parser.add_argument("--num_proc", type=int, default=1)
    arguments = parser.parse_args(argv)
    kinds: dict[str, list[Path]] = {}
    for folder in sorted(Path(arguments.datasets_dir).glob("*_processed")):
        columns = load_from_disk(str(folder))["train"].column_names
        kinds.setdefault("preference" if "chosen" in columns else "finetune", []).append(folder)
    if not kinds:
        raise ValueError(f"No NAME_processed folder in {arguments.datasets_dir}: run preprocess_ft_datasets.py first.")
    for kind, folders in kinds.items():
        rows = concatenate(folders, Path(arguments.save_dir) / kind, num_proc=arguments.num_proc)
        print(f"{arguments.save_dir}/{kind}: {rows['train']:,} rows to train on, {rows['test']:,} to test")


if __name__ == "__main__":
    run_stage(main)
