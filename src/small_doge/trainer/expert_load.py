"""How a mixture's tokens spread over its experts while it trains."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from small_doge.ops.expert_retrieval import load_statistics


class ExpertLoadLog(TrainerCallback):
    """Adds the load of the last micro-batch to what is logged: `experts_used`, `experts_entropy`, `experts_busiest`.

    The first two are means over the layers, the last is the highest of all (`small_doge.ops.expert_retrieval`). It
    has the decoder return its router logits, which adds no balance loss, and stands before the callbacks that write
    logs down.
    """

    def __init__(self) -> None:
        self._seen: tuple[list[Tensor], Tensor | None] | None = None
        self._hooks: list[Any] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        self._top_k = model.config.num_experts_per_tok
        decoder = model.get_decoder()
        self._hooks = [
            decoder.register_forward_pre_hook(self._ask, with_kwargs=True),
            decoder.register_forward_hook(self._remember, with_kwargs=True),
        ]

    @staticmethod
    def _ask(decoder: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, kwargs | {"output_router_logits": True}

    def _remember(self, decoder: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        if decoder.training:
            self._seen = [scores_2Nn.detach() for scores_2Nn in output.router_logits], kwargs.get("attention_mask")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not logs or "loss" not in logs or self._seen is None:
            return
        scores, mask = self._seen
        valid_N = None if mask is None else mask.bool().flatten()
        loads = [load_statistics(scores_2Nn, self._top_k, valid_N) for scores_2Nn in scores]
        logs["experts_used"] = sum(load.used for load in loads) / len(loads)
        logs["experts_entropy"] = sum(load.entropy for load in loads) / len(loads)
        logs["experts_busiest"] = max(load.busiest for load in loads)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        self._seen = None
