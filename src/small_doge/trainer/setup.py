"""What every stage does before it trains: tokenizer, model and data, each checked for what training needs."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.trainer_utils import IntervalStrategy

from small_doge.models.doge.configuration_doge import DogeConfig
from small_doge.models.doge.norm_doge import DogeRMSNorm
from small_doge.models.loading import load_checkpoint
from small_doge.models.wonderful_matrices.configuration_wonderful_matrices import WonderfulMatricesConfig
from small_doge.processor.tokenizer import load_tokenizer as load_processing_class
from small_doge.trainer.continuation import note_released_checkpoint
from small_doge.utils.places import refuse_missing

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

logger = logging.getLogger(__name__)


def load_tokenizer(args: Any) -> PreTrainedTokenizerBase:
    """The recipe's tokenizer, checked for what training needs.

    Raises:
        ValueError: none is named, none is there, or its padding token is its end token (the end would never be learnt).
    """
    name = args.tokenizer_name_or_path or args.model_name_or_path
    if name is None:
        raise ValueError("no tokenizer: set tokenizer_name_or_path (make one with `small-doge tokenizer train`).")
    if args.tokenizer_name_or_path is None:
        refuse_missing(name)
    tokenizer = load_processing_class(name)
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise ValueError(
            f"the tokenizer {name} pads with {tokenizer.pad_token!r}: give it a padding token that is not its end "
            "token, or the model never learns to stop."
        )
    return tokenizer


def load_model(args: Any, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The recipe's model in fp32: from a checkpoint if one is named, else new, seeded with `args.seed`.

    Its layers are compiled, when they first run, if the recipe says so.

    Raises:
        ValueError: neither or both of model_name_or_path and model_config; weights missing from the checkpoint or of
            another shape; a vocabulary smaller than the tokenizer's.
    """
    if (args.model_name_or_path is None) == (args.model_config is None):
        raise ValueError(
            "set either model_name_or_path (to go on from a checkpoint) or model_config (for a new model)."
        )
    if args.model_name_or_path is not None:
        note_released_checkpoint(args.model_name_or_path)
        model = load_checkpoint(args.model_name_or_path)
    else:
        torch.manual_seed(args.seed)
        model = AutoModelForCausalLM.from_config(new_config(args.model_config, tokenizer), dtype=torch.float32)
    if model.config.vocab_size < len(tokenizer):
        raise ValueError(
            f"the model has {model.config.vocab_size} tokens and the tokenizer {len(tokenizer)}: "
            "use the tokenizer that the model was trained with."
        )
    if args.compile_layers:
        compile_layers(model)
    return model


ARCHITECTURES: dict[str, Any] = {"doge": DogeConfig, "wonderful_matrices": WonderfulMatricesConfig}


def new_config(fields: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> PreTrainedConfig:
    """A new model's configuration from a recipe's `model_config`; vocabulary and special tokens come from the
    tokenizer.

    Raises:
        ValueError: an unknown architecture (`model_type`), size or field.
    """
    fields = dict(fields)
    kind = fields.pop("model_type", "doge")
    if kind not in ARCHITECTURES:
        raise ValueError(f"model_config: there is no model_type {kind!r}: choose one of {', '.join(ARCHITECTURES)}.")
    config = ARCHITECTURES[kind]
    fields.setdefault("vocab_size", len(tokenizer))
    for token in ("bos", "eos", "pad"):
        fields.setdefault(f"{token}_token_id", getattr(tokenizer, f"{token}_token_id"))
    size = fields.pop("size", None)
    # transformers reads rope_theta, a key of older files, into rope_parameters.
    unknown = sorted(name for name in fields if not hasattr(config, name) and name != "rope_theta")
    if unknown:
        name = config.__name__
        raise ValueError(
            f"model_config: {name} has no field {unknown[0]!r}: see `python -c 'help(\"small_doge.{name}\")'`."
        )
    if kind == "doge" and not size:
        fields.setdefault("tie_word_embeddings", True)
    return config.from_size(size, **fields) if size else config(**fields)


def load_data(
    args: Any, prepare: Callable[..., DatasetDict], tokenizer: PreTrainedTokenizerBase, **options: Any
) -> DatasetDict:
    """The recipe's `dataset` folder, or its `datasets_and_ratios` mixed by `prepare`.

    Raises:
        ValueError: neither or both are given, or the folder holds no data set with a train split.
    """
    from datasets import DatasetDict, load_from_disk

    if (args.dataset is None) == (args.datasets_and_ratios is None):
        raise ValueError("set either dataset (a prepared folder) or datasets_and_ratios (sources to mix).")
    if args.dataset is None:
        return prepare(
            datasets_and_ratios=args.datasets_and_ratios,
            total_sample_size=args.total_sample_size,
            processing_class=tokenizer,
            seed=args.seed,
            cache_dir=args.dataset_cache,
            **options,
        )
    if not Path(args.dataset).is_dir():
        raise ValueError(f"there is no data set folder {args.dataset}: prepare one with `small-doge data prepare`.")
    try:
        data = load_from_disk(args.dataset)
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(
            f"{args.dataset} is not a folder that datasets saved: prepare it with `small-doge data prepare`."
        ) from error
    if not isinstance(data, DatasetDict) or "train" not in data:
        raise ValueError(f"{args.dataset} has no train split: prepare it with `small-doge data prepare`.")
    return data


def evaluation_rows(args: Any, data: DatasetDict) -> Dataset | None:
    """The test split, where the recipe evaluates at all: TRL prepares every row that it is given.

    Without a test split a warning says so, and nothing is evaluated.
    """
    if args.eval_strategy == "no" and not args.eval_on_start:
        return None
    if "test" not in data:
        logger.warning("the data has no test split, so nothing is held out: set test_share when preparing it.")
        args.eval_strategy, args.eval_on_start = IntervalStrategy.NO, False
    return data.get("test")


def bytes_per_token(rows: Dataset | None, tokenizer: PreTrainedTokenizerBase) -> float | None:
    """Bytes of UTF-8 text that a token of packed rows stands for on average, special tokens counted as tokens only.

    None without rows. With it a mean loss in nats a token becomes bits per byte: loss / ln 2 / bytes per token.
    """
    if not rows:
        return None
    tokens = text = 0
    for row in rows:
        tokens += len(row["input_ids"])
        text += len(str(tokenizer.decode(row["input_ids"], skip_special_tokens=True)).encode())
    return text / tokens


def check_token_ids(data: Dataset, vocab_size: int, what: str) -> None:
    """Refuse rows made with another tokenizer: an id beyond the vocabulary in the first rows.

    Raises:
        ValueError: such an id is found, or the rows are not of tokens.
    """
    if "input_ids" not in data.column_names:
        raise ValueError(
            f"{what} has no rows of tokens, its columns are {', '.join(data.column_names)}: "
            "prepare it with a recipe of the stage pt, such as recipes/data/pretrain.yaml."
        )
    highest = max((max(row["input_ids"], default=0) for row in data.select(range(min(len(data), 256)))), default=0)
    if highest >= vocab_size:
        raise ValueError(
            f"{what} holds token id {highest}, the model has {vocab_size} tokens: "
            "prepare the data with the model's tokenizer."
        )


def check_columns(data: Dataset, *choices: Sequence[str]) -> None:
    """Refuse rows that have none of the sets of columns that a stage can learn from.

    Raises:
        ValueError: they have none of them whole.
    """
    if not any(set(columns) <= set(data.column_names) for columns in choices):
        needed = ", or ".join(" and ".join(columns) for columns in choices)
        raise ValueError(
            f"the data has the columns {', '.join(data.column_names)}, and this stage needs {needed}: "
            "prepare such rows with a recipe of recipes/data."
        )


def check_chat_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer without a chat template.

    Raises:
        ValueError: there is none.
    """
    if not tokenizer.chat_template:
        raise ValueError(
            f"the tokenizer {tokenizer.name_or_path} has no chat template: "
            "take one of `small-doge tokenizer train`, or set chat_template."
        )


def zero_init_outputs(model: PreTrainedModel) -> None:
    """Zero what each sublayer adds to the residual stream; its gradient is not zero, so the first step moves it."""
    for layer in model.get_decoder().layers:
        nn.init.zeros_(layer.self_attn.o_proj.weight)
        nn.init.zeros_(layer.mlp.down_proj.weight)


def compile_layers(model: PreTrainedModel) -> None:
    """Compile each decoder layer in place, on a GPU also the norm behind them; layers of one shape share a compilation.

    On a CPU this needs a C++ compiler; where there is none, a warning says so and training goes on uncompiled.
    """
    on_cpu = next(model.parameters()).device.type == "cpu" and not torch.cuda.is_available()
    if on_cpu and not any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++")):
        logger.warning("no C++ compiler: training goes on uncompiled and slower; install g++ to have it compiled.")
        return
    decoder = model.get_decoder()
    for layer in decoder.layers:
        layer.compile()
    # On a CPU it would take seconds to compile and save none.
    for norm in (module for module in decoder.children() if isinstance(module, DogeRMSNorm) and not on_cpu):
        norm.compile()


def without_router_loss(args: Any) -> None:
    """Turn TRL's router loss off: it is Mixtral's, which cannot read the product keys of Doge's router."""
    args.router_aux_loss_coef = 0.0
