"""The engine that runs a base through transformers without padding: trees end to end in one row, under a block mask.

For GPUs, where `flex.py`'s kernel was tried at loading. Prefill and decoding are the padded engine's.
"""

from __future__ import annotations

from torch import Tensor
from transformers import PreTrainedModel

from onebase.engines.flex import NAME, attending_with_flex, block_mask
from onebase.engines.padded import PaddedEngine, mask_argument, row_of, sliding_window
from onebase.records import TreeBatch


class FlatEngine(PaddedEngine):
    """Runs `role` of a base through transformers; see `engine.Engine` for the methods."""

    def states(self, batch: TreeBatch, place: Tensor, completion: Tensor) -> Tensor:
        base = self._base
        with base.role(self._role), base.recomputing(lambda: attending_with_flex(base.model)):
            return row_of(flat_trunk(base.model, batch), place)


def flat_trunk(model: PreTrainedModel, batch: TreeBatch, *, attention: str = NAME) -> Tensor:
    """Runs the model without its output layer over a batch in one row, with the adapters in force: `[T, H]`."""
    window = sliding_window(model)
    full = block_mask(batch.tree, batch.branch)
    near = None
    if window is not None:
        near = block_mask(batch.tree, batch.branch, position=batch.position_ids, window=window)
    with attending_with_flex(model, name=attention):
        output = model.base_model(
            input_ids=batch.input_ids[None],
            position_ids=batch.position_ids[None],
            attention_mask=mask_argument(model, full, near),
            use_cache=False,
        )
    return output.last_hidden_state[0]
