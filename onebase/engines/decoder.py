"""Runs a Llama-like decoder layer by layer: over prompt trees laid end to end without padding, or one token at a time.

transformers loads the model and holds its modules, PEFT holds the adapters; this file holds only the order of the
operations, for the architectures that share it (Llama, Mistral, Qwen2, Qwen3). All others go through transformers.
Loading a model checks that both give the same result.

    h = x + O(attention(rotate(Q(n)), rotate(K(n)), V(n))),   n = norm(x)
    y = h + Down(silu(Gate(m)) * Up(m)),                      m = norm(h)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from onebase.engines.decoder_steps import gated_silu, rms_norm, rotate_
from onebase.engines.flex import FlexTrees, flex_trees
from onebase.engines.projection import Projection, lay_together, project, projection_of
from onebase.engines.slots import places_end_to_end
from onebase.engines.tree_attention import TreeGroups, group_sequences, group_trees
from onebase.models.base_config import attention_heads
from onebase.models.hardware import usual_size
from onebase.records import LowerStates, TreeBatch
from onebase.transfer import to_device

FAMILY = ("llama", "mistral", "qwen2", "qwen3")
"""`model_type` of the architectures made of these operations in this order."""
ROTARY = ("default", "linear", "llama3", "yarn")
"""Kinds of rotary positions whose angles do not depend on a batch's length."""


Read = Callable[[int, Tensor, Tensor, Tensor, float], Tensor]
"""How a decoding step attends; see `Decoder.step`."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer's weights as the role in force sees them."""

    first_norm: nn.Module
    query_key_value: Projection
    head_norms: tuple[nn.Module, nn.Module] | None
    """Norms of each query and key head (Qwen3)."""
    output: Projection
    second_norm: nn.Module
    gate_up: Projection
    down: Projection

    @property
    def is_adapted(self) -> bool:
        """Whether the role in force has an adapter anywhere in this layer."""
        projections = (self.query_key_value, self.output, self.gate_up, self.down)
        return any(projection.adapters for projection in projections)


class Decoder:
    """Runs a model's modules in this file's order.

    Args:
        model: a transformers causal language model that `runs` accepts.
        flex: attend with FlexAttention (on a GPU where it was tried) instead of trees grouped by length.
    """

    def __init__(self, model: PreTrainedModel, *, flex: bool = False) -> None:
        self._flex = flex
        self._trunk: Any = model.base_model
        self._num_heads, self._num_kv_heads, self._head_size = attention_heads(model.config)
        self._scaling = self._head_size**-0.5

    @staticmethod
    def runs(model: PreTrainedModel) -> bool:
        """Whether the model belongs to the family, with linear layers in one number format or in 4 bits."""
        config: Any = model.config.get_text_config()
        rope = getattr(config, "rope_parameters", None) or {}
        window = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
        return (
            config.model_type in FAMILY
            and (not getattr(model, "is_quantized", False) or getattr(model, "is_loaded_in_4bit", False))
            and not window
            and rope.get("rope_type", "default") in ROTARY
            and not rope.get("partial_rotary_factor", None)
            and getattr(config, "hidden_act", "") == "silu"
        )

    def layers(self) -> list[Layer]:
        """Every layer's weights, with the adapter in force now."""
        found = []
        for layer in self._trunk.layers:
            attention, mlp = layer.self_attn, layer.mlp
            norms = (attention.q_norm, attention.k_norm) if hasattr(attention, "q_norm") else None
            found.append(
                Layer(
                    layer.input_layernorm,
                    projection_of(attention.q_proj, attention.k_proj, attention.v_proj),
                    norms,
                    projection_of(attention.o_proj),
                    layer.post_attention_layernorm,
                    projection_of(mlp.gate_proj, mlp.up_proj),
                    projection_of(mlp.down_proj),
                )
            )
        return found

    def lay_weights_together(self) -> None:
        """Lays the base's weights out so that linear layers with the same input share one matrix product."""
        for layer in self._trunk.layers:
            attention, mlp = layer.self_attn, layer.mlp
            lay_together(attention.q_proj, attention.k_proj, attention.v_proj)
            lay_together(mlp.gate_proj, mlp.up_proj)

    @property
    def device(self) -> torch.device:
        return self._trunk.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self._trunk.embed_tokens.weight.dtype

    def states(self, batch: TreeBatch, place: Tensor, *, recompute: bool = False) -> Tensor:
        """Hidden states after the final norm at the requested places: `[m, H]`, with the adapter in force.

        Args:
            recompute: the backward pass recomputes each layer from its input.
        """
        return self.trees(
            batch.input_ids,
            batch.position_ids,
            self._laid(batch),
            columns=place,
            lower=batch.lower,
            recompute=recompute,
        )

    @torch.no_grad()
    def lower_states(self, batch: TreeBatch, num_layers: int) -> LowerStates:
        """The lowest layers' output for a batch, `[T, H]`: the same for every role that adapts none of them."""
        trees = self._laid(batch)
        x, rotary = self._start(batch.input_ids, batch.position_ids, None)
        for layer in self.layers()[:num_layers]:
            x = self._layer(layer, x, rotary, trees)
        return LowerStates(num_layers, x[: len(batch.input_ids)])

    def trees(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        trees: TreeGroups | FlexTrees,
        *,
        columns: Tensor | None = None,
        keep: list[tuple[Tensor, Tensor]] | None = None,
        lower: LowerStates | None = None,
        recompute: bool = False,
    ) -> Tensor:
        """Hidden states after the final norm: `[T, H]`, or `[m, H]` for the requested columns.

        Args:
            input_ids, position_ids: `[T]`, trees end to end.
            trees: the same trees as attention reads them.
            columns: `[m]`, which states are needed; the last layer then computes only these.
            keep: where to append each layer's keys and values `[T, kv heads, d]`.
            lower: states to start from; ignored if the role in force adapts a layer below them.
        """
        layers, num_tokens = self.layers(), len(input_ids)
        if lower is not None and not any(layer.is_adapted for layer in layers[: lower.num_layers]):
            layers = layers[lower.num_layers :]
        else:
            lower = None
        x, rotary = self._start(input_ids, position_ids, lower)
        if columns is None:
            columns = torch.arange(num_tokens, device=input_ids.device)
        num_columns = len(columns)
        columns = pad(columns, (0, usual_size(num_columns) - num_columns))
        for layer in layers:
            only = columns if layer is layers[-1] else None  # nothing reads the other columns after this
            run = partial(self._layer, layer, only=only, num_tokens=num_tokens, keep=keep)
            if recompute and torch.is_grad_enabled():
                # `layer` carries its weights and adapter: another role may be in force during the backward pass.
                x = checkpoint(run, x, rotary, trees, use_reentrant=False, preserve_rng_state=False)
            else:
                x = run(x, rotary, trees)
        if not layers:  # a role that adapts nothing starts behind all of them
            x = _rows(x, columns)
        return _normed(x, self._trunk.norm)[:num_columns]

    def prefill(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Reads prompts laid end to end: states at their ends `[B, H]`, and each layer's keys and values
        `[T, kv heads, d]`.
        """
        lengths = [len(prompt) for prompt in prompts]
        ids = torch.tensor([token for prompt in prompts for token in prompt])
        ends = torch.tensor(lengths).cumsum(0) - 1
        ids, which, positions, ends = (to_device(x, self.device) for x in (ids, *places_end_to_end(lengths), ends))
        if self._flex:
            trees: TreeGroups | FlexTrees = flex_trees(which, torch.zeros_like(which), length=usual_size(len(ids)))
        else:
            trees = group_sequences(lengths, self.dtype, self.device)
        kept: list[tuple[Tensor, Tensor]] = []
        return self.trees(ids, positions, trees, columns=ends, keep=kept), kept

    def step(self, layers: Sequence[Layer], ids: Tensor, positions: Tensor, read: Read) -> Tensor:
        """Reads one token for every slot: `[B, H]`, no gradient.

        Args:
            layers: `layers()` under the decoding role.
            ids, positions: `[B]`.
            read: `(layer's number, query [B, heads, d], key, value [B, kv heads, d], scaling) -> [B, heads, d]`, which
                stores the token's key and value and attends to the row's tokens so far.
        """
        x = self._trunk.embed_tokens(ids)
        rotary = self._angles(x, positions)
        for i, layer in enumerate(layers):
            query, key, value = self._parts(self._heads(layer, x, rotary))
            x = _output_and_mlp(layer, x, read(i, query, key, value, self._scaling).flatten(1))
        return _normed(x, self._trunk.norm)

    def _laid(self, batch: TreeBatch) -> TreeGroups | FlexTrees:
        """The batch's trees as attention reads them."""
        if self._flex:
            return flex_trees(batch.tree, batch.branch, length=usual_size(len(batch.tree)))
        return group_trees(batch, self.dtype)

    def _start(
        self, input_ids: Tensor, position_ids: Tensor, lower: LowerStates | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Input of the first layer to run, `[T, H]` padded to a usual size, and the angles of its positions."""
        padding = usual_size(len(input_ids)) - len(input_ids)  # in no group, so attention leaves it at zero
        if lower is None:
            x = self._trunk.embed_tokens(pad(input_ids, (0, padding)))
        else:
            x = pad(lower.states, (0, 0, 0, padding))
        return x, self._angles(x, pad(position_ids, (0, padding)))

    def _layer(
        self,
        layer: Layer,
        x: Tensor,
        rotary: tuple[Tensor, Tensor],
        trees: TreeGroups | FlexTrees,
        *,
        only: Tensor | None = None,
        num_tokens: int = 0,
        keep: list[tuple[Tensor, Tensor]] | None = None,
    ) -> Tensor:
        """One layer over trees, `[T, H]`, or only its columns `only`; `keep` as in `trees`."""
        heads = self._heads(layer, x, rotary)
        if keep is not None:
            _, key, value = self._parts(heads[:num_tokens])
            keep.append((key.clone(), value.clone()))  # without the queries beside them
        read = trees.attend(heads, self._scaling, num_heads=self._num_heads).flatten(1)
        if only is not None:
            read, x = _rows(read, only), _rows(x, only)
        return _output_and_mlp(layer, x, read)

    def _angles(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        cosine, sine = self._trunk.rotary_emb(x, position_ids[None])
        return cosine[0], sine[0]

    def _heads(self, layer: Layer, x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """Queries, keys and values side by side, `[T, heads + 2 kv heads, d]`; queries and keys are rotated."""
        projected = project(_normed(x, layer.first_norm), layer.query_key_value)
        heads = projected.unflatten(-1, (-1, self._head_size))
        if layer.head_norms is not None:
            query, key, value = self._parts(heads)
            query, key = (_normed(x, norm) for x, norm in zip((query, key), layer.head_norms, strict=True))
            heads = torch.cat([query, key, value], dim=1)
        return rotate_(heads, *rotary, num_heads=self._num_heads + self._num_kv_heads)

    def _parts(self, heads: Tensor) -> Sequence[Tensor]:
        return heads.split([self._num_heads, self._num_kv_heads, self._num_kv_heads], dim=1)


def _output_and_mlp(layer: Layer, x: Tensor, read: Tensor) -> Tensor:
    x = project(read, layer.output).add_(x)
    gate_up = project(_normed(x, layer.second_norm), layer.gate_up)
    return project(gated_silu(gate_up), layer.down).add_(x)


def _normed(x: Tensor, norm: Any) -> Tensor:
    norm = norm.get_base_layer() if isinstance(norm, BaseTunerLayer) else norm  # no role that runs here adapts a norm
    return rms_norm(x, norm.weight, norm.variance_epsilon)


def _rows(x: Tensor, indices: Tensor) -> Tensor:
    # Not plain indexing: its backward pass adds gradients in whatever order threads finish.
    return torch.nn.functional.embedding(indices, x)
