"""Retrieval of experts by product keys, and their output: the ops under the cross domain mixture of experts.

E = n * n experts are each one row of a down table and one of an up table. A token's router gives two lists of n scores;
`search_experts` finds the k experts of highest sum without forming the n * n sums; `expert_dots` and `expert_sum` give
sum over them of weight_e * activation(x . down_e) * up_e without forming [tokens, k, d]. `naive` is the definition.
"""

from small_doge.ops.expert_retrieval.balance import ExpertLoad, balance_loss, load_statistics
from small_doge.ops.expert_retrieval.gather import expert_dots, expert_sum
from small_doge.ops.expert_retrieval.naive import naive_mixture, naive_search
from small_doge.ops.expert_retrieval.search import search_experts

__all__ = [
    "ExpertLoad",
    "balance_loss",
    "expert_dots",
    "expert_sum",
    "load_statistics",
    "naive_mixture",
    "naive_search",
    "search_experts",
]
