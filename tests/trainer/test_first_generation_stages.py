"""The first generation through the stages after pretraining, each from the checkpoint of the one before."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict
from transformers import AutoModelForCausalLM, AutoTokenizer

from small_doge import WonderfulMatricesConfig, WonderfulMatricesForCausalLM
from small_doge.trainer.doge import dpo, grpo, sft

QUESTIONS = [f"What is {a} + {b}?" for a in range(4) for b in range(4)]
ANSWERS = [str(a + b) for a in range(4) for b in range(4)]


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


ROWS = {
    "sft": [
        {"messages": [message("user", q), message("assistant", a)]} for q, a in zip(QUESTIONS, ANSWERS, strict=True)
    ],
    "dpo": [
        {
            "prompt": [message("user", q)],
            "chosen": [message("assistant", a)],
            "rejected": [message("assistant", "I will not say.")],
        }
        for q, a in zip(QUESTIONS, ANSWERS, strict=True)
    ],
    "grpo": [{"question": q, "answer": a} for q, a in zip(QUESTIONS, ANSWERS, strict=True)],
}
STAGES = {
    "sft": (sft.main, {"max_length": 128}),
    "dpo": (dpo.main, {"max_length": 128}),
    "grpo": (grpo.main, {"num_generations": 4, "max_completion_length": 8, "rollout_engine": "transformers"}),
}


@pytest.mark.slow
def test_it_goes_from_stage_to_stage(recipe, tokenizer_folder: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    config = WonderfulMatricesConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        cross_domain_intermediate_size=64,
        private_expert_intermediate_size=16,
        num_cdmmoe_experts=16,
        **{f"{token}_token_id": getattr(tokenizer, f"{token}_token_id") for token in ("bos", "eos", "pad")},
    )
    folder = tmp_path / "base"
    WonderfulMatricesForCausalLM(config).save_pretrained(folder)
    for stage, (main, options) in STAGES.items():
        data = Dataset.from_list(ROWS[stage])
        DatasetDict({"train": data}).save_to_disk(str(tmp_path / f"{stage}_rows"))
        common = {"model_config": None, "dataset": str(tmp_path / f"{stage}_rows"), "save_strategy": "no"}
        size = {"per_device_train_batch_size": 4, "max_steps": 3}
        main(recipe(stage, **common, **size, model_name_or_path=str(folder), **options))
        losses = list(recipe.log(stage).values())
        assert losses and all(math.isfinite(loss) for loss in losses)
        folder = tmp_path / stage
        assert type(AutoModelForCausalLM.from_pretrained(folder)) is WonderfulMatricesForCausalLM
