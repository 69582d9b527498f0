"""Direct preference optimization (arXiv 2305.18290) on pairs of a chosen and a rejected answer.

accelerate launch --config_file recipes/accelerate_configs/single_gpu.yaml src/small_doge/trainer/doge/dpo.py --config
RECIPE.yaml
"""

from __future__ import annotations

from collections.abc import Sequence

from accelerate.utils import parse_flag_from_env
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import DPOTrainer

from small_doge.processor.ft_datasets_process import mix_datasets_by_ratio
from small_doge.trainer.adapters import adapter_config
from small_doge.trainer.callbacks import TokenCount
from small_doge.trainer.finetuning_arguments import PreferenceArguments
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


class PreferenceTrainer(StageTrainer, DPOTrainer):
    """TRL's DPOTrainer with our optimizer, schedule and checkpoints."""


def reference_model(args: PreferenceArguments, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel | None:
    """The model to prefer in comparison to; None where it is the policy itself, before training or without adapters.

    TRL would look its class up by name in transformers, which has a Doge of its own.
    """
    sharded = bool(args.fsdp) or parse_flag_from_env("ACCELERATE_USE_FSDP")
    if args.use_peft or (args.precompute_ref_log_probs and not sharded):
        return None
    return load_model(args, tokenizer)


def main(argv: Sequence[str]) -> None:
    """Run the stage that the recipe describes, and save the finished model to its output_dir."""
    args = load_recipe(PreferenceArguments, argv)
    if args.model_name_or_path is None:
        raise ValueError("no model_name_or_path: preference optimization starts from a fine-tuned checkpoint.")
    tokenizer = load_tokenizer(args)
    check_chat_template(tokenizer)
    model = load_model(args, tokenizer)
    without_router_loss(args)
    data = load_data(args, mix_datasets_by_ratio, tokenizer, max_length=args.max_length)
    check_columns(data["train"], ["chosen", "rejected"])
    resume = resume_point(args)
    save_recipe(args)

    trainer = PreferenceTrainer(
        model=model,
        ref_model=reference_model(args, tokenizer),
        args=args,
        train_dataset=data["train"],
        eval_dataset=evaluation_rows(args, data),
        processing_class=tokenizer,
        peft_config=adapter_config(args),
    )
    attach_callbacks(trainer, args.stage or "dpo", args.max_length or 1024)
    trainer.add_callback(TokenCount(trainer))
    run_to_end(trainer, tokenizer, resume)


if __name__ == "__main__":
    run_stage(main)
