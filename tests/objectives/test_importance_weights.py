"""Truncated importance weights against their definition, and what they correct."""

from __future__ import annotations

import pytest
import torch

from onebase.objectives.policy import truncated_importance_weights


def test_the_weight_is_the_ratio_up_to_the_cap() -> None:
    own = torch.tensor([0.5, 0.2, 0.9]).log().requires_grad_()
    found = truncated_importance_weights(own, torch.tensor([0.5, 0.4, 0.1]).log(), cap=2.0)
    assert found.tolist() == pytest.approx([1.0, 0.5, 2.0]) and not found.requires_grad


def test_weighted_samples_of_another_distribution_have_the_policys_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    policy, other = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.3, 0.4, 0.3])
    value = torch.tensor([4.0, -2.0, 5.0])
    drawn = torch.multinomial(other, 200_000, replacement=True, generator=generator)
    weights = truncated_importance_weights(policy[drawn].log(), other[drawn].log(), cap=2.0)
    assert float((weights * value[drawn]).mean()) == pytest.approx(float((policy * value).sum()), abs=0.02)
    assert abs(float(value[drawn].mean()) - float((policy * value).sum())) > 0.1


def test_a_cap_below_one_and_unequal_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="cap 0.5 must be 1 or more"):
        truncated_importance_weights(torch.zeros(2), torch.zeros(2), cap=0.5)
    with pytest.raises(ValueError, match="shape"):
        truncated_importance_weights(torch.zeros(2), torch.zeros(3), cap=2.0)
