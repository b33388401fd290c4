"""Shape checks shared by the objectives: a mismatch is an error that names the tensor, not a silent broadcast."""

from __future__ import annotations

import torch
from torch import Tensor


def check_same_shape(**tensors: Tensor | None) -> None:
    """Checks that all tensors have the shape of the first; None stands for one not given.

    Raises:
        ValueError: naming the first that differs.
    """
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    first, *others = given
    for name in others:
        if given[name].shape != given[first].shape:
            shapes = f"{name} has shape {list(given[name].shape)}, {first} has {list(given[first].shape)}"
            raise ValueError(f"{shapes}; they must be equal")


def check_rank(rank: int, **tensors: Tensor) -> None:
    """Checks that all tensors have `rank` dimensions.

    Raises:
        ValueError: naming the first that does not.
    """
    for name, tensor in tensors.items():
        if tensor.dim() != rank:
            raise ValueError(f"{name} has shape {list(tensor.shape)}; it must have {rank} dimension(s)")


def check_mask(**masks: Tensor | None) -> None:
    """Checks that all masks are bool: an integer mask would index or multiply where a bool one selects.

    Raises:
        ValueError: naming the first that is not.
    """
    for name, mask in masks.items():
        if mask is not None and mask.dtype != torch.bool:
            raise ValueError(f"{name} has dtype {mask.dtype}; it must be torch.bool, True on what counts")
