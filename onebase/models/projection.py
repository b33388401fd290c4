"""A frozen linear layer with a LoRA adapter on it, in one pass forward and one backward.

    y = x W^T + b + s (x A^T) B^T                                                (Hu et al. 2021, section 4.1)

Layers that read the same input go together (query, key and value; gate and up): the gradient of the input is then
added up inside the matrix products. The adapter's matrices stay in float32 for the optimizer and are multiplied in the
base's number format, as autocast does; nothing of the input is kept in another format.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


@dataclass(frozen=True, slots=True)
class Projection:
    """A linear layer as the role in force sees it; `a` and `b` are None where the role has no adapter on it."""

    weight: Tensor
    """`[out, in]`"""
    bias: Tensor | None
    a: Tensor | None = None
    """`[r, in]`, the parameter."""
    b: Tensor | None = None
    """`[out, r]`, the parameter."""
    scaling: float = 1.0
    cast_a: Tensor | None = None
    """`a` in the base's number format."""
    cast_b: Tensor | None = None
    """`scaling * b` in the base's number format."""


def projection_of(module: nn.Module) -> Projection:
    """Reads a linear layer, adapted by PEFT or not, with the adapter that is in force."""
    adapted: Any = module if hasattr(module, "get_base_layer") else None
    base: Any = module if adapted is None else adapted.get_base_layer()
    active = [] if adapted is None else [name for name in adapted.active_adapters if name in adapted.lora_A]
    if not active:
        return Projection(base.weight, base.bias)
    (name,) = active
    a, b, scaling = adapted.lora_A[name].weight, adapted.lora_B[name].weight, float(adapted.scaling[name])
    dtype = base.weight.dtype
    return Projection(
        base.weight, base.bias, a, b, scaling, a.detach().to(dtype), (scaling * b.detach()).to(dtype)
    )


def project(x: Tensor, projections: Sequence[Projection]) -> Tensor:
    """`x [T, in]` through every layer, the results side by side: `[T, sum of out]`."""
    if not torch.is_grad_enabled():
        return _forward(x, projections)[0]
    adapters = [tensor for part in projections for tensor in (part.a, part.b)]
    return _Project.apply(x, tuple(projections), *adapters)


def _forward(x: Tensor, projections: Sequence[Projection]) -> tuple[Tensor, list[Tensor | None]]:
    """The results, and `x A^T [T, r]` of each layer that has an adapter."""
    out = x.new_empty(len(x), sum(len(part.weight) for part in projections))
    lows: list[Tensor | None] = []
    for part, side in zip(projections, _sides(out, projections), strict=True):
        torch.mm(x, part.weight.t(), out=side)
        if part.bias is not None:
            side.add_(part.bias)
        low = None
        if part.cast_a is not None and part.cast_b is not None:
            low = x @ part.cast_a.t()
            side.addmm_(low, part.cast_b.t())
        lows.append(low)
    return out, lows


def _sides(tensor: Tensor, projections: Sequence[Projection]) -> Sequence[Tensor]:
    return tensor.split([len(part.weight) for part in projections], dim=1)


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, projections: tuple[Projection, ...], *adapters: Tensor | None) -> Tensor:
        out, lows = _forward(x, projections)
        ctx.projections = projections
        # Without an adapter that trains the input is not needed again.
        ctx.save_for_backward(x if any(ctx.needs_input_grad[2:]) else None, *lows)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, *lows = ctx.saved_tensors
        into_x: Tensor | None = None
        into_adapters: list[Tensor | None] = []
        sides = _sides(gradient, ctx.projections)
        for i, (part, low, g) in enumerate(zip(ctx.projections, lows, sides, strict=True)):
            through_b = g @ part.cast_b if part.cast_b is not None else None  # [T, r]
            if ctx.needs_input_grad[0]:
                into_x = g @ part.weight if into_x is None else into_x.addmm_(g, part.weight)
                if through_b is not None:
                    into_x.addmm_(through_b, part.cast_a)
            trains = part.a is not None and ctx.needs_input_grad[2 + 2 * i]
            into_adapters.append((through_b.t() @ x).to(part.a.dtype) if trains else None)  # type: ignore[union-attr]
            into_adapters.append((g.t() @ low).to(part.b.dtype).mul_(part.scaling) if trains else None)
        return into_x, None, *into_adapters
