"""A decoder layer's steps other than matrix products, with few passes over memory, forward and backward.

Each computes what the model's own module does, to within rounding. For a root-mean-square norm in bfloat16, plain
PyTorch passes over a hidden state eight times and keeps three copies for the backward pass; these keep only the input.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import silu


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """y = w * x / sqrt(mean(x^2) + epsilon), over the last axis (Zhang and Sennrich 2019, eq. 4).

    Computed in float32 and rounded to x's format before the weight is applied; a GPU's kernel rounds once, after it.
    """
    if x.is_cuda:
        return torch.nn.functional.rms_norm(x, x.shape[-1:], weight, epsilon)
    if not torch.is_grad_enabled():
        return _norm(x, epsilon)[0].to(x.dtype).mul_(weight)
    return _RMSNorm.apply(x, weight, epsilon)


def _norm(x: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """x / rms in float32, and 1 / rms `[..., 1]`."""
    wide = x.float() if x.dtype != torch.float32 else x.clone()
    inverse = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
    return wide.mul_(inverse), inverse


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        normed, inverse = _norm(x, epsilon)
        ctx.save_for_backward(x, weight, inverse)
        return normed.to(x.dtype).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        # dx = (g w - n mean(g w n)) / rms,  n = x / rms
        x, weight, inverse = ctx.saved_tensors
        weighted = (gradient * weight).float()
        normed = x * inverse  # float32
        along = torch.linalg.vecdot(weighted, normed).unsqueeze(-1).div_(-x.shape[-1])
        return weighted.addcmul_(normed, along).mul_(inverse).to(x.dtype), None, None


def rotate_(x: Tensor, cosine: Tensor, sine: Tensor, *, num_heads: int) -> Tensor:
    """Applies rotary positions (Su et al. 2021, eq. 34) in place, pairing the two halves of each head.

    Args:
        x: `[T, heads, d]`; the first `num_heads` are rotated: queries and keys, not values.
        cosine, sine: `[T, d]`, both halves equal.
    """
    if not torch.is_grad_enabled():
        return _turn_(x, cosine, sine, num_heads)
    return _Rotate.apply(x, cosine, sine, num_heads)


def _turn_(x: Tensor, cosine: Tensor, sine: Tensor, num_heads: int) -> Tensor:
    half = x.shape[-1] // 2
    cos, sin = cosine[:, None, :half], sine[:, None, :half]
    first, second = x[:, :num_heads, :half], x[:, :num_heads, half:]
    turned = (first * cos).addcmul_(second, sin, value=-1)
    second.mul_(cos).addcmul_(first, sin)
    first.copy_(turned)
    return x


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cosine: Tensor, sine: Tensor, num_heads: int) -> Tensor:
        ctx.save_for_backward(cosine, sine)
        ctx.num_heads = num_heads
        ctx.mark_dirty(x)
        return _turn_(x, cosine, sine, num_heads)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        cosine, sine = ctx.saved_tensors
        # In place is safe: attention allocates this gradient and nothing else uses it.
        return _turn_(gradient, cosine, -sine, ctx.num_heads), None, None, None


def gated_silu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up (Shazeer 2020, eq. 6): `[T, 2 I] -> [T, I]`, gate on the left."""
    if not torch.is_grad_enabled():
        gate, up = gate_up.chunk(2, dim=-1)
        return silu(gate).mul_(up)
    return _GatedSilu.apply(gate_up)


class _GatedSilu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        return silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (gate_up,) = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=-1)
        into = torch.empty_like(gate_up)
        into_gate, into_up = into.chunk(2, dim=-1)
        torch.mul(silu(gate), gradient, out=into_up)
        torch.ops.aten.silu_backward.grad_input(gradient * up, gate, grad_input=into_gate)
        return into
