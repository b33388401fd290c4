"""Scalar heads: one number per hidden state, for the reward and critic roles."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ScalarHead(nn.Module):
    """`hidden [..., H] -> [...]` float32: a linear map without bias, like `score` in transformers' classifiers.

    Starts at zero, so that the first scores, values and their gradients into the trunk are zero rather than noise.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, hidden_size))

    def forward(self, hidden: Tensor) -> Tensor:
        # float32 whatever the base: a score in bf16 has 3 digits, too few to rank by.
        return torch.nn.functional.linear(hidden.float(), self.weight).squeeze(-1)
