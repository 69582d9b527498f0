"""Distillation from a teacher's logits, on the student's own completions (arXiv 2306.13649).

    accelerate launch --config_file recipes/accelerate_configs/single_gpu.yaml src/small_doge/trainer/doge/distill.py
    --config RECIPE.yaml

The teacher is a larger model with the same tokenizer. Rows have a conversation (`messages` or `prompt`) or a
`question`; what stands after the last question is not used. Distillation on written traces is `sft`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase
from trl import DistillationTrainer

from small_doge.models.loading import load_checkpoint
from small_doge.processor.ft_datasets_process import mix_datasets_by_ratio
from small_doge.trainer.adapters import adapter_config
from small_doge.trainer.finetuning_arguments import LogitArguments
from small_doge.trainer.recipe import load_recipe, run_stage, save_recipe
from small_doge.trainer.rollouts import SlotRollouts
from small_doge.trainer.setup import check_chat_template, evaluation_rows, load_data, load_model, load_tokenizer
from small_doge.trainer.stage import StageTrainer, attach_callbacks, resume_point, run_to_end

if TYPE_CHECKING:
    from datasets import Dataset


class LogitTrainer(StageTrainer, DistillationTrainer):
    """TRL's DistillationTrainer with our optimizer, schedule, checkpoints and engine."""

    rollouts: SlotRollouts | None = None

    def _generate_single_turn(self, prompt_ids: list[list[int]], *args: Any, **kwargs: Any) -> list[list[int]]:
        if self.rollouts is None:
            return super()._generate_single_turn(prompt_ids, *args, **kwargs)
        return self.rollouts.draw(prompt_ids, self)[0]


def question_of(row: dict[str, Any], system_prompt: str | None) -> dict[str, Any]:
    """The row's `prompt`: its conversation up to the last message that is not the assistant's."""
    messages = row.get("messages") or row.get("prompt") or [{"role": "user", "content": row["question"]}]
    while messages and messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    if system_prompt and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": system_prompt}, *messages]
    return {"prompt": messages}


def questions_of(rows: Dataset, system_prompt: str | None) -> Dataset:
    """Rows with a `prompt` alone.

    Raises:
        ValueError: they have no conversation and no question.
    """
    if not {"messages", "prompt", "question"} & set(rows.column_names):
        raise ValueError(
            f"the data has the columns {sorted(rows.column_names)}: distillation needs `messages`, `prompt` or "
            "`question`."
        )
    return rows.map(
        question_of,
        fn_kwargs={"system_prompt": system_prompt},
        remove_columns=rows.column_names,
        load_from_cache_file=False,
    )


def load_teacher(args: LogitArguments, tokenizer: PreTrainedTokenizerBase) -> Any:
    """The recipe's teacher, whose tokenizer must be the student's.

    Raises:
        ValueError: none is named, or its tokens are others.
    """
    name = args.teacher_model_name_or_path
    if name is None:
        raise ValueError("no teacher_model_name_or_path: name a larger model with the same tokenizer.")
    if AutoTokenizer.from_pretrained(name).get_vocab() != tokenizer.get_vocab():
        raise ValueError(
            f"the teacher {name} has another tokenizer: take one with the student's, or train on its answers with sft."
        )
    return load_checkpoint(name)


def main(argv: Sequence[str]) -> None:
    """Run the stage that the recipe describes, and save the finished model to its output_dir."""
    args = load_recipe(LogitArguments, argv)
    tokenizer = load_tokenizer(args)
    check_chat_template(tokenizer)
    model, teacher = load_model(args, tokenizer), load_teacher(args, tokenizer)
    data = load_data(args, mix_datasets_by_ratio, tokenizer)
    held_out = evaluation_rows(args, data)
    resume = resume_point(args)
    save_recipe(args)

    trainer = LogitTrainer(
        model=model,
        teacher_model=teacher,
        args=args,
        train_dataset=questions_of(data["train"], args.system_prompt),
        eval_dataset=None if held_out is None else questions_of(held_out, args.system_prompt),
        processing_class=tokenizer,
        peft_config=adapter_config(args),
    )
    if args.rollout_engine == "slots":
        trainer.rollouts = SlotRollouts()
    attach_callbacks(trainer, args.stage or "distill", args.max_completion_length or 512)
    run_to_end(trainer, tokenizer, resume)


if __name__ == "__main__":
    run_stage(main)
