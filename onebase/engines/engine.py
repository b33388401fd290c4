"""The interface of an engine, which runs a base as one of its roles, and the choice between the three there are.

| engine                | runs                                     | for                                             |
| --------------------- | ---------------------------------------- | ----------------------------------------------- |
| `packed.PackedEngine` | our own loop over the layers, no padding | Llama-like models with plain LoRA, CPU or GPU   |
| `flat.FlatEngine`     | transformers, no padding                 | others, on a GPU with FlexAttention             |
| `padded.PaddedEngine` | transformers, in padded rows             | everything else                                 |

The choice is made per role, so a role whose adapter only transformers can run does not slow down the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from onebase.engines.flat import FlatEngine
from onebase.engines.packed import PackedEngine
from onebase.engines.padded import PaddedEngine
from onebase.models.adapters import plain_lora
from onebase.models.base import OneBase
from onebase.records import TreeBatch


class Decoding(Protocol):
    """Completions being decoded, one per slot; slots are numbered from 0 without gaps."""

    def prefill(self, prompts: Sequence[Sequence[int]], copies: int) -> Tensor:
        """Reads each prompt once and puts it in `copies` new slots; returns the states at its end, `[new slots, H]`."""
        ...

    def step(self, ids: Tensor) -> Tensor:
        """Appends one token to every slot, `ids [slots]`; returns the states after them, `[slots, H]`."""
        ...

    def keep(self, slots: Sequence[int]) -> None:
        """Drops all other slots (`slots` holds indices in order) and closes the gaps."""
        ...


class Engine(Protocol):
    """Runs a base as one role. All engines take batches in the same layout (`data.tree.build_tree_batch`)."""

    def states(self, batch: TreeBatch, place: Tensor, completion: Tensor) -> Tensor:
        """Hidden states after the final norm at the batch's places `[m]`: `[m, H]`.

        Args:
            completion: `[m]`, the completion each state is read for. It matters where each completion has its own row,
                because the prompt's states then exist once per row.
        """
        ...

    def slot_bytes(self, prompt_tokens: int, new_tokens: int, *, copies: int) -> int:
        """Bytes that decoding keeps per completion, of a prompt that has `copies` completions."""
        ...

    def decode(self, *, max_slots: int, max_length: int) -> Decoding:
        """Starts decoding up to `max_slots` completions at once, each up to `max_length` tokens including its prompt.

        The role must stay in force until the last step.
        """
        ...


def engine_of(base: OneBase, role: str) -> Engine:
    """The engine that runs this role on this base."""
    if packs(base, role):
        return PackedEngine(base, role)
    return FlatEngine(base, role) if runs_flat(base) else PaddedEngine(base, role)


def packs(base: OneBase, role: str) -> bool:
    """Whether this role runs in our own loop over the layers.

    Full-parameter training goes through transformers because the base's own weights need gradients; so do adapters that
    train with dropout, which PEFT applies.
    """
    if not base.packs or base.trained_in_full is not None:
        return False
    config = base.adapter_config(role)
    if config is None:
        return True
    return plain_lora(config, trains=base.roles[role].trains) and not base.has_lora_variant(role)


def runs_flat(base: OneBase) -> bool:
    """Whether roles that do not pack run without padding as well.

    Not with soft-capped scores under gradient checkpointing: PyTorch differentiates a change of the scores by tracing
    it, and checkpointing would take the trace's empty tensors for activations.
    """
    soft_capped = getattr(base.model.config.get_text_config(), "attn_logit_softcapping", None) is not None
    return base.flex and not (soft_capped and base.recomputes)


def any_pads(base: OneBase) -> bool:
    """Whether some role on this base runs in padded rows; if none does, a microbatch costs only its tokens."""
    return not runs_flat(base) and not (all(packs(base, role) for role in base.roles) if base.roles else base.packs)
