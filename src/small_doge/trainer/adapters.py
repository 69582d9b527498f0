"""LoRA (arXiv 2106.09685): adapters train in the place of the weights, and end inside them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.utils import is_peft_model

if TYPE_CHECKING:
    from peft import LoraConfig

ADAPTER_FOLDER = "adapter"


def adapter_config(args: Any) -> LoraConfig | None:
    """What a recipe's `AdapterArguments` ask of PEFT; None without `use_peft`."""
    if not args.use_peft:
        return None
    from peft import LoraConfig

    return LoraConfig(
        task_type="CAUSAL_LM",
        r=args.lora_r,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        target_modules=args.lora_target_modules or "all-linear",
        modules_to_save=args.lora_modules_to_save,
    )


def refuse_sharded_adapter(trainer: Any) -> None:
    """Refuse adapters under an engine that shards what they are merged into.

    Raises:
        ValueError: FSDP or DeepSpeed.
    """
    if is_peft_model(trainer.model) and (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        raise ValueError(
            "use_peft merges whole weights at the end, which FSDP and DeepSpeed shard: use single_gpu or ddp of "
            "recipes/accelerate_configs, which hold the few moments of adapters easily."
        )


def merge_adapter(trainer: Any, folder: Path) -> None:
    """Put a trained adapter into the weights, so that the finished model is a plain one; keep it in `folder` too."""
    if not is_peft_model(trainer.model):
        return
    if trainer.args.should_save:
        trainer.model.save_pretrained(str(folder))
    trainer.model = trainer.model_wrapped = trainer.model.merge_and_unload()
