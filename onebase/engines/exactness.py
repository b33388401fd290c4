"""Finds the layout that is exact for a base by trying it once on a tiny random tree.

Whether a tree gives the same log-probs as separate rows depends on the architecture, so it is judged in float32
whatever the base's number format. There an exact model differs by 1e-5 nats and a leaking one by whole nats, while in
bfloat16 rounding alone can exceed a leak.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from transformers import PreTrainedModel

from onebase.data.rows import lay_in_rows
from onebase.data.tree import build_tree_batch, is_plain_causal
from onebase.engines.decoder import Decoder
from onebase.engines.flat import flat_trunk
from onebase.engines.flex import PLAIN, why_no_kernel
from onebase.engines.output_layer import adjust_logits, final_logits
from onebase.engines.padded import trunk
from onebase.errors import ModelError
from onebase.records import Example, TreeBatch
from onebase.shown import shown

EXACTNESS_TOLERANCE = 1e-4
"""Largest log-prob difference between a tree and separate rows, in float32, at which the tree is used; raised to four
times the difference from rounding alone where that is more."""
MOST_ROUNDING = 2.5e-3
"""Nats, in float32: a model is refused if a row alone and the same row in a batch differ by more."""


@dataclass(frozen=True, slots=True)
class Exactness:
    """Which layout is exact for a model."""

    layout: str
    """`tree` or `separate`."""
    reason: str = ""
    """Why it is not `tree`; empty if it is."""
    tolerance: float = EXACTNESS_TOLERANCE
    """Nats by which two ways of computing the same log-prob may differ on this model, in float32."""


def detect_layout(model: PreTrainedModel) -> Exactness:
    """Finds the layout that is exact for a model by trying one tiny random tree.

    ALiBi and state-space models get separate rows because they read distances from columns.

    Raises:
        ModelError: neither layout can be trusted: the model's own logits are not reproduced, are not finite, change
            with later tokens or with the rest of the batch, or the architecture's code fails.
    """
    kind = type(model).__name__
    try:
        with torch.no_grad(), _InFloat32():
            return _detect(model, kind)
    except (ModelError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever an architecture's code raises
        reason = shown(error, 200) or type(error).__name__
        raise ModelError(f"{kind}: this architecture cannot be used, a first pass fails: {reason}") from error


def _detect(model: PreTrainedModel, kind: str) -> Exactness:
    example = _random_example(model)
    batch = build_tree_batch([example]).to(model.device)
    rows = lay_in_rows(batch, "separate")
    in_batch = _own_logprobs(model, rows.input_ids, rows.is_token)
    expected = in_batch[rows.locate(batch.source, batch.completion_index)].gather(-1, batch.targets[:, None])
    if not bool(torch.isfinite(expected).all()):
        raise ModelError(f"{kind}: its log-probs are not finite, so its weights are damaged")
    rounding = _rounding(model, kind, [*example.prompt_ids, *example.completions[0]], in_batch[0])
    tolerance = max(EXACTNESS_TOLERANCE, 4 * rounding)
    separate_rows = _logprobs(model, batch, "separate")
    if separate_rows is None or _largest(separate_rows, expected) > tolerance:
        raise ModelError(
            f"{kind}: the log-probs from its trunk and output layer differ from its own logits; this architecture is "
            "not supported"
        )
    reason = _why_no_tree(model)
    if not reason:
        in_tree = _logprobs(model, batch, "tree")
        if in_tree is None:
            reason = "this architecture takes no mask for each pair of tokens"
        elif (difference := _largest(in_tree, expected)) > tolerance:
            reason = f"trees differ by {difference:.2g} nats from separate rows (rounding alone: {rounding:.1g})"
    return Exactness("separate" if reason else "tree", reason, tolerance)


def _rounding(model: PreTrainedModel, kind: str, ids: list[int], in_batch: Tensor) -> float:
    """Nats by which rounding alone changes a log-prob: a row alone against the same row in a batch.

    Raises:
        ModelError: the difference is more than rounding, or the start of a row changes with the tokens that follow it.
    """
    alone, beginning = (
        _own_logprobs(model, row, torch.ones_like(row))[0]
        for row in (torch.tensor([ids], device=model.device), torch.tensor([ids[:-3]], device=model.device))
    )
    rounding = _largest(alone, in_batch[: len(ids)])
    if rounding > MOST_ROUNDING:
        raise ModelError(
            f"{kind}: a row alone and the same row in a batch differ by {rounding:.2g} nats; a model whose results "
            "depend on what else is in a batch cannot be used"
        )
    difference = _largest(beginning, alone[: len(beginning)])
    if difference > max(EXACTNESS_TOLERANCE, 4 * rounding):
        raise ModelError(
            f"{kind}: its log-probs of a row's beginning change by {difference:.2g} nats with the tokens that follow; "
            "a causal language model is needed, and this one looks ahead"
        )
    return max(rounding, difference)


def decoder_gives_the_same(model: PreTrainedModel, tolerance: float = EXACTNESS_TOLERANCE) -> bool:
    """Whether the packed engine can run this model.

    It does for architectures made of the same operations, if it reproduces transformers' log-probs on a tiny random
    tree in float32. The model's weights are then laid together as the decoder reads them.
    """
    if model.device.type not in ("cpu", "cuda") or not Decoder.runs(model):
        return False
    decoder, batch = Decoder(model), build_tree_batch([_random_example(model)]).to(model.device)
    with torch.no_grad(), _InFloat32():
        expected = _logprobs(model, batch, "tree")
        found = _head_logprobs(model, decoder.states(batch, batch.source), batch.targets)
    if expected is None or _largest(found, expected) > tolerance:
        return False
    decoder.lay_weights_together()
    return True


def why_no_flex(model: PreTrainedModel, tolerance: float = EXACTNESS_TOLERANCE) -> str:
    """Why trees cannot be run end to end under FlexAttention; empty if they can, on a CUDA GPU.

    Two things are tried: the kernel against plain products, and the model in one row under a block mask against the
    model under a tree's mask, in float32 and without the kernel, which works in the model's number format alone.
    """
    if not _on_a_gpu(model):
        return "it is for GPUs"
    reason = why_no_kernel(model)
    if reason:
        return reason
    batch = build_tree_batch([_random_example(model)]).to(model.device)
    with torch.no_grad(), _InFloat32():
        expected, found = _logprobs(model, batch, "tree"), _flat_logprobs(model, batch)
    if expected is None or found is None:
        return "this architecture takes no block mask"
    difference = _largest(found, expected)
    return "" if difference <= tolerance else f"under a block mask the model is off by {difference:.2g} nats"


def _on_a_gpu(model: PreTrainedModel) -> bool:
    return model.device.type == "cuda"


class _InFloat32(TorchDispatchMode):
    """Runs every operation on tensors of a shorter number format in float32 and returns float32.

    The model is unchanged: inputs are converted one operation at a time.
    """

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return func(*tree_map(_widened, args), **tree_map(_widened, dict(kwargs or {})))


def _widened(value: Any) -> Any:
    short = (torch.bfloat16, torch.float16)
    if isinstance(value, Tensor):
        return value.float() if value.dtype in short else value
    return torch.float32 if isinstance(value, torch.dtype) and value in short else value


def _largest(found: Tensor, expected: Tensor) -> float:
    """The largest difference; infinite if there is a NaN."""
    return float((found - expected).abs().max().nan_to_num(torch.inf))


def _random_example(model: PreTrainedModel) -> Example:
    generator = torch.Generator().manual_seed(0)
    size = model.config.get_text_config().vocab_size

    def random_ids(count: int) -> list[int]:
        return torch.randint(0, size, (count,), generator=generator).tolist()

    return Example(random_ids(7), [random_ids(5), random_ids(3), random_ids(4)])


def _why_no_tree(model: PreTrainedModel) -> str:
    """Why trees are ruled out without a trial, which is too short to show that columns matter; empty if they are not.

    Sliding windows are handled: they count positions. Other layers that see a window or a chunk (GPT-Neo's local
    attention, Llama 4's chunks) count columns, as do models that take no positions (ALiBi).
    """
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or []) - {"full_attention", "sliding_attention"}
    local = "local" in str(getattr(config, "attention_types", ""))
    chunks = [getattr(config, name, None) for name in ("attention_chunk_size", "attention_window", "local_window_size")]
    if kinds or local or any(chunks):
        return "some layers of this architecture see a window of columns"
    if "position_ids" not in inspect.signature(type(model.base_model).forward).parameters:
        return "this architecture reads positions from columns"
    return ""


def _logprobs(model: PreTrainedModel, batch: TreeBatch, layout: str) -> Tensor | None:
    rows = lay_in_rows(batch, layout)
    try:
        hidden = trunk(model, rows, layout=layout, plain=is_plain_causal(batch))
    except (TypeError, ValueError, RuntimeError):
        return None  # takes no position_ids, or no 4-D mask
    states = hidden[rows.locate(batch.source, batch.completion_index)]
    return _head_logprobs(model, states, batch.targets)


def _flat_logprobs(model: PreTrainedModel, batch: TreeBatch) -> Tensor | None:
    try:
        states = flat_trunk(model, batch, attention=PLAIN)[batch.source]
    except (TypeError, ValueError, RuntimeError, AttributeError):
        return None  # attends in its own way, or with sinks
    return _head_logprobs(model, states, batch.targets)


def _head_logprobs(model: PreTrainedModel, states: Tensor, targets: Tensor) -> Tensor:
    logits = adjust_logits(model.get_output_embeddings()(states).float(), final_logits(model))
    return logits.log_softmax(-1).gather(-1, targets[:, None])


def _own_logprobs(model: PreTrainedModel, input_ids: Tensor, attended: Tensor) -> Tensor:
    return model(input_ids=input_ids, attention_mask=attended.long(), use_cache=False).logits.float().log_softmax(-1)
