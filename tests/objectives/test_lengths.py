"""Normalisers and the penalty for overlong completions, against their definitions."""

from __future__ import annotations

import pytest
import torch

from onebase.objectives.lengths import overlong_penalty, token_weights

LENGTHS = torch.tensor([3, 1, 4])


def test_each_normaliser_is_its_definition() -> None:
    losses = torch.arange(1.0, 9.0)
    per_completion = [losses[:3], losses[3:4], losses[4:]]

    def total(normalizer: str) -> float:
        weights = token_weights(LENGTHS, normalizer, max_length=10)  # type: ignore[arg-type]
        assert weights.dtype == torch.float32 and weights.shape == (8,)
        return float((weights * losses).sum())

    assert total("completion") == pytest.approx(sum(float(part.mean()) for part in per_completion) / 3)
    assert total("token") == pytest.approx(float(losses.mean()))
    assert total("constant") == pytest.approx(float(losses.sum()) / (3 * 10))


def test_lengths_outside_the_limit_are_refused() -> None:
    for lengths in (torch.tensor([0, 3]), torch.tensor([3, 11])):
        with pytest.raises(ValueError, match=r"lengths from \d to \d+; they lie in 1..10"):
            token_weights(lengths, "constant", max_length=10)


def test_the_overlong_penalty_rises_over_the_buffer_to_one() -> None:
    found = overlong_penalty(torch.tensor([1, 6, 7, 8, 10]), max_length=10, buffer=4)
    assert found.tolist() == [0.0, 0.0, 0.25, 0.5, 1.0]
    assert overlong_penalty(torch.tensor([5]), max_length=10, buffer=10).tolist() == [0.5]
    for buffer in (0, 11):
        with pytest.raises(ValueError, match=f"buffer {buffer} must lie in 1..10"):
            overlong_penalty(LENGTHS, max_length=10, buffer=buffer)
