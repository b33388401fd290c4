"""What the losses over pairs share: checks of their arguments, and the smoothed logistic loss."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from onebase.objectives._shapes import check_rank, check_same_shape


def smoothed(margin: Tensor, label_smoothing: float) -> Tensor:
    """-(1 - e) log sigmoid(margin) - e log sigmoid(-margin), e = label_smoothing."""
    return -(1 - label_smoothing) * F.logsigmoid(margin) - label_smoothing * F.logsigmoid(-margin)


def check_flat(**tensors: Tensor) -> None:
    """Checks that all tensors are flat and of one shape, one entry per pair or completion.

    Raises:
        ValueError: naming the first that is not, or that differs in shape.
    """
    check_rank(1, **tensors)
    check_same_shape(**tensors)


def check_lengths(**lengths: Tensor) -> None:
    """Checks that all lengths are 1 or more: a mean over no tokens is undefined.

    Only on a CPU: a GPU would have to be waited for.

    Raises:
        ValueError: naming the first that is not, and its place.
    """
    for name, values in lengths.items():
        if values.is_cpu and not (values >= 1).all():
            place = int((~(values >= 1)).nonzero()[0])
            raise ValueError(
                f"{name} holds {values[place].item()} at place {place}; it must be 1 or more: leave out completions "
                "without counted tokens"
            )


def check_beta(beta: float) -> None:
    """Checks that beta is above 0 and finite.

    Raises:
        ValueError: if it is not.
    """
    if not (math.isfinite(beta) and beta > 0):
        raise ValueError(f"beta {beta} must be above 0, and finite")


def check_label_smoothing(label_smoothing: float) -> None:
    """Checks that the share of flipped labels lies in [0, 0.5].

    Raises:
        ValueError: if it does not.
    """
    if not 0 <= label_smoothing <= 0.5:
        raise ValueError(f"label_smoothing {label_smoothing} must lie in [0, 0.5]")
