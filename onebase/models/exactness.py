"""Which layout is exact for a base, tried once on a tiny random tree.

Whether a tree gives the log-probs of separate rows is a property of the architecture, so it is judged in float32
whatever the base's number format: there an exact model differs by 1e-5 nats and one that leaks by whole nats, while in
bfloat16 rounding alone can differ by more than a leak.
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

from onebase.data.tree import build_tree_batch, separate
from onebase.errors import ModelError
from onebase.models.decoder import Decoder
from onebase.models.forward import adjust_logits, final_logits, trunk
from onebase.records import Example
from onebase.shown import shown

EXACTNESS_TOLERANCE = 1e-4
"""Largest difference in a log-prob between a tree and separate rows, in float32, for the tree to be used; four times
what rounding alone makes, where that is more."""
MOST_ROUNDING = 2.5e-3
"""Nats between a row alone and the same row in a batch, in float32: a model on which they differ by more is refused."""


@dataclass(frozen=True, slots=True)
class Exactness:
    """Which layout is exact for a model."""

    layout: str
    """`tree` or `separate`."""
    reason: str = ""
    """Why it is not the tree; empty where it is."""
    tolerance: float = EXACTNESS_TOLERANCE
    """Nats by which two ways to the same log-prob may differ on this model, in float32."""


def detect_layout(model: PreTrainedModel) -> Exactness:
    """Finds the layout that is exact for a model, on one tiny random tree.

    ALiBi and state-space models get separate rows: they read distances from columns.

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
    rows = build_tree_batch(separate([example])).to(model.device)
    in_batch = _own_logprobs(model, rows.input_ids, rows.tree >= 0)
    expected = in_batch[rows.source_row, rows.source_column].gather(-1, rows.targets[:, None])
    if not bool(torch.isfinite(expected).all()):
        raise ModelError(f"{kind}: its log-probs are not finite, so its weights are damaged")
    rounding = _rounding(model, kind, [*example.prompt_ids, *example.completions[0]], in_batch[0])
    tolerance = max(EXACTNESS_TOLERANCE, 4 * rounding)
    separate_rows = _logprobs(model, [example], "separate")
    if separate_rows is None or _largest(separate_rows, expected) > tolerance:
        raise ModelError(
            f"{kind}: the log-probs from its trunk and output layer differ from its own logits; this architecture is "
            "not supported"
        )
    reason = _why_no_tree(model)
    if not reason:
        in_tree = _logprobs(model, [example], "tree")
        if in_tree is None:
            reason = "this architecture takes no mask for each pair of tokens"
        elif (difference := _largest(in_tree, expected)) > tolerance:
            reason = f"trees differ by {difference:.2g} nats from separate rows (rounding alone: {rounding:.1g})"
    return Exactness("separate" if reason else "tree", reason, tolerance)


def _rounding(model: PreTrainedModel, kind: str, ids: list[int], in_batch: Tensor) -> float:
    """What rounding alone changes: nats between a row alone and the same row in a batch.

    Raises:
        ModelError: it is more than rounding, or a row's beginning changes with what follows it.
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


def find_decoder(model: PreTrainedModel, tolerance: float = EXACTNESS_TOLERANCE) -> Decoder | None:
    """What runs this model without transformers, or None.

    On a CPU, where it was measured to pay; only for architectures made of the same operations; and only if it gives
    the log-probs that transformers gives, tried on a tiny random tree in float32.
    """
    if model.device.type != "cpu" or not Decoder.runs(model):
        return None
    decoder, examples = Decoder(model), [_random_example(model)]
    with torch.no_grad(), _InFloat32():
        expected = _logprobs(model, examples, "tree")
        batch = build_tree_batch(examples)
        states = decoder.states(batch, batch.source_row, batch.source_column)
        found = _head_logprobs(model, states, batch.targets)
    if expected is None or _largest(found, expected) > tolerance:
        return None
    decoder.lay_weights_together()
    return decoder


class _InFloat32(TorchDispatchMode):
    """Every operation on tensors of a shorter number format is done in float32, and gives float32.

    The model stays as it is: an operation's own inputs are converted, one operation at a time.
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
    """The largest difference; infinite where there is a NaN."""
    return float((found - expected).abs().max().nan_to_num(torch.inf))


def _random_example(model: PreTrainedModel) -> Example:
    generator = torch.Generator().manual_seed(0)
    size = model.config.get_text_config().vocab_size

    def random_ids(count: int) -> list[int]:
        return torch.randint(0, size, (count,), generator=generator).tolist()

    return Example(random_ids(7), [random_ids(5), random_ids(3), random_ids(4)])


def _why_no_tree(model: PreTrainedModel) -> str:
    """Why no tree needs to be tried: a short one would not show that columns count.

    Sliding windows are known, and counted in positions; other layers that see a window or a chunk (GPT-Neo's local
    attention, Llama 4's chunks) count columns. So do models that take no positions (ALiBi).
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


def _logprobs(model: PreTrainedModel, examples: list[Example], layout: str) -> Tensor | None:
    batch = build_tree_batch(examples if layout == "tree" else separate(examples)).to(model.device)
    try:
        hidden = trunk(model, batch, layout=layout)
    except (TypeError, ValueError, RuntimeError):
        return None  # takes no position_ids, or no 4-D mask
    return _head_logprobs(model, hidden[batch.source_row, batch.source_column], batch.targets)


def _head_logprobs(model: PreTrainedModel, states: Tensor, targets: Tensor) -> Tensor:
    logits = adjust_logits(model.get_output_embeddings()(states).float(), final_logits(model))
    return logits.log_softmax(-1).gather(-1, targets[:, None])


def _own_logprobs(model: PreTrainedModel, input_ids: Tensor, attended: Tensor) -> Tensor:
    return model(input_ids=input_ids, attention_mask=attended.long(), use_cache=False).logits.float().log_softmax(-1)
