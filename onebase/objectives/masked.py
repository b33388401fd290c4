"""Means, variances and whitening over a mask, and conversion between flat `[M]` and padded `[N, C]` tokens.

A mask is True on entries that count. Masked entries are never read: NaN or infinity there changes no value and no
gradient. Nothing here reduces across processes; gather first if you mean the whole batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from onebase.objectives._shapes import check_mask, check_rank, check_same_shape

EPSILON = 1e-8
"""Added to a variance under the square root, so that constant values give 0 instead of NaN."""


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of the values under True.

    mean = sum_i m_i v_i / sum_i m_i

    Args:
        values: any shape.
        mask: same shape, bool.

    Returns:
        A tensor without dimensions.

    Raises:
        ValueError: if the shapes differ, the mask is not bool, or no entry is True.
    """
    _check_masked(values, mask)
    return torch.where(mask, values, 0).sum() / mask.sum()


def masked_variance(values: Tensor, mask: Tensor) -> Tensor:
    """Population variance of the values under True: divided by n, not n - 1.

    variance = sum_i m_i (v_i - mean)^2 / sum_i m_i

    Args:
        values: any shape.
        mask: same shape, bool.

    Returns:
        A tensor without dimensions.

    Raises:
        ValueError: if the shapes differ, the mask is not bool, or no entry is True.
    """
    # Zeroed before squaring: the slope of a square at NaN is NaN, and 0 times that would still be NaN.
    return masked_mean(torch.where(mask, values - masked_mean(values, mask), 0).square(), mask)


def whiten(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Shifts and scales the values under True to mean 0 and variance 1.

    w_i = (v_i - mean) / sqrt(variance + 1e-8), population variance

    Args:
        values: any shape.
        mask: same shape, bool; None counts every entry.

    Returns:
        Same shape as `values`, 0 where masked.

    Raises:
        ValueError: if the shapes differ, the mask is not bool, or no entry is True.
    """
    mask = torch.ones_like(values, dtype=torch.bool) if mask is None else mask
    # The mean is subtracted a second time: in float32 the first pass leaves an offset when the mean is large against
    # the spread.
    centred = torch.where(mask, values - masked_mean(values, mask), 0)
    centred = torch.where(mask, centred - masked_mean(centred, mask), 0)
    return centred * (masked_mean(centred.square(), mask) + EPSILON).rsqrt()


def scale_to_unit_variance(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Scales the values under True to variance 1 around their mean, which stays the same.

    s_i = (v_i - mean) / sqrt(variance + 1e-8) + mean, population variance

    Args:
        values: any shape.
        mask: same shape, bool; None counts every entry.

    Returns:
        Same shape as `values`, 0 where masked.

    Raises:
        ValueError: if the shapes differ, the mask is not bool, or no entry is True.
    """
    mask = torch.ones_like(values, dtype=torch.bool) if mask is None else mask
    return torch.where(mask, whiten(values, mask) + masked_mean(values, mask), 0)


def completion_sum(values: Tensor, completion_index: Tensor, num_completions: int) -> Tensor:
    """Sum of the token values of each completion.

    S_n = sum of v_m over the m with completion_index_m = n

    Args:
        values: `[M]`, all completions laid end to end.
        completion_index: `[M]` int64 in 0..N-1.
        num_completions: N.

    Returns:
        `[N]`, 0 for a completion without tokens.

    Raises:
        ValueError: if the arguments are not flat or differ in shape.
    """
    check_rank(1, values=values, completion_index=completion_index)
    check_same_shape(values=values, completion_index=completion_index)
    return values.new_zeros(num_completions).index_add(0, completion_index, values)


def completion_mean(values: Tensor, completion_index: Tensor, num_completions: int) -> Tensor:
    """Mean of the token values of each completion.

    Args:
        values: `[M]`, all completions laid end to end.
        completion_index: `[M]` int64 in 0..N-1.
        num_completions: N.

    Returns:
        `[N]`, 0 for a completion without tokens.

    Raises:
        ValueError: if the arguments are not flat or differ in shape.
    """
    sums = completion_sum(values, completion_index, num_completions)
    counts = completion_sum(torch.ones_like(values), completion_index, num_completions)
    return sums / counts.clamp_min(1)


def pad_completions(values: Tensor, completion_index: Tensor, num_completions: int) -> tuple[Tensor, Tensor]:
    """Lays the flat token values out as one row per completion, from column 0, padded with 0.

    Args:
        values: `[M]`, all completions laid end to end.
        completion_index: `[M]` int64 in 0..N-1, never decreasing.
        num_completions: N.

    Returns:
        padded `[N, C]`, C the length of the longest, and mask `[N, C]` bool, True on real tokens. A completion without
        tokens is a row of False. `flatten_completions` is the exact inverse.

    Raises:
        ValueError: if the arguments are not flat or differ in shape, or the index decreases or leaves 0..N-1.
    """
    check_rank(1, values=values, completion_index=completion_index)
    check_same_shape(values=values, completion_index=completion_index)
    if (completion_index[1:] < completion_index[:-1]).any():
        raise ValueError("completion_index decreases; completions must be laid end to end in order")
    # In order, so checking both ends checks all.
    for end in torch.cat((completion_index[:1], completion_index[-1:])).tolist():
        if not 0 <= end < num_completions:
            raise ValueError(f"completion_index holds {end}; it must lie in 0..{num_completions - 1}")
    counts = torch.bincount(completion_index, minlength=num_completions)  # [N]
    num_columns = int(counts.max()) if values.numel() else 0
    starts = counts.cumsum(0) - counts
    column = torch.arange(values.numel(), device=values.device) - starts[completion_index]  # [M]
    padded = values.new_zeros(num_completions, num_columns).index_put((completion_index, column), values)
    mask = torch.arange(num_columns, device=values.device) < counts.unsqueeze(1)  # [N, C]
    return padded, mask


def flatten_completions(padded: Tensor, mask: Tensor) -> Tensor:
    """Takes the real tokens out of the rows and lays all completions end to end.

    Args:
        padded: `[N, C]`.
        mask: `[N, C]` bool, True on real tokens.

    Returns:
        `[M]`, M the number of True entries, row after row.

    Raises:
        ValueError: if the arguments are not `[N, C]`, differ in shape, or the mask is not bool.
    """
    check_rank(2, padded=padded, mask=mask)
    check_same_shape(padded=padded, mask=mask)
    check_mask(mask=mask)
    return padded[mask]


def _check_masked(values: Tensor, mask: Tensor) -> None:
    check_same_shape(values=values, mask=mask)
    check_mask(mask=mask)
    if not mask.any():
        raise ValueError(f"mask {list(mask.shape)} has no True entry; a mean over nothing is undefined")
