"""Hints for torch.compile, which fuses all that it can and thereby works some numbers out again for every pixel."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.library.custom_op("deeplense::hold", mutates_args=())
def _hold(numbers: Tensor) -> Tensor:
    """The same numbers: an operation that the compiler does not look into, so that they are there before it goes on."""
    return numbers.clone()


@_hold.register_fake
def _(numbers: Tensor) -> Tensor:
    return torch.empty_like(numbers)


_hold.register_autograd(lambda context, gradient: gradient)


def hold(numbers: Tensor) -> Tensor:
    """``numbers``; in compiled code, worked out and stored at this point instead of inside of what uses them."""
    return _hold(numbers) if torch.compiler.is_compiling() else numbers
