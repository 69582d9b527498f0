"""Triton's interpreter as the kernels' tests need it. Import this before anything that imports Triton."""

import os
import warnings

os.environ["TRITON_INTERPRET"] = "1"

import torch
import triton.runtime.interpreter as interpreter


def prepare() -> None:
    """One thread, NaN in memory that nobody wrote, and a mended interpreter."""
    # Triton 3.6 calls int() on arrays of one element, which NumPy 2.4 refuses.
    patch = interpreter._patch_lang_tensor

    def patched(tensor, scope):
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patched
    warnings.filterwarnings("ignore", category=RuntimeWarning)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)
