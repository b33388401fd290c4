"""Trees in, one number per completion token (or per completion) out.

Only the positions that predict a counted token meet a head, and the vocabulary's logits exist for a chunk of tokens
at a time, in the backward pass too: the logits of a batch never exist at once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from onebase.data.tree import attention_mask, is_plain_causal
from onebase.models.hardware import usual_size
from onebase.models.one_base import OneBase
from onebase.objectives.masked import completion_mean
from onebase.records import TreeBatch

LOGITS_PER_CHUNK = 1 << 21
"""Logits held at once: 8 MiB in float32, and as much again for their softmax."""
FEWEST_TOKENS_PER_CHUNK = 32
"""Of a large vocabulary: a matrix product over fewer reads all weights of the output layer for little."""


def states_at(base: OneBase, batch: TreeBatch, row: Tensor, column: Tensor, *, role: str) -> Tensor:
    """The hidden states of `role` at some places of the batch: `[m, H]`; the last layer computes no others."""
    with base.role(role):
        if base.packs:
            return base.decoder.states(batch, row, column, recompute=base.recomputes)  # type: ignore[union-attr]
        with base.recomputing():
            return at(trunk(base.model, batch, layout=base.layout), row, column)


def trunk(model: PreTrainedModel, batch: TreeBatch, *, layout: str) -> Tensor:
    """The model without its output layer, whatever adapters are in force: `[R, T, H]`."""
    arguments: dict[str, Any] = {"input_ids": batch.input_ids, "use_cache": False}
    if layout == "separate":
        if not is_plain_causal(batch):
            raise ValueError("this model runs one completion per row: build its batches from `separate(examples)`")
        arguments["attention_mask"] = (batch.tree >= 0).long()
    else:
        arguments["position_ids"] = batch.position_ids
        arguments["attention_mask"] = _masks(model, batch)
    return model.base_model(**arguments).last_hidden_state


def token_logprobs(base: OneBase, batch: TreeBatch, *, role: str, temperature: float = 1.0) -> Tensor:
    """log p(token | prompt, earlier tokens of its completion) for every counted token: `[M]` float32.

    Args:
        temperature: the logits are divided by it, as they are when sampling.
    """
    logprobs, _ = logprobs_and_entropy(base, batch, role=role, temperature=temperature, with_entropy=False)
    return logprobs


def logprobs_and_entropy(
    base: OneBase, batch: TreeBatch, *, role: str, temperature: float = 1.0, with_entropy: bool = True
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the counted tokens and the entropy of what predicted them, both `[M]` float32, in nats.

    The entropy is zeros where it is not asked for.
    """
    states = source_states(base, batch, role=role)
    return head_logprobs(base, states, batch, temperature=temperature, with_entropy=with_entropy)


def source_states(base: OneBase, batch: TreeBatch, *, role: str) -> Tensor:
    """The hidden states that predict the counted tokens: `[M, H]`."""
    return states_at(base, batch, batch.source_row, batch.source_column, role=role)


def at(hidden: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """`hidden[row, column]`, `[R, T, H] -> [m, H]`, its gradient added up in the same order every time.

    A prompt's last state predicts K first tokens. The backward pass of plain indexing adds their K gradients in the
    order in which the threads come, and no two runs would end with the same bytes.
    """
    return torch.nn.functional.embedding(row * hidden.shape[1] + column, hidden.flatten(0, 1))


def head_logprobs(
    base: OneBase, states: Tensor, batch: TreeBatch, *, temperature: float, with_entropy: bool
) -> tuple[Tensor, Tensor]:
    """The output layer over `states [M, H]`, a chunk of tokens at a time: log-probs and entropy `[M]`."""
    head = base.model.get_output_embeddings()
    size = max(FEWEST_TOKENS_PER_CHUNK, LOGITS_PER_CHUNK // base.model.config.get_text_config().vocab_size)
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
            _chunk_logprobs(part, targets, *arguments)
            for part, targets in zip(states.split(size), batch.targets.split(size), strict=True)
        ]
    else:
        chunks = [
            checkpoint(_chunk_logprobs, part, targets, *arguments, use_reentrant=False)
            for part, targets in zip(states.split(size), batch.targets.split(size), strict=True)
        ]
    return torch.cat([c[0] for c in chunks]), torch.cat([c[1] for c in chunks])


def selected_logprobs(
    states: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, scale: float, chunk: int
) -> Tensor:
    """log softmax(scale (states W^T + b)) at the targets, through a frozen output layer: `[M]` float32.

    The slope of a log-prob with respect to its state, scale (W[target] - sum_v p_v W[v]), needs nothing of the loss. It
    is computed while the chunk's softmax is there, so that the backward pass is a product with one number per token:
    neither logits are kept nor computed twice.

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
    """Log-probs and entropy (zeros where it is not asked for) `[M]`, and the log-probs' slopes `[M, H]`."""
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


def token_values(base: OneBase, batch: TreeBatch, *, role: str) -> Tensor:
    """V(s_t), the state before each counted token: `[M]` float32."""
    return base.roles[role].head(source_states(base, batch, role=role))  # type: ignore[misc]


def completion_scores(base: OneBase, batch: TreeBatch, *, role: str) -> Tensor:
    """The reward role's score of each completion, at its last token or the mean over its tokens: `[N]` float32."""
    head, pooling = base.roles[role].head, base.roles[role].pooling
    assert head is not None, f"role '{role}' has no scalar head"
    if pooling == "last":
        return head(states_at(base, batch, batch.last_row, batch.last_column, role=role))
    per_token = head(states_at(base, batch, batch.source_row, batch.token_column, role=role))
    return completion_mean(per_token, batch.completion_index, batch.num_completions)


def final_logits(model: PreTrainedModel) -> tuple[float, float | None]:
    """What the model does to its logits after the output layer: a factor, and a soft cap (Gemma 2)."""
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


def sliding_window(model: PreTrainedModel) -> int | None:
    """Positions a sliding-window layer sees, None where the model has no such layer in use."""
    config = model.config.get_text_config()
    if getattr(config, "use_sliding_window", True) is False:
        return None
    return getattr(config, "sliding_window", None)


def mask_argument(model: PreTrainedModel, full: Tensor, windowed: Tensor | None) -> Tensor | dict[str, Tensor]:
    """The 4-D mask, or masks per kind of layer, in the form this model takes them."""
    if model.config.get_text_config()._attn_implementation == "eager":  # adds its mask instead of testing it
        full = _additive(full, model.dtype)
        windowed = None if windowed is None else _additive(windowed, model.dtype)
    if windowed is None:
        return full
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ["sliding_attention"])
    if kinds == {"sliding_attention"}:
        return windowed
    return {"full_attention": full, "sliding_attention": windowed}


def _masks(model: PreTrainedModel, batch: TreeBatch) -> Tensor | dict[str, Tensor] | None:
    window = sliding_window(model)
    longest = int(batch.position_ids.max()) + 1
    if window is not None and longest <= window:
        window = None
    if window is None and is_plain_causal(batch):
        return None  # the kernels' own causal mask: padding stands on the right, and no real token sees it
    full = attention_mask(batch)
    return mask_argument(model, full, None if window is None else attention_mask(batch, window=window))


def _additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(~allowed, torch.finfo(dtype).min)
