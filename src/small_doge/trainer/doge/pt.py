"""Pretraining: next-token prediction over packed rows.

accelerate launch --config_file recipes/accelerate_configs/single_gpu.yaml src/small_doge/trainer/doge/pt.py --config
RECIPE.yaml
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import Trainer
from transformers.integrations import is_deepspeed_zero3_enabled

from small_doge.processor.pt_datasets_process import mix_datasets_by_ratio
from small_doge.processor.row_reader import RowBatch, RowReader
from small_doge.trainer.arguments import PretrainingArguments
from small_doge.trainer.continuation import prepare_continuation
from small_doge.trainer.micro_batch import choose_micro_batch
from small_doge.trainer.recipe import load_recipe, run_stage, save_recipe
from small_doge.trainer.setup import (
    bytes_per_token,
    check_token_ids,
    evaluation_rows,
    load_data,
    load_model,
    load_tokenizer,
    zero_init_outputs,
)
from small_doge.trainer.stage import StageTrainer, attach_callbacks, resume_point, run_to_end
from small_doge.trainer.step_graph import GraphedSteps


class PackedRows:
    """Collates a `RowBatch` of packed rows; documents are hidden from one another on request.

    Args:
        document_masking: Give position ids that restart with each document, which Doge reads as "do not look back
            further".
    """

    def __init__(self, document_masking: bool) -> None:
        self.document_masking = document_masking

    def __call__(self, rows: RowBatch) -> dict[str, torch.Tensor]:
        input_ids = torch.from_numpy(rows.columns["input_ids"])
        labels = input_ids.masked_fill(torch.from_numpy(rows.padding()), -100)
        if not self.document_masking:
            return {"input_ids": input_ids, "labels": labels}
        position_ids = torch.from_numpy(rows.position_ids())
        # A document's first token follows nothing that its query sees.
        labels = labels.masked_fill(position_ids == 0, -100)
        return {"input_ids": input_ids, "labels": labels, "position_ids": position_ids}


class PretrainingTrainer(StageTrainer, GraphedSteps, Trainer):
    """transformers' Trainer with our optimizer, schedule and checkpoints, and the head fused with its loss."""

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        # Counted here, from shapes: transformers' own count waits for the device after every micro-batch.
        self.state.num_input_tokens_seen += inputs["input_ids"].numel() * self.args.world_size
        return super().training_step(model, inputs, *args, **kwargs)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        # ZeRO-3 gathers a weight only while its module runs, and the fused head takes the weight alone.
        loss_only = not is_deepspeed_zero3_enabled()
        return super().compute_loss(model, {**inputs, "loss_only": loss_only}, *args, **kwargs)


def main(argv: Sequence[str]) -> None:
    """Run the stage that the recipe describes, and save the finished model to its output_dir."""
    args = load_recipe(PretrainingArguments, argv)
    args.remove_unused_columns = False
    point = prepare_continuation(args)
    tokenizer = load_tokenizer(args)
    model = load_model(args, tokenizer)
    if args.zero_init_outputs and args.model_name_or_path is None:
        zero_init_outputs(model)
    data = load_data(args, mix_datasets_by_ratio, tokenizer, max_length=args.max_length, packing=True)
    check_token_ids(data["train"], model.config.vocab_size, args.dataset or "the mixed data")
    length = len(data["train"][0]["input_ids"])
    choose_micro_batch(args, model.config, length)
    resume = resume_point(args)
    save_recipe(args)

    held_out = evaluation_rows(args, data)
    trainer = PretrainingTrainer(
        model=model,
        args=args,
        data_collator=PackedRows(args.document_masking),  # type: ignore[arg-type]  # The reader gives no list.
        train_dataset=RowReader(data["train"]),
        eval_dataset=None if held_out is None else RowReader(held_out),
        processing_class=tokenizer,
    )
    trainer.continued = point
    held_out_bytes = bytes_per_token(held_out, tokenizer)
    attach_callbacks(trainer, args.stage or "pretrain", length, held_out_bytes)
    run_to_end(trainer, tokenizer, resume, length)


if __name__ == "__main__":
    run_stage(main)
