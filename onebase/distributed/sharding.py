"""A base spread over several devices: each process holds a part of every weight, and layers meet just before they run.

FSDP2 (`torch.distributed.fsdp.fully_shard`) does it, layer by layer: in the forward and in the backward pass a layer's
weights are gathered from all processes, used, and dropped again. Adapters and heads are added afterwards and belong to
no layer's weights, so every process holds them whole, and their gradients are summed as without sharding.

The output layer stays whole, and with it the embedding where the two are one weight: the output layer's products run a
chunk of tokens at a time, and no two processes have the same number of chunks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from onebase.errors import ModelError
from onebase.processes import Group
from onebase.shown import number_of


def spread(model: Any, group: Group, device: torch.device) -> None:
    """Spreads a frozen transformers model, which is on the CPU, over all processes' devices, in place.

    Every process has to call this with the same model.

    Raises:
        ModelError: this architecture has no list of layers.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard  # takes half a second, and few need it

    model.requires_grad_(False)
    layers, trunk = _layers(model), model.base_model
    mesh = init_device_mesh(device.type, (group.count,))
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    whole = set(model.get_output_embeddings().parameters())
    fully_shard(trunk, mesh=mesh, reshard_after_forward=True, ignored_params=whole)
    model.to(device)


def held_bytes(model: nn.Module) -> tuple[int, int]:
    """Bytes of a model's weights that this process holds between two passes, and those of the whole model."""
    held = whole = 0
    for parameter in model.parameters():
        own = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        held += own.numel() * own.element_size()
        whole += parameter.numel() * parameter.element_size()
    return held, whole


@contextmanager
def in_step(model: Any, group: Group) -> Iterator[None]:
    """Lets each process run a spread model as often as it has work, without gradient.

    A pass gathers weights from all processes, so all must make the same number of them. Before each pass of its trunk a
    process says that it makes one; whoever has none left, once this block ends, takes part in the others' with a token
    of its own, until all are done. Every process has to enter this block.
    """
    trunk = model.base_model

    def announce(*_: object) -> None:
        group.any(True)

    announced = trunk.register_forward_pre_hook(announce, prepend=True)  # before the first weights are gathered
    try:
        yield
    finally:
        announced.remove()
    idle = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    with torch.no_grad():
        while group.any(False):
            trunk(input_ids=idle, use_cache=False)


def weight_storages(parameters: Iterable[nn.Parameter]) -> set[int]:
    """Addresses of the memory that weights lie in, without those that are held in parts."""
    return {p.untyped_storage().data_ptr() for p in parameters if not isinstance(p, DTensor)}


@contextmanager
def gathered_weights(model: nn.Module, known: set[int]) -> Iterator[None]:
    """Adds to `known` the addresses of the weights that a spread model gathers for a layer, while the layer runs."""

    def gathered(module: nn.Module, _: Any) -> None:
        known.update(weight_storages(module.parameters(recurse=False)))

    def dropped(module: nn.Module, *_: Any) -> None:
        known.difference_update(weight_storages(module.parameters(recurse=False)))

    spread = [m for m in model.modules() if any(isinstance(p, DTensor) for p in m.parameters(recurse=False))]
    handles = [module.register_forward_pre_hook(gathered) for module in spread]
    handles += [module.register_forward_hook(dropped) for module in spread]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _layers(model: Any) -> nn.ModuleList:
    count = model.config.get_text_config().num_hidden_layers
    for module in model.base_model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise ModelError(
        f"{type(model).__name__} has no list of {number_of(count, 'layer')} that could be spread over several "
        "devices; it has to "
        "fit each of them whole"
    )
