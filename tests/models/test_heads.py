"""The scalar head of reward roles and critics."""

from __future__ import annotations

import torch

from onebase.models.heads import ScalarHead


def test_scores_on_a_bfloat16_base_have_the_digits_of_float32() -> None:
    head = ScalarHead(64)
    with torch.no_grad():
        head.weight.copy_(torch.randn(1, 64, generator=torch.Generator().manual_seed(1)))
    hidden = torch.randn(5, 64, generator=torch.Generator().manual_seed(2)).bfloat16()
    scores = head(hidden)
    assert scores.dtype == torch.float32
    expected = hidden.double() @ head.weight[0].double()
    torch.testing.assert_close(scores.double(), expected, rtol=0, atol=1e-5)
