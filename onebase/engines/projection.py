"""Frozen linear layers with LoRA adapters, run in one forward and one backward pass.

    y = x W^T + b + s (x A^T) B^T                                                (Hu et al. 2021, section 4.1)

Layers that read the same input (query, key and value; gate and up) run together: their A are stacked, their B form a
block diagonal. The low-rank products come first and the large matrix product adds to them, so memory is read and
written once. Adapter matrices stay in float32 for the optimizer and are multiplied in the base's number format, as
autocast does; the input is not kept in another format.

A base in 4 bits (NF4) is multiplied by the same products: each layer's weight is expanded just before its product, in
the backward pass again, and not kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from onebase.models.hardware import is_mapped_from_file


@dataclass(frozen=True, slots=True)
class Adapter:
    """LoRA on one layer of a projection."""

    a: Tensor
    """`[r, in]`, the parameter."""
    b: Tensor
    """`[out of the layer, r]`, the parameter."""
    scaling: float
    out: slice
    """Which of the projection's outputs belong to this layer."""
    ranks: slice
    """Which of all ranks belong to this adapter."""


@dataclass(frozen=True, slots=True)
class Quantised:
    """A weight `[out, in]` in 4 bits, as bitsandbytes holds it."""

    packed: Tensor
    state: Any
    """Its `QuantState`: scales by block, shape and number format."""
    dtype: torch.dtype
    """The number format to expand it to."""

    def __len__(self) -> int:
        return int(self.state.shape[0])

    def expanded(self) -> Tensor:
        """The weight, `[out, in]`."""
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(self.packed, self.state).to(self.dtype)


@dataclass(frozen=True, slots=True)
class Projection:
    """Linear layers that read the same input, as the role in force sees them."""

    weights: tuple[Tensor | Quantised, ...]
    """One `[out of the layer, in]` per layer, or a single tensor for all if they are contiguous in memory."""
    bias: Tensor | None
    """`[out]`, for all layers."""
    adapters: tuple[Adapter, ...] = ()
    a: Tensor | None = None
    """`[R, in]`, all adapters stacked, in the base's number format."""
    b: Tensor | None = None
    """`[out, R]`, block diagonal and scaled, in the base's number format."""


def projection_of(*modules: nn.Module) -> Projection:
    """Reads linear layers that share an input, adapted by PEFT or not, with the adapter in force."""
    layers: list[Any] = [getattr(module, "get_base_layer", lambda module=module: module)() for module in modules]
    weights = [_weight_of(layer) for layer in layers]
    bias = None
    if any(layer.bias is not None for layer in layers):
        dtype, device = weights[0].dtype, layers[0].weight.device
        bias = torch.cat(
            [
                torch.zeros(len(weight), dtype=dtype, device=device) if layer.bias is None else layer.bias.to(dtype)
                for layer, weight in zip(layers, weights, strict=True)
            ]
        )
    adapters, row, rank = [], 0, 0
    for module, weight in zip(modules, weights, strict=True):
        num_rows = len(weight)
        found = _lora_in_force(module)
        if found is not None:
            a, b, scaling = found
            adapters.append(Adapter(a, b, scaling, slice(row, row + num_rows), slice(rank, rank + len(a))))
            rank += len(a)
        row += num_rows
    return adapted(weights, bias, adapters)


def _weight_of(layer: Any) -> Tensor | Quantised:
    state = getattr(layer.weight, "quant_state", None)
    return layer.weight if state is None else Quantised(layer.weight.data, state, layer.compute_dtype or state.dtype)


def adapted(weights: Sequence[Tensor | Quantised], bias: Tensor | None, adapters: Sequence[Adapter]) -> Projection:
    """A projection with these adapters, their matrices combined."""
    if not adapters:
        return Projection(_in_one(weights), bias)
    rank, first = sum(len(adapter.a) for adapter in adapters), adapters[0].a
    a = torch.empty(rank, first.shape[1], dtype=weights[0].dtype, device=first.device)
    b = torch.zeros(sum(map(len, weights)), rank, dtype=weights[0].dtype, device=first.device)
    for adapter in adapters:
        a[adapter.ranks] = adapter.a.detach()
        b[adapter.out, adapter.ranks] = adapter.scaling * adapter.b.detach()
    return Projection(_in_one(weights), bias, tuple(adapters), a, b)


def lay_together(*modules: nn.Module) -> None:
    """Moves the weights of linear layers that share an input next to each other, so that one product does for all.

    Weights mapped from a file are left alone: the system can reclaim their memory, which it could not do with a copy.
    So are weights in 4 bits, which are expanded one by one.
    """
    weights: list[Tensor] = [module.weight for module in modules]  # type: ignore[misc]
    if any(hasattr(weight, "quant_state") or is_mapped_from_file(weight) for weight in weights):
        return
    together = torch.cat([weight.data for weight in weights])
    for weight, rows in zip(weights, together.split(list(map(len, weights))), strict=True):
        weight.data = rows


def _in_one(weights: Sequence[Tensor | Quantised]) -> tuple[Tensor | Quantised, ...]:
    """The weights as one tensor, if they share a storage and each begins where the last one ends."""
    first = weights[0]
    if not isinstance(first, Tensor):
        return tuple(weights)
    end, storage = first.storage_offset(), first.untyped_storage()._cdata
    for weight in weights:
        together = isinstance(weight, Tensor) and weight.untyped_storage()._cdata == storage
        if not together or weight.storage_offset() != end or not weight.is_contiguous():  # type: ignore[union-attr]
            return tuple(weights)
        end += weight.numel()  # type: ignore[union-attr]
    shape = sum(map(len, weights)), first.shape[1]
    return (first.detach().as_strided(shape, (shape[1], 1)),)


def _lora_in_force(module: Any) -> tuple[Tensor, Tensor, float] | None:
    active = [name for name in getattr(module, "active_adapters", []) if name in module.lora_A]
    if not active:
        return None
    (name,) = active
    return module.lora_A[name].weight, module.lora_B[name].weight, float(module.scaling[name])


def project(x: Tensor, projection: Projection) -> Tensor:
    """Runs `x [T, in]` through every layer, with the results side by side: `[T, out]`."""
    if not torch.is_grad_enabled():
        return _forward(x, projection)[0]
    adapters = [tensor for adapter in projection.adapters for tensor in (adapter.a, adapter.b)]
    return _Project.apply(x, projection, *adapters)


def _forward(x: Tensor, projection: Projection) -> tuple[Tensor, Tensor | None]:
    """The results, and `x A^T [T, R]`."""
    low = None
    if projection.a is None or projection.b is None:
        out = x.new_empty(len(x), sum(map(len, projection.weights)))
        for side, weight in _sides(out, projection):
            torch.mm(x, weight.t(), out=side)
    else:
        low = x @ projection.a.t()
        out = low @ projection.b.t()
        for side, weight in _sides(out, projection):
            side.addmm_(x, weight.t())
    if projection.bias is not None:
        out.add_(projection.bias)
    return out, low


def _sides(out: Tensor, projection: Projection) -> Iterator[tuple[Tensor, Tensor]]:
    """Each layer's columns of `out [T, out]`, and its weight, expanded if it is in 4 bits."""
    for side, weight in zip(out.split(list(map(len, projection.weights)), dim=1), projection.weights, strict=True):
        yield side, weight if isinstance(weight, Tensor) else weight.expanded()


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, projection: Projection, *adapters: Tensor) -> Tensor:
        out, low = _forward(x, projection)
        ctx.projection = projection
        # The backward pass needs the input only if an adapter trains.
        ctx.save_for_backward(*((x, low) if any(ctx.needs_input_grad[2:]) else (None, None)))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, low = ctx.saved_tensors
        projection: Projection = ctx.projection
        through_b = None if projection.b is None else gradient @ projection.b  # [T, R]
        into_x = None
        if ctx.needs_input_grad[0]:
            into_x = through_b @ projection.a if through_b is not None and projection.a is not None else None
            for side, weight in _sides(gradient, projection):
                into_x = side @ weight if into_x is None else into_x.addmm_(side, weight)
        if x is None or through_b is None:
            return into_x, None, *(None for _ in ctx.needs_input_grad[2:])
        into_a, into_b = through_b.t() @ x, gradient.t() @ low
        into_adapters: list[Tensor | None] = []
        for i, adapter in enumerate(projection.adapters):
            trains = ctx.needs_input_grad[2 + 2 * i]
            part = into_b[adapter.out, adapter.ranks]
            into_adapters.append(into_a[adapter.ranks].to(adapter.a.dtype) if trains else None)
            into_adapters.append(part.to(adapter.b.dtype).mul_(adapter.scaling) if trains else None)
        return into_x, None, *into_adapters
