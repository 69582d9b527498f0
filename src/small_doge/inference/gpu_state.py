"""What a session keeps on the device: the bounded cache and, for each row, where its sequence and its draw stand.

Everything is allocated once and changed in place, so that a captured CUDA graph may be replayed for ever.
Shapes: L layers, B rows, G scores a token (the key/value heads, or the query heads with `score_per_query_head`),
W slots, D head size, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from small_doge.models.doge.cache_doge import DogeCache
from small_doge.models.doge.configuration_doge import DogeConfig
from small_doge.ops.dynamic_mask_attention import round_score

MAX_STOPS = 8
"""Stop ids that one row can have."""


class SlotState:
    """The tensors of `rows` sequences of at most `slots` cached keys a head.

    A row that has seen n tokens fills the slots 0 .. min(n, W) - 1, in no order once a key has left; `positions` tells.
    """

    def __init__(self, config: DogeConfig, rows: int, slots: int, dtype: torch.dtype, device: torch.device) -> None:
        assert config.num_key_value_heads is not None
        self.config = config
        self.rows = rows
        self.slots = slots
        self.heads = config.num_attention_heads if config.score_per_query_head else config.num_key_value_heads
        layers, size, vocab = config.num_hidden_layers, config.head_size, config.vocab_size

        def new(*shape: int, dtype: torch.dtype = torch.int32, fill: float = 0) -> Tensor:
            return torch.full(shape, fill, dtype=dtype, device=device)

        cache = (layers, rows, self.heads, slots)
        self.keys = new(*cache, size, dtype=dtype)
        self.values = new(*cache, size, dtype=dtype)
        self.scores = new(*cache, dtype=torch.float32)
        self.positions = new(*cache)
        # The slot that the next token takes once the row is full, for even and for odd lengths: the kernels that read
        # one entry write the other.
        self.victims = new(2, layers, rows, self.heads)
        self.length = new(rows)

        self.token = new(rows)  # drawn, not yet fed
        self.logits = new(rows, vocab, dtype=torch.float32)  # of the last position, where no token was drawn since
        self.seen = new(rows, vocab, dtype=torch.uint8)

        self.active = new(rows)  # 1 while the row draws
        self.stopped = new(rows)
        self.count = new(rows)  # tokens drawn in this call
        self.budget = new(rows)
        self.stops = new(rows, MAX_STOPS, fill=-1)
        self.seed = new(rows)
        self.temperature = new(rows, dtype=torch.float32)
        self.top_k = new(rows)
        self.top_p = new(rows, dtype=torch.float32, fill=1)
        self.min_p = new(rows, dtype=torch.float32)
        self.penalty = new(rows, dtype=torch.float32, fill=1)
        self.tokens = new(rows, 0)  # drawn in this call; grown by `reserve`
        self.log_probs = new(rows, 0, dtype=torch.float32)

    def reserve(self, tokens: int) -> bool:
        """Room for that many drawn tokens a call; True if the buffers moved, so that graphs over them are stale."""
        if tokens <= self.tokens.shape[1]:
            return False
        size = 1 << (tokens - 1).bit_length()
        self.tokens = self.tokens.new_zeros(self.rows, size)
        self.log_probs = self.log_probs.new_zeros(self.rows, size)
        return True

    def reset(self, rows: Tensor) -> None:
        """Empty the rows [n]."""
        self.length[rows] = 0
        self.seen[rows] = 0

    def copy(self, source: Tensor, target: Tensor) -> None:
        """Make each row target[i] a copy of source[i], both [n]."""
        for name in ("keys", "values", "scores", "positions"):
            cache = getattr(self, name)
            cache[:, target] = cache[:, source]
        self.victims[:, :, target] = self.victims[:, :, source]
        for name in ("length", "token", "logits", "seen"):
            per_row = getattr(self, name)
            per_row[target] = per_row[source]

    def store(self, cache: DogeCache, rows: Tensor, lengths: Tensor) -> None:
        """Take the rows [n] over from a prefill, where row i of `cache` has seen lengths[i] real tokens."""
        for index, layer in enumerate(cache.layers):
            found: tuple[Tensor, ...] = (layer.keys, layer.values, layer.scores, layer.positions)
            if layer._has_padding:
                # Padding that is still in the cache goes to the end.
                order = (~layer.valid).byte().argsort(dim=-1, stable=True)[:, None].expand(found[2].shape)
                wide = order[..., None].expand_as(layer.keys)
                found = (found[0].gather(2, wide), found[1].gather(2, wide), *(x.gather(2, order) for x in found[2:]))
            filled = min(found[2].shape[2], self.slots)
            for kept, new in zip((self.keys, self.values, self.scores, self.positions), found, strict=True):
                kept[index, rows, :, :filled] = new[:, :, :filled].to(kept.dtype)
        self.length[rows] = lengths.to(self.length)
        self.victims[:, :, rows] = self.lowest(rows)

    def load(self, row: int, length: int) -> DogeCache:
        """The row as a `DogeCache` of one sequence, to go on from with a prefill."""
        cache = DogeCache(self.config)
        filled = min(length, self.slots)
        for index, layer in enumerate(cache.layers):
            order = self.positions[index, row, :, :filled].argsort(-1)
            wide = order[..., None].expand(-1, -1, self.keys.shape[-1])
            keys = self.keys[index, row, :, :filled].gather(1, wide)[None]
            values = self.values[index, row, :, :filled].gather(1, wide)[None]
            layer.lazy_initialization(keys, values)
            layer.keys, layer.values = keys, values
            layer.scores = self.scores[index, row, :, :filled].gather(1, order)[None]
            layer.positions = self.positions[index, row, :, :filled].gather(1, order)[None].long()
            layer.valid = torch.ones(1, filled, dtype=torch.bool, device=keys.device)
            layer.seen = length
        return cache

    def lowest(self, rows: Tensor) -> Tensor:
        """The slot of the key that leaves next [L, n, G]: of the lowest rounded score the oldest."""
        comparable, positions = round_score(self.scores[:, rows]), self.positions[:, rows]
        tied = comparable == comparable.amin(-1, keepdim=True)
        return positions.masked_fill(~tied, torch.iinfo(torch.int32).max).argmin(-1).to(torch.int32)

    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(t.numel() * t.element_size() for t in vars(self).values() if isinstance(t, Tensor))
