"""Supervised fine-tuning on conversations, and distillation, which is the same on reasoning traces.

accelerate launch --config_file recipes/accelerate_configs/single_gpu.yaml src/small_doge/trainer/doge/sft.py --config
RECIPE.yaml
"""

from __future__ import annotations

from collections.abc import Sequence

from trl import SFTTrainer

from small_doge.processor.ft_datasets_process import mix_datasets_by_ratio
from small_doge.trainer.adapters import adapter_config
from small_doge.trainer.callbacks import TokenCount
from small_doge.trainer.finetuning_arguments import SupervisedArguments
from small_doge.trainer.recipe import load_recipe, run_stage, save_recipe
from small_doge.trainer.setup import (
    check_chat_template,
    check_columns,
    evaluation_rows,
    load_data,
    load_model,
    load_tokenizer,
    without_router_loss,
)
from small_doge.trainer.stage import StageTrainer, attach_callbacks, resume_point, run_to_end


def use_encoded_rows(args: SupervisedArguments, columns: Sequence[str]) -> None:
    """Set TRL's options for rows that are token ids already: they bring their masks, and packed ones their lengths.

    Raises:
        ValueError: the loss is to be on the assistant's tokens, and no column says which these are.
    """
    if "input_ids" not in columns:
        return
    if args.assistant_only_loss and not {"assistant_masks", "labels"} & set(columns):
        raise ValueError(
            "assistant_only_loss is set and the encoded rows have no assistant_masks: prepare them with "
            "`apply_chat_template: true`, or set assistant_only_loss: false."
        )
    # The mask is taken wherever there is one; the option asks TRL to make it from messages.
    args.assistant_only_loss = False
    if "seq_lengths" in columns:
        # Position ids that restart with each conversation keep them apart. TRL would cut rows at max_length otherwise.
        args.padding_free, args.max_length = True, None


class SupervisedTrainer(StageTrainer, SFTTrainer):
    """TRL's SFTTrainer with our optimizer, schedule and checkpoints."""


def main(argv: Sequence[str]) -> None:
    """Run the stage that the recipe describes, and save the finished model to its output_dir."""
    args = load_recipe(SupervisedArguments, argv)
    tokenizer = load_tokenizer(args)
    check_chat_template(tokenizer)
    model = load_model(args, tokenizer)
    without_router_loss(args)
    data = load_data(args, mix_datasets_by_ratio, tokenizer, max_length=args.max_length)
    check_columns(data["train"], ["messages"], ["prompt", "completion"], ["input_ids"], [args.dataset_text_field])
    resume = resume_point(args)
    save_recipe(args)
    length = args.max_length or 1024
    use_encoded_rows(args, data["train"].column_names)

    trainer = SupervisedTrainer(
        model=model,
        args=args,
        train_dataset=data["train"],
        eval_dataset=evaluation_rows(args, data),
        processing_class=tokenizer,
        peft_config=adapter_config(args),
    )
    attach_callbacks(trainer, args.stage or "sft", length)
    trainer.add_callback(TokenCount(trainer))
    run_to_end(trainer, tokenizer, resume)


if __name__ == "__main__":
    run_stage(main)
