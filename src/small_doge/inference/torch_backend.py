"""A model in torch behind an engine: its sessions and its hidden states."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from small_doge.inference.model_slots import ModelSlots
from small_doge.inference.slots import SlotSession
from small_doge.inference.torch_slots import TorchSlots
from small_doge.models.doge.modeling_doge import DogeForCausalLM
from small_doge.models.doge.rotary_doge import STATIC_ROPES

LENGTH_STEP = 256


class TorchBackend:
    """A model in torch, on any device.

    Args:
        model: A causal language model; a Doge is decoded by `TorchSlots`, any other by `ModelSlots`.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model.eval()
        self._kept: TorchSlots | None = None

    def new_session(self, batch: int, longest: int | None = None) -> SlotSession:
        """Rows for `batch` sequences. With `longest`, the rows of the call before serve again if they fit: fusing the
        weights and capturing graphs takes longer than a short answer.
        """
        if not served_by_slots(self.model):
            return ModelSlots(self.model, batch)
        assert isinstance(self.model, DogeForCausalLM)
        if longest is None:
            return TorchSlots(self.model, batch)
        kept = self._kept
        if kept is None or kept.batch < batch or kept.max_length < longest:
            self._kept = None  # the old one's memory first
            self._kept = kept = TorchSlots(self.model, batch, -(-longest // LENGTH_STEP) * LENGTH_STEP)
        kept.reset(range(kept.batch))
        return kept

    @torch.inference_mode()
    def hidden(self, prompts: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        """The last hidden states [T, d] of each prompt."""
        ids = [torch.tensor([list(prompt)], device=self.model.device) for prompt in prompts]
        return [self.model.base_model(input_ids=row)[0][0].float().cpu().numpy() for row in ids]


def served_by_slots(model: PreTrainedModel) -> bool:
    """Whether `TorchSlots` computes this model: a Doge whose rotary frequencies and routing hang on no other token."""
    if not isinstance(model, DogeForCausalLM):
        return False
    return model.model.rotary_emb.rope_type in STATIC_ROPES and not (
        model.config.is_moe and model.config.legacy_routing
    )
