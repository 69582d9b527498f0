"""Checkpoints of other kinds as Doge: a mixture out of a dense one, a Doge out of a Llama, and the oldest layouts.

Every function takes and gives models in memory; `save_pretrained` writes them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from small_doge.models.doge.configuration_doge import DogeConfig
from small_doge.models.doge.modeling_doge import DogeAttention, DogeForCausalLM
from small_doge.models.doge.remote_code import export_remote_code

SHARED_WITH_LLAMA = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "initializer_range",
    "rms_norm_eps",
    "tie_word_embeddings",
    "max_position_embeddings",
    "rope_parameters",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
)
EXPERT_WEIGHTS = ("router_gate", "down_embed", "up_embed")


def upcycle(
    dense: str | Path | DogeForCausalLM, num_experts: int, num_experts_per_tok: int, seed: int = 0, **fields: Any
) -> DogeForCausalLM:
    """A mixture out of a dense Doge, with the same logits, bit for bit, until it is trained.

    The dense weights are kept as they are. Router and `down_embed` start small and random, `up_embed` at zero, so the
    experts add nothing at first; their first gradient is `up_embed`'s.

    Args:
        dense: a model, or the folder of one.
        num_experts: a perfect square.
        num_experts_per_tok: how many of them a token is sent to.
        seed: of the new weights.
        fields: other fields of the configuration, such as `output_router_logits=True`.

    Raises:
        ValueError: the model is a mixture already, or a field is impossible.
    """
    model = _loaded(dense)
    if not isinstance(model, DogeForCausalLM):
        raise ValueError(f"{type(model).__name__} is not a Doge: make one of it first (from_llama).")
    if model.config.is_moe:
        raise ValueError(f"the model is a mixture of {model.config.num_experts} experts already: give a dense one.")
    mixture = {"is_moe": True, "num_experts": num_experts, "num_experts_per_tok": num_experts_per_tok}
    config = DogeConfig.from_dict(model.config.to_dict() | mixture | {"legacy_routing": False} | fields)
    grown = _new_model(config, model, seed)
    _take_over(grown, model.state_dict(), new=EXPERT_WEIGHTS)
    for layer in grown.model.layers:
        torch.nn.init.zeros_(layer.mlp.up_embed.weight)
    return grown


def from_llama(
    source: str | Path | PreTrainedModel, *, keep_window_size: int | None = None, seed: int = 0
) -> DogeForCausalLM:
    """A Doge out of a Llama-shaped model (Llama, SmolLM, Mistral), with the same logits until it is trained.

    Queries and keys have no norm (`qk_norm=False`), residual vectors are 1, and A = 0, so that every key has the score
    exp(0) = 1: a constant, which softmax does not see. Beyond the window equal scores keep the newest keys, which is a
    sliding window; a Mistral's becomes `keep_window_size` and nothing changes.

    Args:
        source: a model, or the folder of one.
        keep_window_size: w; the model's sliding window, or `max_position_embeddings`, if not given.
        seed: of the new weights (`dt_proj`, without effect while A = 0).

    Raises:
        ValueError: a model of another shape.
    """
    theirs: Any = source.config if isinstance(source, PreTrainedModel) else AutoConfig.from_pretrained(source)
    if theirs.model_type not in ("llama", "mistral"):
        raise ValueError(f"model_type is {theirs.model_type!r}: a Doge grows out of a llama or a mistral.")
    llama = _loaded(source)
    head_size = getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads
    if head_size * theirs.num_attention_heads != theirs.hidden_size:
        raise ValueError(
            f"{theirs.num_attention_heads} heads of size {head_size} do not make up the width {theirs.hidden_size}: "
            "Doge's heads do, so this model cannot become one."
        )
    window = keep_window_size or getattr(theirs, "sliding_window", None) or theirs.max_position_embeddings
    fields: dict[str, Any] = {name: getattr(theirs, name) for name in SHARED_WITH_LLAMA}
    fields |= {name: getattr(theirs, name, False) for name in ("attention_bias", "mlp_bias")}
    grown = _new_model(DogeConfig(**fields, keep_window_size=window, qk_norm=False), llama, seed)
    _take_over(grown, llama.state_dict(), new=("self_attn.A", "dt_proj", "input_residual", "post_attention_residual"))
    return grown


# Names of the first releases, and what they are called today.
OLD_NAMES = (
    (r"^model\.word_embed\.", "model.embed_tokens."),
    (r"^model\.final_layernorm\.", "model.norm."),
    (r"\.pre_layernorm\.", ".input_layernorm."),
    (r"\.pre_residual\.weight$", ".input_residual"),
    (r"\.post_layernorm\.", ".post_attention_layernorm."),
    (r"\.post_residual\.weight$", ".post_attention_residual"),
    (r"\.feed_forward\.", ".mlp."),
)


def read_doge(folder: str | Path) -> DogeForCausalLM:
    """Any released Doge, whatever its layout: the configuration follows from the weights that are there.

    Reads today's layout, scores per query head (`score_per_query_head`), attention without norms (`qk_norm=False`), and
    the names of the first releases. A configuration older than `keep_window_size` masked nothing and gets a window as
    long as its positions.

    Raises:
        ValueError: no safetensors, or weights that belong to another architecture.
    """
    folder = Path(folder)
    files = sorted(folder.glob("*.safetensors"))
    if not files or not (folder / "config.json").is_file():
        raise ValueError(f"{folder} has no config.json with *.safetensors beside it: name the folder of a checkpoint.")
    weights: dict[str, Tensor] = {}
    for file in files:
        weights |= {_name_of_today(name): tensor for name, tensor in load_file(file).items()}
    weights = {name: tensor for name, tensor in weights.items() if "rotary_emb" not in name}
    for name in [name for name in weights if name.endswith("router_gate.bias")]:
        if weights.pop(name).any():
            raise ValueError(f"{name} is not zero, but a router has no bias today: this mixture cannot be read.")

    fields = json.loads((folder / "config.json").read_text())
    fields.pop("auto_map", None)
    fields.setdefault("keep_window_size", fields.get("max_position_embeddings", 2048))
    heads = fields["num_attention_heads"]
    groups = fields.get("num_key_value_heads") or heads
    scores = weights["model.layers.0.self_attn.A"].numel() if "model.layers.0.self_attn.A" in weights else 0
    if scores not in (heads, groups):
        raise ValueError(
            f"{folder} has no score for each head (self_attn.A): it is not a Doge of the second generation."
        )
    fields["score_per_query_head"] = scores != groups
    fields["qk_norm"] = "model.layers.0.self_attn.q_norm.weight" in weights
    model = DogeForCausalLM(DogeConfig.from_dict(fields))
    tied = ("lm_head.weight",) if model.config.tie_word_embeddings else ()
    torch.nn.Module.to(model, dtype=next(iter(weights.values())).dtype)
    _take_over(model, weights, new=tied)
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model.eval()


def share_scores(model: DogeForCausalLM) -> DogeForCausalLM:
    """The same function with one score for each key/value head, as transformers' Doge has, instead of each query head.

    Where all query heads of a group score alike (A = 0 among them), the group keeps its key/value head. Where any
    differ, every query head gets a key/value head of its own; the cache, which held w keys for every query head
    before, stays as large.
    """
    config = model.config
    if not config.score_per_query_head:
        return model
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    assert groups is not None
    alike = all(_groups_score_alike(layer.self_attn, groups) for layer in model.model.layers)
    target = groups if alike else heads
    fields = {"score_per_query_head": False, "num_key_value_heads": target}
    shared = _new_model(DogeConfig.from_dict(config.to_dict() | fields), model, seed=0)
    weights = model.state_dict()
    for index in range(config.num_hidden_layers):
        prefix = f"model.layers.{index}.self_attn."
        for name in [name for name in weights if name.startswith(prefix)]:
            weights[name] = _with_shared_scores(name.removeprefix(prefix), weights[name], heads, groups, target)
    _take_over(shared, weights, new=())
    return shared


def split_scores(model: DogeForCausalLM) -> DogeForCausalLM:
    """The same function in upstream's older layout: one score for each query head, the group's own score repeated.

    Raises:
        ValueError: queries and keys have norms, for which that layout has no place.
    """
    config = model.config
    if config.qk_norm:
        raise ValueError(
            "its queries and keys are normed, and the older layout has no place for norms: "
            "no weights of that layout compute the same, so keep today's (--to doge)."
        )
    if config.score_per_query_head:
        return model
    assert config.num_key_value_heads is not None
    repeats = config.num_attention_heads // config.num_key_value_heads
    split = _new_model(DogeConfig.from_dict(config.to_dict() | {"score_per_query_head": True}), model, seed=0)
    weights = {
        name: tensor.repeat_interleave(repeats, 0) if re.search(r"\.self_attn\.(A$|dt_proj\.)", name) else tensor
        for name, tensor in model.state_dict().items()
    }
    _take_over(split, weights, new=())
    return split


def obstacle_for_transformers(config: DogeConfig) -> str | None:
    """Why plain transformers cannot run a model of this configuration as we do, in one line; None if it can."""
    if config.score_per_query_head:
        return "it scores keys per query head: write it with share_scores first."
    if not config.qk_norm:
        return (
            "its queries and keys have no norm, and transformers' Doge always norms them: no weights of that layout "
            "compute the same, so load it with small_doge, or export it with its code."
        )
    if config.is_moe and not config.legacy_routing:
        return (
            "it routes each token by itself, and transformers' Doge mixes tokens. Where that library stands alone, "
            "write it with its code: `small-doge convert --to remote-code`."
        )
    return None


def obstacle_for_llama(model: DogeForCausalLM) -> str:
    """Why a Doge does not become a Llama, in one line: a Llama has no place for what a Doge has learnt."""
    config, obstacles = model.config, []
    if config.qk_norm:
        obstacles.append("norms on queries and keys")
    if any(layer.self_attn.A.any() for layer in model.model.layers):
        obstacles.append("a score for each key")
    if any(
        r.ne(1).any() for layer in model.model.layers for r in (layer.input_residual, layer.post_attention_residual)
    ):
        obstacles.append("weighted residuals")
    if config.is_moe:
        obstacles.append("a mixture of experts")
    if not obstacles:
        return "it still computes what the Llama that it grew out of does: use that one."
    return f"a Llama has no place for its {', '.join(obstacles)}: no weights of a Llama compute the same."


def _with_shared_scores(name: str, tensor: Tensor, heads: int, groups: int, target: int) -> Tensor:
    """One attention weight, from `heads` scores on `groups` key/value heads, to `target` of both."""
    per_group = heads // groups
    if target == groups:
        return tensor[::per_group] if name in ("A", "dt_proj.weight", "dt_proj.bias") else tensor
    if name.startswith(("k_proj", "v_proj")):
        return tensor.unflatten(0, (groups, -1)).repeat_interleave(per_group, 0).flatten(0, 1)
    if name == "dt_proj.weight":
        # It reads every value head; of the copies of one, the first carries the weight.
        wide = tensor.new_zeros(tensor.shape[0], groups, per_group, tensor.shape[1] // groups)
        wide[:, :, 0] = tensor.unflatten(1, (groups, -1))
        return wide.flatten(1)
    return tensor


def _groups_score_alike(attention: DogeAttention, groups: int) -> bool:
    factor = attention.A.unflatten(0, (groups, -1))
    rows = [attention.dt_proj.weight, *([] if attention.dt_proj.bias is None else [attention.dt_proj.bias[:, None]])]
    alike = torch.stack([(r := row.unflatten(0, (groups, -1))).eq(r[:, :1]).all(2).all(1) for row in rows]).all(0)
    return bool(((factor == factor[:, :1]).all(1) & (alike | (factor == 0).all(1))).all())


def _name_of_today(name: str) -> str:
    for old, new in OLD_NAMES:
        name = re.sub(old, new, name)
    return name


def _loaded(source: str | Path | PreTrainedModel) -> PreTrainedModel:
    return source if isinstance(source, PreTrainedModel) else AutoModelForCausalLM.from_pretrained(source)


def _new_model(config: DogeConfig, like: PreTrainedModel, seed: int) -> DogeForCausalLM:
    """A new model in the dtype, device and settings of another; the caller's random state is left as it was."""
    config._attn_implementation = like.config._attn_implementation
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DogeForCausalLM(config)
    model.generation_config = like.generation_config
    torch.nn.Module.to(model, device=like.device, dtype=like.dtype)
    return model.train(like.training)


def _take_over(model: DogeForCausalLM, weights: dict[str, Tensor], new: Iterable[str]) -> None:
    """Load the weights; only those whose name contains one of `new` may stay as they are.

    Raises:
        ValueError: other weights are missing, or some have no place.
    """
    try:
        missing, unexpected = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise ValueError(f"the weights do not fit the configuration: {' '.join(str(error).split())[:300]}") from error
    missing = [name for name in missing if not any(part in name for part in new)]
    if missing or unexpected:
        names = ", ".join((missing + unexpected)[:3])
        raise ValueError(f"weights are missing or have no place in a Doge of this configuration: {names}...")


__all__ = [
    "export_remote_code",
    "from_llama",
    "obstacle_for_llama",
    "obstacle_for_transformers",
    "read_doge",
    "share_scores",
    "split_scores",
    "upcycle",
]
