"""transformers' causal language model loss, from the hidden states: the logits never exist."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from small_doge.ops.linear_cross_entropy import linear_cross_entropy


def fused_causal_loss(
    hidden_BTd: Tensor, weight_Vd: Tensor, labels_BT: Tensor | None, items: Tensor | int | None
) -> Tensor:
    """The cross-entropies of the next tokens, summed and divided by `items`, or by the number of predicted tokens.

    Args:
        hidden_BTd: What the head sees.
        weight_Vd: The head.
        labels_BT: Token ids, -100 where a token is not to be predicted; shifted here.
        items: transformers' `num_items_in_batch`: what the micro-batches of a step are divided by together.

    Raises:
        ValueError: no labels.
    """
    if labels_BT is None:
        raise ValueError("loss_only needs labels.")
    # The last position predicts nothing; shifting the labels and not the states keeps these whole.
    shifted = F.pad(labels_BT[:, 1:], (0, 1), value=-100).flatten()
    total = linear_cross_entropy(hidden_BTd.flatten(0, 1), weight_Vd, shifted)
    return total / ((shifted != -100).sum() if items is None else items)
