"""Train a tokenizer that cuts text as an existing byte-level one does, on the pretraining mix.

python ./examples/utils/train_tokenizer_from_old.py --tokenizer_name_or_path OLD --datasets_dir ./datasets \
    --save_dir ./tokenizer --vocab_size 32768
"""

import argparse
import json
from collections.abc import Sequence

from small_doge.processor.steps import PRETRAIN_RATIOS, source_folder
from small_doge.processor.tokenizer_tools import train_tokenizer_on
from small_doge.trainer.recipe import run_stage


def main(argv: Sequence[str]) -> None:
    """Read the flags, train, save."""
    parser = argparse.ArgumentParser(description="Train a tokenizer from an existing one.")
    parser.add_argument("--tokenizer_name_or_path", help="without it the released tokenizer's pattern is used")
    parser.add_argument("--datasets_dir", default="./datasets", help="where the sources were downloaded to")
    parser.add_argument("--save_dir", default="./tokenizer")
    parser.add_argument("--vocab_size", type=int, default=32_768)
    parser.add_argument("--total_bytes", type=int, help="bytes of text to learn from; default all the ratios allow")
    parser.add_argument("--ratios", type=json.loads, default=PRETRAIN_RATIOS, help='JSON: {"NAME": RATIO, ...}')
    arguments = parser.parse_args(argv)
    tokenizer = train_tokenizer_on(
        [{str(source_folder(arguments.datasets_dir, name)): ratio} for name, ratio in arguments.ratios.items()],
        arguments.vocab_size,
        total_bytes=arguments.total_bytes,
        from_tokenizer=arguments.tokenizer_name_or_path,
        show_progress=True,
    )
    tokenizer.save_pretrained(arguments.save_dir)
    print(f"{len(tokenizer):,} tokens in {arguments.save_dir}")


if __name__ == "__main__":
    run_stage(main)
