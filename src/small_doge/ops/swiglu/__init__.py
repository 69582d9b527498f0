"""silu(gate) * up from one product that holds both side by side (arXiv 2002.05202).

`swiglu` is one Triton kernel each way whose output is kept for the product that comes after. torch's compiler makes it
again in backward, which moves six numbers where five are enough. `naive_swiglu` is the definition.
"""

from torch import Tensor

from small_doge.ops.swiglu.naive import naive_swiglu

__all__ = ["naive_swiglu", "swiglu"]


def swiglu(joint: Tensor) -> Tensor:
    """`naive_swiglu` on a GPU with Triton, with its gradient: [..., f] from [..., 2f]."""
    from small_doge.ops.swiglu.triton_swiglu import triton_swiglu

    return triton_swiglu(joint)
