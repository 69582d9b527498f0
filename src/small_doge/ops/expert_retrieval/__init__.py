"""Retrieval of experts by product keys, and their output: the ops under the cross domain mixture of experts.

E = n * n experts are each one row of a down table and one of an up table. A token's router gives two lists of n scores;
`search_experts` finds the k experts of highest sum without forming the n * n sums; `expert_dots` and `expert_sum` give
sum over them of weight_e * activation(x . down_e) * up_e without forming [tokens, k, d]: by gathered rows (`gather`),
or on a GPU by products with the whole tables while these are small (`dense`); where a dense MLP stands beside them, its
products and theirs are the same two, and `mixture_hidden` is what lies between. `naive` is the definition.
"""

from torch import Tensor

from small_doge.ops.expert_retrieval.balance import ExpertLoad, balance_loss, load_statistics
from small_doge.ops.expert_retrieval.dense import dense_dots, dense_sum
from small_doge.ops.expert_retrieval.gather import gathered_dots, gathered_sum
from small_doge.ops.expert_retrieval.naive import naive_hidden, naive_mixture, naive_search
from small_doge.ops.expert_retrieval.search import search_experts

__all__ = [
    "ExpertLoad",
    "balance_loss",
    "expert_dots",
    "expert_sum",
    "load_statistics",
    "mixture_hidden",
    "naive_hidden",
    "naive_mixture",
    "naive_search",
    "prefers_dense",
    "search_experts",
]

DENSE_EXPERTS = 4096
"""Most experts whose products with every token are cheaper, on a GPU, than fetching the rows of the chosen ones."""


def expert_dots(x_Nd: Tensor, table_Ed: Tensor, index_Nk: Tensor) -> Tensor:
    """The dot product of each of N tokens with each of its k rows of the table: [N, k]."""
    return (dense_dots if prefers_dense(table_Ed, *index_Nk.shape) else gathered_dots)(x_Nd, table_Ed, index_Nk)


def expert_sum(weight_Nk: Tensor, table_Ed: Tensor, index_Nk: Tensor) -> Tensor:
    """The weighted sum of each token's k rows of the table: [N, d]; a token's rows are distinct."""
    return (dense_sum if prefers_dense(table_Ed, *index_Nk.shape) else gathered_sum)(weight_Nk, table_Ed, index_Nk)


def mixture_hidden(joint_NF: Tensor, scores_Nk: Tensor, index_Nk: Tensor, experts: int) -> Tensor:
    """`naive_hidden` on a GPU with Triton, with its gradients: [N, f + E] from [N, 2f + E]."""
    from small_doge.ops.expert_retrieval.triton_hidden import triton_hidden

    return triton_hidden(joint_NF, scores_Nk, index_Nk, experts)


def prefers_dense(table_Ed: Tensor, tokens: int, top_k: int) -> bool:
    """Whether `expert_dots` and `expert_sum` take products with the whole table for so many tokens."""
    # Few tokens (decoding) touch fewer rows than the table has.
    return table_Ed.is_cuda and table_Ed.shape[0] <= DENSE_EXPERTS and tokens * top_k >= table_Ed.shape[0]
