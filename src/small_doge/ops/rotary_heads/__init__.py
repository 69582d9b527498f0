"""From one product to the heads of attention: queries and keys normalized and rotated, values as they are.

`normed_rotary_heads` is one Triton kernel each way where torch's compiler makes about ten, with the gradient of the
whole product written in place; `naive_normed_rotary_heads` is the definition. `rotate` is the rotation alone.
"""

from small_doge.ops.rotary_heads.naive import naive_normed_rotary_heads, rotate

__all__ = ["naive_normed_rotary_heads", "normed_rotary_heads", "rotate"]


def normed_rotary_heads(joint_BTF, query_weight_D, key_weight_D, cos_BTD, sin_BTD, *, heads: int, eps: float):
    """`naive_normed_rotary_heads` on a GPU with Triton, with gradients for the product and both weights.

    Args:
        joint_BTF: [B, T, (H + 2G) * D] contiguous: the queries of H heads, then G heads' keys, then their values.
        query_weight_D: The weight of the queries' RMSNorm.
        key_weight_D: That of the keys'.
        cos_BTD: [B or 1, T, D], each half the same; the positions' cosines.
        sin_BTD: Their sines.
        heads: H; G follows.
        eps: Of both norms.

    Returns:
        Queries [B, T, H, D], keys [B, T, G, D] and values [B, T, G, D].
    """
    from small_doge.ops.rotary_heads.triton_rotary import triton_normed_rotary_heads

    return triton_normed_rotary_heads(joint_BTF, query_weight_D, key_weight_D, cos_BTD, sin_BTD, heads, eps)
