"""How the lengths of completions enter a loss: what its tokens are divided by, and a penalty for being too long."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Normalizer = Literal["completion", "token", "constant"]


@torch.no_grad()
def token_weights(lengths: Tensor, normalizer: Normalizer, *, max_length: int) -> Tensor:
    """What each token's loss is multiplied by before all are summed over an optimizer step.

    With N completions of lengths |y_i|:

        completion   1 / (N |y_i|)         a mean over completions of means over tokens (Shao et al. 2024, eq. 3)
        token        1 / sum_i |y_i|       all tokens count alike (DAPO, Yu et al. 2025, section 3.3)
        constant     1 / (N max_length)    no completion's tokens count less for being many (Dr. GRPO, Liu et al. 2025)

    The lengths are those of the whole optimizer step, so the weights do not depend on its microbatches.

    Args:
        lengths: `[N]` int64, tokens of each completion, at least 1.
        normalizer: one of the three.
        max_length: tokens a completion may have at most.

    Returns:
        `[M]` float32, completions end to end.

    Raises:
        ValueError: if a length is below 1 or above `max_length`.
    """
    if lengths.numel() and not (1 <= int(lengths.min()) and int(lengths.max()) <= max_length):
        raise ValueError(f"lengths from {int(lengths.min())} to {int(lengths.max())}; they lie in 1..{max_length}")
    match normalizer:
        case "completion":
            of_completion = 1.0 / (lengths.numel() * lengths.double())
        case "token":
            of_completion = torch.full(lengths.shape, 1.0 / int(lengths.sum()), dtype=torch.float64)
        case "constant":
            of_completion = torch.full(lengths.shape, 1.0 / (lengths.numel() * max_length), dtype=torch.float64)
    return of_completion.float().repeat_interleave(lengths)


@torch.no_grad()
def overlong_penalty(lengths: Tensor, *, max_length: int, buffer: int) -> Tensor:
    """What a completion's score loses for coming near the length limit, in [0, 1].

        0                                       |y| <= max_length - buffer
        (|y| - (max_length - buffer)) / buffer  above that: 1 at the limit
    (soft overlong punishment of DAPO, Yu et al. 2025, eq. 13, sign flipped)

    Args:
        lengths: `[N]`, tokens of each completion.
        max_length: tokens a completion may have at most.
        buffer: over how many last tokens the penalty rises, 1 to max_length.

    Returns:
        `[N]` float32.

    Raises:
        ValueError: if the buffer is not within 1..max_length.
    """
    if not 1 <= buffer <= max_length:
        raise ValueError(f"buffer {buffer} must lie in 1..{max_length}")
    return ((lengths.float() - (max_length - buffer)) / buffer).clamp(0, 1)
