"""The experts' output by products with the whole table: more arithmetic than the choice needs, and none of it gathered.

On a GPU the product of a token with all of a few thousand rows takes less time than fetching sixteen of them: 65,536
tokens times the 1,024 experts of Doge-20M are 34 GFLOP, where the sixteen rows of each token are 0.5 GB. Memory is
O(N * E), which bounds E.
"""

from __future__ import annotations

from torch import Tensor


def dense_dots(x_Nd: Tensor, table_Ed: Tensor, index_Nk: Tensor) -> Tensor:
    """The dot product of each token with each of its k rows of the table: [N, k]; under autocast in its dtype."""
    return (x_Nd @ table_Ed.T).gather(1, index_Nk)


def dense_sum(weight_Nk: Tensor, table_Ed: Tensor, index_Nk: Tensor) -> Tensor:
    """The weighted sum of each token's k rows of the table: [N, d]; a token's rows are distinct."""
    spread_NE = weight_Nk.new_zeros(weight_Nk.shape[0], table_Ed.shape[0]).scatter(1, index_Nk, weight_Nk)
    return spread_NE @ table_Ed
