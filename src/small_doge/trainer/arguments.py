"""What a recipe may say: the libraries' own training arguments, and ours. A field's help is its documentation."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any, TypeVar

from transformers import TrainingArguments

logger = logging.getLogger(__name__)

T = TypeVar("T")


def option(default: T, help: str) -> T:
    """A dataclass field with a default and its help text."""
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


@dataclass
class RecipeArguments:
    """The part of a recipe that every stage shares."""

    model_name_or_path: str | None = option(None, "Checkpoint folder or hub id to start from.")
    model_config: dict[str, Any] | None = option(
        None, "Configuration of a new model: `size: 20M` and any field of DogeConfig; only without model_name_or_path."
    )
    tokenizer_name_or_path: str | None = option(None, "Tokenizer folder or hub id; the model's folder if not given.")
    dataset: str | None = option(None, "Folder of a datasets.DatasetDict with the splits train and test.")
    datasets_and_ratios: list[dict[str, float]] | None = option(
        None, "Sources to mix instead of `dataset`: a list of {name or path: share}."
    )
    total_sample_size: int | None = option(
        None, "Rows to mix from datasets_and_ratios; as many as the shares allow if not given."
    )
    dataset_cache: str | None = option(None, "Folder for what datasets_and_ratios prepares.")
    optimizer: str = option(
        "adamw", "adamw (the `optim` field says which), or muon: matrices by Muon, the rest by AdamW."
    )
    muon_learning_rate: float = option(0.02, "Peak learning rate of the matrices under `optimizer: muon`.")
    muon_momentum: float = option(0.95, "Momentum of the matrices under `optimizer: muon`; lower for a short run.")
    decay_steps: float = option(0.1, "Decay phase of lr_scheduler_type warmup_stable_decay: steps, or a share below 1.")
    decay_type: str = option("linear", "Shape of that decay: linear, cosine or 1-sqrt.")
    min_lr_ratio: float = option(0.0, "Lowest learning rate as a share of the peak, under warmup_stable_decay.")
    resume: bool = option(
        True, "Go on from the last complete checkpoint in output_dir; false refuses a folder that holds one."
    )
    staged_unfreezing: list[float] | None = option(
        None,
        "For a grown model: shares of the run at which scores and norms, router and experts, residuals and everything "
        "begin to learn, such as [0.0, 0.1, 0.2, 0.3].",
    )
    compile_layers: bool = option(
        False, "Compile one decoder layer and use it for all: a short start, since the layers share their code."
    )
    # True or false; the libraries declare it by types that contradict one another.
    gradient_checkpointing: Any = option(
        False,
        "Compute a layer's activations again in the backward pass instead of keeping them: less memory, a third more "
        "work. TRL's stages do so by default, ours do not.",
    )
    stage: str = option("", "Name shown beside the progress bar.")
    ddp_broadcast_buffers: bool | None = option(
        False, "Send the first process's buffers to the others in every step: ours are the same everywhere."
    )

    def __post_init__(self) -> None:
        # A copy that is waited for would wait for the step before it as well, and leave the GPU idle between the two.
        args: Any = self
        if args.accelerator_config is None:
            args.accelerator_config = {"non_blocking": args.dataloader_pin_memory}
        super().__post_init__()  # type: ignore[misc]
        gpus = super().n_gpu  # type: ignore[misc]
        if gpus > 1:
            logger.warning(
                "of %d GPUs one is used: launch a process for each with recipes/accelerate_configs/ddp.yaml.", gpus
            )

    @property
    def n_gpu(self) -> int:
        """GPUs of this process, at most one: for more transformers takes DataParallel, under which nothing compiles."""
        return min(super().n_gpu, 1)  # type: ignore[misc]


@dataclass
class PretrainingArguments(RecipeArguments, TrainingArguments):
    """Pretraining (`small-doge train pt`)."""

    tokens: float | None = option(
        None,
        "Token budget, as 70e6, 70M or 4B: sets batch, steps, learning rates and steps between saves in the recipe's "
        "place; what the command line gives beside it wins, and a micro-batch given there is the largest to use.",
    )
    continue_from: str | None = option(
        None, "Checkpoint of another run's stable phase to go on from, with its optimizer and learning rate."
    )
    decay: bool = option(
        False, "With continue_from: only the decay phase, from the checkpoint's rate to the minimum, over max_steps."
    )
    auto_micro_batch: bool = option(
        False,
        "Divide the rows of a step anew, into the largest micro-batches that fit the card by the formula of "
        "small_doge.trainer.footprint; the rows of a step stay as the recipe has them.",
    )
    memory_gib: float | None = option(
        None, "GiB of memory that auto_micro_batch counts on: the card's own if not given, and needed on a CPU."
    )
    max_length: int = option(2048, "Tokens in a row, when datasets_and_ratios are prepared here.")
    zero_init_outputs: bool = option(
        False, "Start the projections into the residual stream at zero: a new model begins as its embedding alone."
    )
    loss_spike: float = option(
        2.0, "Stop when a step's loss is this many nats above the median of the last 64 steps; 0 never stops."
    )
    ddp_find_unused_parameters: bool | None = option(
        False, "Look for parameters without a gradient in every step: slower, and only staged unfreezing has any."
    )
    cuda_graph: bool = option(
        True,
        "On one GPU, or under DDP on those of one host, with compile_layers: launch forward and backward of a "
        "micro-batch by one call, as a CUDA graph; not with document_masking, gradient_checkpointing, fp16 and what "
        "else small_doge.trainer.step_graph names.",
    )
    document_masking: bool = option(False, "Hide the documents of a packed row from one another.")
