"""Group relative policy optimization (arXiv 2402.03300) with verifiable rewards.

    accelerate launch --config_file recipes/accelerate_configs/single_gpu.yaml src/small_doge/trainer/doge/grpo.py
    --config RECIPE.yaml

Rows have a `question` (or a conversational `prompt`) and the `answer` that its rewards check. With `curriculum` the
problems are made as the run goes.
"""

from __future__ import annotations

import itertools
import json
import logging
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from accelerate.utils import gather_object
from torch import Tensor
from transformers import TrainerCallback
from trl import GRPOTrainer
from trl.trainer.utils import add_fused_lm_head

from small_doge.processor.ft_datasets_process import mix_datasets_by_ratio
from small_doge.rewards import Group, get_reward, text_of
from small_doge.trainer.adapters import adapter_config
from small_doge.trainer.curriculum import Curriculum
from small_doge.trainer.finetuning_arguments import ReinforcementArguments
from small_doge.trainer.recipe import load_recipe, run_stage, save_recipe
from small_doge.trainer.rollouts import SlotRollouts
from small_doge.trainer.setup import (
    check_chat_template,
    evaluation_rows,
    load_data,
    load_model,
    load_tokenizer,
    without_router_loss,
)
from small_doge.trainer.stage import StageTrainer, attach_callbacks, resume_point, run_to_end

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)


class ReinforcementTrainer(StageTrainer, GRPOTrainer):
    """TRL's GRPOTrainer with our optimizer, schedule and checkpoints, a curriculum, and more figures in its logs."""

    curriculum: Curriculum | None = None
    curriculum_reward = ""
    system_prompt: str | None = None

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """TRL's. Under a curriculum the rows are numbers, and their problems are made only here, at today's levels."""
        if self.curriculum is not None:
            made = {row["index"]: self.curriculum.problem(row["index"]) for row in inputs}
            made = {index: row | prompts_of(row, self.system_prompt) for index, row in made.items()}
            inputs = [made[row["index"]] for row in inputs]
        return super()._generate_and_score_completions(inputs)

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Any, Any]:
        """TRL's; the log-probabilities are kept for the comparison with the engine's."""
        found = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        self._log_probs = found[0].detach()
        return found

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """TRL's loss of a micro-batch.

        Logs how far the engine's log-probabilities are from this forward's, in the mean and at the most, in nats. With
        `num_iterations` above 1 the weights have moved in between, and the figures show that too.
        """
        loss = super()._compute_loss(model, inputs)
        said = inputs.get("sampling_per_token_logps")
        if said is not None:
            error = (self._log_probs - said)[inputs["completion_mask"].bool()].abs()
            metrics = self._metrics["train" if self.model.training else "eval"]
            metrics["rollouts/log_prob_difference"].append(error.mean().item())
            # TRL logs the mean of a list: one element, the largest so far.
            largest = [*metrics["rollouts/log_prob_difference_max"], error.max().item()]
            metrics["rollouts/log_prob_difference_max"] = [max(largest)]
        return loss

    def _calculate_rewards(self, inputs: list[dict[str, Any]], *args: Any, **kwargs: Any) -> Tensor:
        """TRL's, [completions of every process, rewards], NaN where a reward could not judge.

        Logs the standard deviation within a group, which is what there is to learn from, and the share of completions
        that each reward left out.
        """
        rewards = super()._calculate_rewards(inputs, *args, **kwargs)
        training = self.model.training
        metrics = self._metrics["train" if training else "eval"]
        totals = (rewards * self.reward_weights.to(rewards.device)).nansum(1)
        groups = totals.view(-1, self.num_generations if training else self.num_generations_eval)
        if groups.shape[1] > 1:
            metrics["reward_group_std"].append(groups.std(1).mean().item())
        for name, judged in zip(self.reward_func_names, rewards.unbind(1), strict=True):
            metrics[f"rewards/{name}/skipped"].append(judged.isnan().float().mean().item())
        if self.curriculum is not None and training:
            scores = rewards[:, self.reward_func_names.index(self.curriculum_reward)].view(-1, self.num_generations)
            tasks = gather_object([row["task"] for row in inputs])[:: self.num_generations]
            self.curriculum.judge(tasks, scores.nanmean(1).nan_to_num().tolist())
            for name, value in self.curriculum.figures().items():
                metrics[name] = [value]
        return rewards


class WarnWithoutSignal(TrainerCallback):
    """Warns when every group's rewards are equal for several logs in a row: nothing can be learnt then."""

    def __init__(self, patience: int = 3) -> None:
        self.patience = patience
        self.silent = 0

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        share = (logs or {}).get("frac_reward_zero_std")
        if share is None:
            return
        self.silent = self.silent + 1 if share >= 1.0 else 0
        if self.silent == self.patience:
            logger.warning(
                "no group had two different rewards for %d logs: make the task easier or harder.", self.patience
            )


def reward_function(name: str, options: dict[str, Any]) -> Callable[..., list[float | None]]:
    """A registered reward in the shape that TRL calls: one number for each completion of the batch.

    Completions of one prompt stand together, and are judged as one group.
    """
    reward = get_reward(name, **options)

    def score(
        prompts: list[Any],
        completions: list[Any],
        completion_ids: list[list[int]],
        answer: list[str],
        metadata: list[Any] | None = None,
        **kwargs: Any,
    ) -> list[float | None]:
        rewards: list[float | None] = []
        for _, rows in itertools.groupby(range(len(prompts)), key=lambda row: (prompts[row], answer[row])):
            group = list(rows)
            first = group[0]
            rewards += reward(
                Group(
                    answer[first],
                    [text_of(completions[row]) for row in group],
                    [completion_ids[row] for row in group],
                    metadata_of(metadata[first] if metadata else None),
                )
            )
        return rewards

    score.__name__ = name
    return score


def metadata_of(value: Any) -> dict[str, Any]:
    """A row's `metadata` as a dictionary: JSON, or a table's row, in which the fields of other tasks are None."""
    if isinstance(value, str):
        value = json.loads(value)
    return {name: item for name, item in (value or {}).items() if item is not None}


def prompts_of(row: dict[str, Any], system_prompt: str | None) -> dict[str, Any]:
    """The row with a conversational `prompt`, the system message first where there is one."""
    prompt = row.get("prompt") or [{"role": "user", "content": row["question"]}]
    if system_prompt:
        prompt = [{"role": "system", "content": system_prompt}, *prompt]
    return {"prompt": prompt}


def problems_of(rows: Dataset, system_prompt: str | None) -> Dataset:
    """The rows with the columns `prompt`, `answer` and, where there is one, `metadata`.

    Raises:
        ValueError: they have no question or no answer.
    """
    columns = set(rows.column_names)
    if "answer" not in columns or not columns & {"prompt", "question"}:
        raise ValueError(
            f"the data has the columns {sorted(columns)}: reinforcement needs `question` (or `prompt`) and `answer`."
        )
    rows = rows.map(prompts_of, fn_kwargs={"system_prompt": system_prompt})
    return rows.select_columns([name for name in ("prompt", "answer", "metadata") if name in rows.column_names])


def problems_to_make(args: ReinforcementArguments) -> tuple[Curriculum, Dataset]:
    """The recipe's curriculum, and the numbers of the problems that the run will ask of it, in order.

    Raises:
        ValueError: a data set beside it, no end of the run, or a reward that the recipe does not have.
    """
    from datasets import Dataset

    if args.dataset or args.datasets_and_ratios:
        raise ValueError("the recipe has a data set and a curriculum: remove one of them.")
    if args.max_steps <= 0:
        raise ValueError("a curriculum makes problems without end: set max_steps.")
    if (args.curriculum_reward or args.reward_functions[0]) not in args.reward_functions:
        raise ValueError(
            f"curriculum_reward is {args.curriculum_reward!r}: choose one of {', '.join(args.reward_functions)}."
        )
    args.shuffle_dataset = False
    completions = args.train_batch_size * args.gradient_accumulation_steps * args.world_size * args.max_steps
    problems = max(completions, args.generation_batch_size or 0) // args.num_generations
    curriculum = Curriculum(
        args.curriculum or (), args.curriculum_threshold, args.curriculum_window, problems, seed=args.seed
    )
    return curriculum, Dataset.from_dict({"index": range(problems)})


def use_own_reference(trainer: ReinforcementTrainer, reference: Any) -> None:
    """Put a model of our class in the place of TRL's reference, whose class TRL looks up by name in transformers.

    Raises:
        ValueError: the engine shards models, and TRL's reference with them.
    """
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        raise ValueError("beta above 0 needs a whole reference model: use one process or ddp, or set beta: 0.0.")
    # As TRL prepares its own.
    add_fused_lm_head(
        reference, temperature=trainer.temperature, cast_lm_head_to_fp32=trainer.args.cast_lm_head_to_fp32
    )
    trainer.ref_model = trainer.accelerator.prepare_model(reference, evaluation_mode=True)


def main(argv: Sequence[str]) -> None:
    """Run the stage that the recipe describes, and save the finished model to its output_dir."""
    args = load_recipe(ReinforcementArguments, argv)
    if args.model_name_or_path is None:
        raise ValueError(
            "no model_name_or_path: reinforcement starts from a checkpoint that already answers now and then."
        )
    tokenizer = load_tokenizer(args)
    check_chat_template(tokenizer)
    model = load_model(args, tokenizer)
    without_router_loss(args)
    curriculum: Curriculum | None = None
    held_out: Dataset | None = None
    if args.curriculum:
        curriculum, train = problems_to_make(args)
    else:
        data = load_data(args, mix_datasets_by_ratio, tokenizer)
        rows = evaluation_rows(args, data)
        train = problems_of(data["train"], args.system_prompt)
        held_out = None if rows is None else problems_of(rows, args.system_prompt)
    resume = resume_point(args)
    save_recipe(args)

    # TRL warns that rollout_func may change; the tests of this stage would tell.
    warnings.filterwarnings("ignore", message=".*'rollout_func'")
    trainer = ReinforcementTrainer(
        model=model,
        reward_funcs=[
            reward_function(name, (args.reward_options or {}).get(name) or {}) for name in args.reward_functions
        ],
        args=args,
        train_dataset=train,
        eval_dataset=held_out,
        processing_class=tokenizer,
        rollout_func=SlotRollouts() if args.rollout_engine == "slots" else None,
        peft_config=adapter_config(args),
    )
    if args.beta and not args.use_peft:  # Without its adapters the model is the reference.
        use_own_reference(trainer, load_model(args, tokenizer))
    attach_callbacks(trainer, args.stage or "grpo", args.max_completion_length or 256)
    if curriculum is not None:
        trainer.curriculum, trainer.system_prompt = curriculum, args.system_prompt
        trainer.curriculum_reward = args.curriculum_reward or args.reward_functions[0]
        trainer.add_callback(curriculum)
    trainer.add_callback(WarnWithoutSignal())
    run_to_end(trainer, tokenizer, resume)


if __name__ == "__main__":
    run_stage(main)
