"""What begins either half of a layer: RMSNorm of the stream, and beside it the stream times its residual's weight.

`normed_residual` leaves the forward to torch's compiler, which fuses it with what stands around it, and makes the
gradients of all three inputs in one pass over memory, where the compiler reads everything again for the weights'.
`naive_normed_residual` is the definition.
"""

from torch import Tensor

from small_doge.ops.normed_residual.naive import naive_normed_residual

__all__ = ["naive_normed_residual", "normed_residual"]


def normed_residual(x: Tensor, weight: Tensor, residual: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`naive_normed_residual` with its gradient by Triton."""
    from small_doge.ops.normed_residual.triton_backward import triton_normed_residual

    return triton_normed_residual(x, weight, residual, eps)
