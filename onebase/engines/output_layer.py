"""The output layer: turns hidden states into log-probs of the tokens that followed, and entropies.

Logits exist for one chunk of tokens at a time, in the backward pass too, never for a whole batch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from onebase.models.base import OneBase
from onebase.models.hardware import usual_size
from onebase.records import TreeBatch

LOGITS_PER_CHUNK = {"cpu": 1 << 21, "cuda": 1 << 27}
"""Logits held at once: 8 MiB in float32 and as much again for their softmax; on a GPU, which needs larger products, 512
MiB."""
FEWEST_TOKENS_PER_CHUNK = 32
"""The floor for a large vocabulary: a product over fewer tokens reads all output weights for little work."""


def head_logprobs(
    base: OneBase, states: Tensor, batch: TreeBatch, *, temperature: float, with_entropy: bool
) -> tuple[Tensor, Tensor]:
    """Runs the output layer over `states [M, H]`, a chunk of tokens at a time: log-probs and entropy `[M]`."""
    head = base.model.get_output_embeddings()
    at_once = LOGITS_PER_CHUNK.get(states.device.type, LOGITS_PER_CHUNK["cpu"])
    size = max(FEWEST_TOKENS_PER_CHUNK, at_once // base.model.config.get_text_config().vocab_size)
    final = final_logits(base.model)
    frozen = not any(parameter.requires_grad for parameter in head.parameters())
    slope_of_entropy = with_entropy and torch.is_grad_enabled()
    if frozen and not slope_of_entropy and final[1] is None and isinstance(head, nn.Linear):
        scale = final[0] / temperature
        if torch.is_grad_enabled() and states.requires_grad:
            logprobs = selected_logprobs(states, head.weight, head.bias, batch.targets, scale, size)
            return logprobs, torch.zeros_like(logprobs)
        return _selected(states, head.weight, head.bias, batch.targets, scale, size, with_entropy=with_entropy)[:2]
    arguments = (head, final, temperature, with_entropy)
    if len(states) <= size or not torch.is_grad_enabled():
        chunks = [
            _chunk_logprobs(some, targets, *arguments)
            for some, targets in zip(states.split(size), batch.targets.split(size), strict=True)
        ]
    else:
        chunks = [
            checkpoint(_chunk_logprobs, some, targets, *arguments, use_reentrant=False)
            for some, targets in zip(states.split(size), batch.targets.split(size), strict=True)
        ]
    return torch.cat([c[0] for c in chunks]), torch.cat([c[1] for c in chunks])


def selected_logprobs(
    states: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, scale: float, chunk: int
) -> Tensor:
    """log softmax(scale (states W^T + b)) at the targets, through a frozen output layer: `[M]` float32.

    A log-prob's slope with respect to its state, scale (W[target] - sum_v p_v W[v]), does not depend on the loss. It is
    computed while the chunk's softmax exists, so the backward pass only multiplies it by one number per token: logits
    are neither kept nor computed twice.

    Args:
        states: `[M, H]`. weight: `[V, H]`. targets: `[M]`. chunk: tokens whose logits exist at once.
    """
    return _SelectedLogprobs.apply(states, weight, bias, targets, scale, chunk)


class _SelectedLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, scale: float, chunk: int
    ) -> Tensor:
        logprobs, _, slope = _selected(states, weight, bias, targets, scale, chunk, with_slope=True)
        ctx.save_for_backward(slope)
        return logprobs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (slope,) = ctx.saved_tensors
        return (slope * gradient[:, None]).to(slope.dtype), None, None, None, None, None


def _selected(
    states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    scale: float,
    chunk: int,
    *,
    with_entropy: bool = False,
    with_slope: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Log-probs and entropy (zeros without `with_entropy`) `[M]`, and the log-probs' slopes `[M, H]`."""
    logprobs = states.new_zeros(len(states), dtype=torch.float32)
    entropy = torch.zeros_like(logprobs)
    slope = torch.empty_like(states) if with_slope else None
    for start in range(0, len(states), chunk):
        part = slice(start, start + chunk)
        chosen, padding = targets[part, None], (0, 0, 0, usual_size(len(targets[part])) - len(targets[part]))
        logits = nn.functional.linear(nn.functional.pad(states[part], padding), weight, bias).float()
        if scale != 1.0:
            logits.mul_(scale)
        all_logprobs = logits.log_softmax(-1)
        del logits
        logprobs[part] = all_logprobs[: len(chosen)].gather(-1, chosen).squeeze(-1)
        if with_entropy:
            entropy[part] = -(all_logprobs.exp() * all_logprobs).sum(-1)[: len(chosen)]
        if slope is not None:
            difference = all_logprobs.exp_().neg_()
            difference[: len(chosen)].scatter_add_(-1, chosen, torch.ones(chosen.shape, device=chosen.device))
            slope[part] = (difference.to(weight.dtype) @ weight)[: len(chosen)].mul_(scale)
    return logprobs, entropy, slope


def final_logits(model: PreTrainedModel) -> tuple[float, float | None]:
    """How the model changes its logits after the output layer: a factor, and a soft cap (Gemma 2)."""
    config = model.config.get_text_config()
    scale = 1.0
    if getattr(config, "logit_scale", None):  # Cohere
        scale = float(config.logit_scale)
    if getattr(config, "logits_scaling", None):  # Granite
        scale = 1.0 / float(config.logits_scaling)
    return scale, getattr(config, "final_logit_softcapping", None)


def _chunk_logprobs(
    states: Tensor,
    targets: Tensor,
    head: nn.Module,
    final: tuple[float, float | None],
    temperature: float,
    with_entropy: bool,
) -> tuple[Tensor, Tensor]:
    logits = adjust_logits(head(states).float(), final) / temperature  # [m, V]
    log_normaliser = logits.logsumexp(-1)
    logprobs = logits.gather(-1, targets[:, None]).squeeze(-1) - log_normaliser
    if not with_entropy:
        return logprobs, torch.zeros_like(logprobs)
    # H = log Z - sum_v p_v * logit_v
    entropy = log_normaliser - (torch.softmax(logits, -1) * logits).sum(-1)
    return logprobs, entropy


def adjust_logits(logits: Tensor, final: tuple[float, float | None]) -> Tensor:
    """Applies `final_logits` to the output layer's result."""
    scale, cap = final
    if scale != 1.0:
        logits = logits * scale
    return torch.tanh(logits / cap) * cap if cap else logits
