"""Apple's GPUs have no float64: nothing that runs on the device makes one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from onebase.engines import opening
from onebase.engines.opening import wrap_model
from onebase.sampling import drawing
from onebase.sampling.drawing import draw, widest
from onebase.sampling.sampler import Sampling
from tests.tiny_models import tiny_model, tiny_tokenizer


class _NoFloat64(TorchDispatchMode):
    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        wide = [x for x in tree_leaves(made) if isinstance(x, Tensor) and x.dtype == torch.float64]
        assert not wide, f"{func} makes float64"
        return made


@pytest.mark.parametrize("sampling", [Sampling(max_new_tokens=1), Sampling(max_new_tokens=1, top_k=5, top_p=0.9)])
def test_drawing_a_token_uses_nothing_wider_than_the_device_has(
    sampling: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert widest(torch.device("mps")) == torch.float32 and widest(torch.device("cuda")) == torch.float64
    logits, numbers = torch.randn(3, 50), torch.rand(3)
    expected, _ = draw(logits, numbers, sampling)
    with pytest.raises(AssertionError, match="makes float64"), _NoFloat64():
        draw(logits, numbers, sampling)
    monkeypatch.setattr(drawing, "widest", lambda device: torch.float32)
    with _NoFloat64():
        ids, _ = draw(logits, numbers, sampling)
    assert torch.equal(ids, expected)


@pytest.mark.parametrize("available", [True, False])
def test_an_apple_gpu_that_is_not_used_is_mentioned(available: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: available)
    base = wrap_model(tiny_model("llama"), tiny_tokenizer())
    assert [note for note in base.notes if "mps" in note] == ([opening.APPLE] if available else [])
