"""Pretraining: next-token prediction over packed rows.

accelerate launch --config_file recipes/accelerate_configs/single_gpu.yaml src/small_doge/trainer/doge/pt.py --config
RECIPE.yaml
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import Trainer

from small_doge.processor.pt_datasets_process import mix_datasets_by_ratio
from small_doge.trainer.arguments import PretrainingArguments
from small_doge.trainer.continuation import prepare
from small_doge.trainer.recipe import load_recipe, run_stage, save_recipe
from small_doge.trainer.setup import (
    check_token_ids,
    compile_layers,
    evaluation_rows,
    load_data,
    load_model,
    load_tokenizer,
    zero_init_outputs,
)
from small_doge.trainer.stage import StageTrainer, attach_callbacks, resume_point, run_to_end


class PackedRows:
    """Collates packed rows of one length into a batch; documents are hidden from one another on request.

    Args:
        document_masking: Give position ids that restart with each document, which Doge reads as "do not look back
            further".
    """

    def __init__(self, document_masking: bool) -> None:
        self.document_masking = document_masking

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        input_ids = torch.tensor([row["input_ids"] for row in rows])
        batch = {"input_ids": input_ids, "labels": input_ids}
        if self.document_masking:
            positions = [torch.cat([torch.arange(n) for n in row["seq_lengths"]]) for row in rows]
            batch["position_ids"] = torch.stack(positions)
            # A document's first token follows nothing that its query sees.
            batch["labels"] = input_ids.masked_fill(batch["position_ids"] == 0, -100)
        return batch


class PretrainingTrainer(StageTrainer, Trainer):
    """transformers' Trainer with our optimizer, schedule and checkpoints."""


def main(argv: Sequence[str]) -> None:
    """Run the stage that the recipe describes, and save the finished model to its output_dir."""
    args = load_recipe(PretrainingArguments, argv)
    args.remove_unused_columns = False
    args.include_num_input_tokens_seen = "all"
    point = prepare(args)
    tokenizer = load_tokenizer(args)
    model = load_model(args, tokenizer)
    if args.zero_init_outputs and args.model_name_or_path is None:
        zero_init_outputs(model)
    data = load_data(args, mix_datasets_by_ratio, tokenizer, max_length=args.max_length, packing=True)
    check_token_ids(data["train"], model.config.vocab_size, args.dataset or "the mixed data")
    resume = resume_point(args)
    if args.compile_layers:
        compile_layers(model)
    save_recipe(args)

    trainer = PretrainingTrainer(
        model=model,
        args=args,
        data_collator=PackedRows(args.document_masking),
        train_dataset=data["train"],
        eval_dataset=evaluation_rows(args, data),
        processing_class=tokenizer,
    )
    trainer.continued = point
    length = len(data["train"][0]["input_ids"])
    attach_callbacks(trainer, args.stage or "pretrain", length)
    run_to_end(trainer, tokenizer, resume, length)


if __name__ == "__main__":
    run_stage(main)
