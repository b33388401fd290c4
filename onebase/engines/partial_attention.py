"""Attention to all or a part of what a token may see, and how parts are joined to one softmax over all of it.

A part gives its own softmax and the log of its sum, lse = log sum exp(scores). Two parts weigh (Dao et al. 2022,
FlashAttention, section 3.1; Juravsky et al. 2024, Hydragen, section 3.1):

    out = w out_1 + (1 - w) out_2,    w = sigmoid(lse_1 - lse_2),    lse = log(exp lse_1 + exp lse_2)

With the joined lse and D = rowsum(dO * O), the gradients of the parts add up (FlashAttention, appendix B.2):

    P = exp(s Q K^T + mask - lse),  dP = dO V^T,  dS = P * (dP - D),  dQ = s dS K,  dK = s dS^T Q,  dV = P^T dO
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

SCORES_AT_ONCE = 1 << 23
"""Attention scores held at once where they are held at all: 32 MiB in float32, and as much again for their softmax."""


def attend(
    query: Tensor, key: Tensor, value: Tensor, *, scaling: float, mask: Tensor | None = None, causal: bool = False
) -> tuple[Tensor, Tensor]:
    """What the queries read, `[B, heads, n, d]`, and the logs of their softmaxes' sums, `[B, heads, n]` in float32.

    On a CPU this is the kernel of `scaled_dot_product_attention`, which computes the sums but does not return them.
    Elsewhere the sums are NaN: nothing is read in parts there.

    Args:
        key, value: `[B, heads, m, d]`.
        mask: `[B or 1, 1, 1 or n, m]`, added to the scores, in the queries' number format.
        causal: each query reads the keys up to its own place; n = m, and without a mask.
    """
    if query.device.type == "cpu":
        if mask is not None:
            mask = mask.expand(len(query), 1, query.shape[2], -1)
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, causal, attn_mask=mask, scale=scaling
        )
    read = scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal, scale=scaling)
    return read, torch.full(query.shape[:-1], torch.nan, device=query.device)


def join(out: Tensor, lse: Tensor, other: Tensor, other_lse: Tensor) -> tuple[Tensor, Tensor]:
    """Two parts as one: what is read, `[..., d]` in the format of `out`, and the sums' logs `[...]`."""
    weight = torch.sigmoid(other_lse - lse).unsqueeze(-1)
    return torch.lerp(out.float(), other.float(), weight).to(out.dtype), torch.logaddexp(lse, other_lse)


def gradients(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    gradient: Tensor,
    *,
    scaling: float,
    mask: Tensor | None,
    joined: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of query, key and value, from `gradient`, that of what is read, from all parts together.

    Args:
        query, gradient: `[heads, B, n, d]`. key, value: `[heads, B, m, d]`.
        mask: `[B or 1, 1 or n, m]` float32.
        joined: where these keys are a part of what the queries see, the lse of all parts and D above, `[heads, B, n]`
            float32 each. None: they are all.
    """
    into = tuple(torch.empty_like(tensor) for tensor in (query, key, value))
    at_once = heads_at_once(query.shape[1], query.shape[2], key.shape[2])
    for head in range(0, len(query), at_once):
        some = slice(head, head + at_once)
        q, k, v, g = (tensor[some].flatten(0, 1) for tensor in (query, key, value, gradient))
        into_query, into_key, into_value = (tensor[some].flatten(0, 1) for tensor in into)
        # Scores are in float32, as in the forward pass: in bfloat16 a score of 20 would be off by 0.06.
        scores = torch.bmm(q.to(torch.float32, copy=True).mul_(scaling), k.float().transpose(1, 2))
        if mask is not None:
            scores.unflatten(0, (-1, query.shape[1])).add_(mask)
        if joined is None:
            probabilities = scores.softmax(-1).to(q.dtype)
            del scores
            torch.bmm(probabilities.transpose(1, 2), g, out=into_value)
            into_scores = torch._softmax_backward_data(
                torch.bmm(g * scaling, v.transpose(1, 2)), probabilities, -1, q.dtype
            )
        else:
            lse, product = (tensor[some].flatten(0, 1).unsqueeze(-1) for tensor in joined)
            exact = scores.sub_(lse).exp_()
            torch.bmm(exact.to(q.dtype).transpose(1, 2), g, out=into_value)
            # In float32, because dP and D are nearly equal where a query reads one key alone.
            into_scores = torch.bmm(g.float(), v.float().transpose(1, 2)).sub_(product).mul_(exact).mul_(scaling)
            into_scores = into_scores.to(q.dtype)
        torch.bmm(into_scores, k, out=into_query)
        torch.bmm(into_scores.transpose(1, 2), q, out=into_key)
    return into[0], into[1], into[2]


def later_keys(count: int, device: torch.device) -> Tensor:
    """A mask `[1, n, n]` float32 to add to the scores: -inf on keys behind a query's own place."""
    return torch.full((1, count, count), -torch.inf, device=device).triu_(1)


def heads_at_once(batch: int, num_queries: int, num_keys: int) -> int:
    """Heads whose scores may exist at the same time; at least one."""
    return max(1, SCORES_AT_ONCE // max(1, batch * num_queries * num_keys))
