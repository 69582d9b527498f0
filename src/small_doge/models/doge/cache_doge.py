"""A cache of constant size: dynamic mask attention never needs more than w keys a head."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from small_doge.models.doge.configuration_doge import DogeConfig
from small_doge.ops.dynamic_mask_attention import round_score


class DogeCacheLayer(CacheLayerMixin):
    """Keys, values and scores of one layer: at most `keep_window` slots for each key/value head.

    A key's score never changes and a prefix only grows, so of w + 1 keys the one of lowest score (the oldest, where
    scores tie) can leave for ever, and what stays gives the same attention as the whole past would. Scores are stored
    beside their keys because prefill and decode would round them differently.

    Slots stand in order of position until the first eviction by a single token; from then on `positions` tells.
    """

    is_sliding = False
    is_croppable = True
    # The base class has None before the first update; so does this one, but nothing reads them then.
    keys: Tensor
    values: Tensor
    scores: Tensor
    positions: Tensor
    valid: Tensor

    def __init__(self, keep_window: int) -> None:
        super().__init__()
        self.keep_window = keep_window
        self.seen = 0
        self._in_order = True
        self._has_padding = False

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        batch, heads, _, size = key_states.shape
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys = key_states.new_empty(batch, heads, 0, size)
        self.values = value_states.new_empty(batch, heads, 0, size)
        self.scores = key_states.new_empty(batch, heads, 0, dtype=torch.promote_types(self.dtype, torch.float32))
        self.positions = key_states.new_empty(batch, heads, 0, dtype=torch.int64)
        self.valid = key_states.new_empty(batch, 0, dtype=torch.bool)
        self.is_initialized = True

    def update(  # type: ignore[override]
        self,
        key_states: Tensor,
        value_states: Tensor,
        score: Tensor,
        valid: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Take in T new tokens, and return what their queries attend to.

        Args:
            key_states, value_states: [B, G, T, D].
            score: [B, G, T] in fp32 (fp64 for a model in fp64).
            valid: [B, T] bool, False for padding; all valid if not given.

        Returns:
            keys and values [B, G, S, D], scores [B, G, S] and validity [B, S] (None: all valid). For T > 1 these are
            the cached slots and the new keys, in order of position; for T = 1 they are the slots after the eviction.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        batch, heads, length, _ = key_states.shape
        self._has_padding |= valid is not None
        if valid is None:
            valid = torch.ones(batch, length, dtype=torch.bool, device=key_states.device)
        new_positions = torch.arange(self.seen, self.seen + length, device=key_states.device).expand(
            batch, heads, length
        )
        self.seen += length

        if length == 1 and self.keys.shape[2] == self.keep_window:
            self._replace_lowest(key_states, value_states, score, new_positions, valid)
            return self.keys, self.values, self.scores, self._padding_mask()

        self._sort_by_position()
        self.keys = torch.cat((self.keys, key_states), 2)
        self.values = torch.cat((self.values, value_states), 2)
        self.scores = torch.cat((self.scores, score), 2)
        self.positions = torch.cat((self.positions, new_positions), 2)
        self.valid = torch.cat((self.valid, valid), 1)
        seen_by_the_queries = (self.keys, self.values, self.scores, self._padding_mask())
        if self.keys.shape[2] > self.keep_window:
            self._keep_the_highest()
        return seen_by_the_queries

    def _padding_mask(self) -> Tensor | None:
        return self.valid if self._has_padding else None

    def _comparable(self, scores: Tensor, valid: Tensor) -> Tensor:
        # Padding loses against every key, so that it leaves first.
        return round_score(scores).masked_fill(~valid[:, None, :], float("-inf"))

    def _keep_the_highest(self) -> None:
        comparable = self._comparable(self.scores, self.valid)
        # A stable sort of the newest first lets the newer of two equal scores win.
        newest_first = comparable.flip(-1).sort(dim=-1, descending=True, stable=True).indices[..., : self.keep_window]
        kept = (comparable.shape[-1] - 1 - newest_first).sort(dim=-1).values
        self._gather(kept)
        # Padding leaves before any key does, the oldest first, so while any is left all heads hold the same slots.
        self.valid = self.valid.gather(1, kept[:, 0, :])

    def _replace_lowest(self, key: Tensor, value: Tensor, score: Tensor, position: Tensor, valid: Tensor) -> None:
        comparable = self._comparable(self.scores, self.valid)
        lowest = comparable.amin(-1, keepdim=True)
        oldest = self.positions.masked_fill(comparable != lowest, torch.iinfo(torch.int64).max).argmin(-1, keepdim=True)
        stays_out = self._comparable(score, valid) < lowest
        slot = oldest[..., None].expand(-1, -1, 1, key.shape[-1])
        self.keys.scatter_(2, slot, torch.where(stays_out[..., None], self.keys.gather(2, slot), key))
        self.values.scatter_(2, slot, torch.where(stays_out[..., None], self.values.gather(2, slot), value))
        self.scores.scatter_(2, oldest, torch.where(stays_out, self.scores.gather(2, oldest), score))
        self.positions.scatter_(2, oldest, torch.where(stays_out, self.positions.gather(2, oldest), position))
        self.valid.scatter_(1, oldest[:, 0], torch.where(stays_out[:, 0], self.valid.gather(1, oldest[:, 0]), valid))
        self._in_order = False

    def _sort_by_position(self) -> None:
        if self._in_order:
            return
        order = self.positions.argsort(-1)
        self._gather(order)
        self.valid = self.valid.gather(1, order[:, 0, :])
        self._in_order = True

    def _gather(self, slots: Tensor) -> None:
        wide = slots[..., None].expand(*slots.shape, self.keys.shape[-1])
        self.keys, self.values = self.keys.gather(2, wide), self.values.gather(2, wide)
        self.scores, self.positions = self.scores.gather(2, slots), self.positions.gather(2, slots)

    def _map(self, change: Any) -> None:
        """Apply `change` to every tensor of the layer."""
        for name in ("keys", "values", "scores", "positions", "valid"):
            setattr(self, name, change(getattr(self, name)))

    def get_seq_length(self) -> int:
        """Number of tokens taken in, evicted ones included: the next token's position."""
        return self.seen

    def get_max_length(self) -> int:
        return -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.seen + query_length, 0

    def reset(self) -> None:
        self.is_initialized, self.seen, self._in_order, self._has_padding = False, 0, True, False

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last `-tokens_to_remove` tokens, as assisted generation does.

        Raises:
            ValueError: a positive number, or a key was evicted already, so that the past cannot be had back.
        """
        if tokens_to_remove > 0:
            raise ValueError(f"crop takes a number of tokens to remove as a negative integer, not {tokens_to_remove}.")
        if tokens_to_remove == 0 or not self.is_initialized:
            return
        if self.seen > self.keep_window:
            raise ValueError(
                f"the cache saw {self.seen} tokens and keeps {self.keep_window}, so it cannot go back: "
                "generate without an assistant, or raise keep_window_size."
            )
        self.seen += tokens_to_remove
        self._map(lambda t: t[:, : self.seen] if t.dim() == 2 else t[:, :, : self.seen])

    def reorder_cache(self, beam_idx: Tensor) -> None:
        if self.is_initialized:
            self._map(lambda t: t.index_select(0, beam_idx.to(t.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sequence `repeats` times along the batch."""
        if self.is_initialized:
            self._map(lambda t: t.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only the sequences `indices` of the batch."""
        if self.is_initialized:
            self._map(lambda t: t[indices])


class DogeCache(Cache):
    """The cache of a Doge model: `config.keep_window_size` slots for each layer and key/value head, at any length.

    Exact: a key that has dropped out of the window never returns, so decoding with this cache gives the logits of the
    whole past.
    """

    layers: list[DogeCacheLayer]  # type: ignore[assignment]

    def __init__(self, config: DogeConfig) -> None:
        super().__init__(layers=[DogeCacheLayer(config.keep_window_size) for _ in range(config.num_hidden_layers)])

    def update(  # type: ignore[override]
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """`DogeCacheLayer.update` of one layer."""
        return self.layers[layer_idx].update(key_states, value_states, *args, **kwargs)

    @property
    def slots(self) -> int:
        """Number of slots in use for each head: the tokens seen, up to the window."""
        layer = self.layers[0]
        return layer.keys.shape[2] if layer.is_initialized else 0

    def memory_bytes(self) -> int:
        """Bytes held by the cache's tensors."""
        tensors = [
            getattr(layer, name)
            for layer in self.layers
            if layer.is_initialized
            for name in ("keys", "values", "scores", "positions", "valid")
        ]
        return sum(t.numel() * t.element_size() for t in tensors)


def refuse_cache_while_checkpointing(model: Any, wants_cache: bool | None) -> None:
    """Raise ValueError where a cache is wanted of a model that computes its layers twice."""
    if wants_cache and model.training and model.gradient_checkpointing:
        raise ValueError(
            "gradient checkpointing computes layers twice while training, so there is no cache: "
            "call eval() before generating, or pass use_cache=False."
        )


__all__ = ["DogeCache", "DogeCacheLayer", "refuse_cache_while_checkpointing"]
