"""From one product to the heads of attention: queries and keys normalized and rotated, values as they are.

Beside them come a few dot products of each token's values, of which the scores of its keys are made.

`normed_rotary_heads` is one Triton kernel each way where torch's compiler makes about ten, with the gradient of the
whole product written in place; `naive_normed_rotary_heads` is the definition. `rotate` is the rotation alone.
"""

from small_doge.ops.rotary_heads.naive import naive_normed_rotary_heads, rotate

__all__ = ["naive_normed_rotary_heads", "normed_rotary_heads", "rotate"]


def normed_rotary_heads(
    joint_BTF, query_weight_D, key_weight_D, dot_weight_Sd, cos_BTD, sin_BTD, *, heads: int, eps: float
):
    """`naive_normed_rotary_heads` on a GPU with Triton, with gradients for the product and the weights.

    Args:
        joint_BTF: [B, T, (H + 2G) * D] contiguous: the queries of H heads, then G heads' keys, then their values.
        query_weight_D: The weight of the queries' RMSNorm.
        key_weight_D: That of the keys'.
        dot_weight_Sd: What a token's values, G * D numbers side by side, are multiplied with.
        cos_BTD: [B or 1, T, D], each half the same; the positions' cosines.
        sin_BTD: Their sines.
        heads: H; G follows.
        eps: Of both norms.

    Returns:
        Queries [B, T, H, D], keys [B, T, G, D], values [B, T, G, D] and dot products [B, T, S], these in fp32.
    """
    from small_doge.ops.rotary_heads.triton_rotary import triton_normed_rotary_heads

    weights = (query_weight_D, key_weight_D, dot_weight_Sd)
    return triton_normed_rotary_heads(joint_BTF, *weights, cos_BTD, sin_BTD, heads, eps)
