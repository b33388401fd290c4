"""Chooses which of a model's layers get LoRA adapters, as PEFT configurations."""

from __future__ import annotations

import re
from collections.abc import Sequence

from peft import LoraConfig, PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from onebase.errors import ModelError
from onebase.shown import shown


def lora_config(
    model: PreTrainedModel,
    *,
    r: int,
    alpha: float,
    dropout: float = 0.0,
    target_modules: str | Sequence[str] = "all-linear",
    layers: str | Sequence[int] = "all",
) -> LoraConfig:
    """A LoRA configuration for this model.

    Args:
        dropout: off by default. With it on, a tree's shared prompt gets one dropout mask for all its completions.
        target_modules: names of linear layers, or `all-linear`: all except the output layer and, in a model that also
            takes images or sound, those that do not read text.
        layers: `all`, `upper-half`, `upper-quarter`, a range such as `8-15`, or a list of indices from 0.

    Raises:
        ModelError: a name or a layer that the model does not have.
    """
    linear = _linear_layers(model)
    suffixes = {name.rsplit(".", 1)[-1] for name in linear}
    if target_modules == "all-linear":
        targets = sorted(suffixes)
    else:
        targets = [target_modules] if isinstance(target_modules, str) else list(target_modules)
        if not targets:
            raise ModelError(
                "no linear layer is named, so none would get an adapter",
                remedy="no-target-modules",
                names=", ".join(sorted(suffixes)),
            )
        unknown = [name for name in targets if name not in suffixes]
        if unknown:
            raise ModelError(
                f"no linear layer is named {shown(unknown[0], 60)!r}; here: {', '.join(sorted(suffixes))}",
                remedy="unknown-target-module",
            )
    num_layers = int(model.config.get_text_config().num_hidden_layers)
    chosen = layer_indices(layers, num_layers)
    return LoraConfig(
        r=r,
        lora_alpha=alpha,  # type: ignore[arg-type]
        lora_dropout=dropout,
        target_modules=targets,
        exclude_modules=_outside_text(model),
        layers_to_transform=None if len(chosen) == num_layers else chosen,
        task_type="CAUSAL_LM",
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in linear.values()),
    )


def without_adapter(model: PreTrainedModel) -> str:
    """Which layers `all-linear` cannot adapt, in words; empty if it adapts all."""
    fused = {
        type(module).__name__
        for module in model.modules()
        for parameter in module.parameters(recurse=False)
        if parameter.dim() == 3 and "Expert" in type(module).__name__
    }
    if not fused:
        return ""
    return (
        f"{', '.join(sorted(fused))} hold the weights of all experts in one tensor: the experts get no adapter and "
        "stay as they are"
    )


def plain_lora(config: PeftConfig, *, trains: bool) -> bool:
    """Whether an adapter computes only W x + s B A x: no variant of LoRA, no dropout in training."""
    return (
        isinstance(config, LoraConfig)
        and not (trains and config.lora_dropout)
        and not config.use_dora
        and not config.lora_bias
        and not config.fan_in_fan_out
    )


def _linear_layers(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The base's linear layers that read text, by name: adapted or not, without the output layer."""
    output, outside = model.get_output_embeddings(), _outside_text(model)
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        inside_adapter = ".base_layer" in name or ".lora_" in name
        layer = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
        if isinstance(layer, nn.Linear | Conv1D) and layer is not output and not inside_adapter:
            if outside is None or not re.fullmatch(outside, name):
                found[name] = layer
    return found


def _outside_text(model: PreTrainedModel) -> str | None:
    """A pattern for the names of modules that text never reaches (a vision tower); None if there are none."""
    if model.config.get_text_config() is model.config:
        return None
    decoder = model.get_decoder()
    name = next((name for name, module in model.named_modules() if module is decoder), "")
    return rf"(?!{re.escape(name)}\.).*" if name else None


def layer_indices(layers: str | Sequence[int], num_layers: int) -> list[int]:
    everything = list(range(num_layers))
    if layers == "all":
        return everything
    if layers == "upper-half":
        return everything[num_layers // 2 :]
    if layers == "upper-quarter":
        return everything[num_layers - max(1, num_layers // 4) :]
    if isinstance(layers, str):
        first, _, last = layers.partition("-")
        last = last or first
        if not (first.isdigit() and last.isdigit()):
            raise ModelError(
                f"the layers {layers!r} are not all, upper-half, upper-quarter, a range such as 8-15, or a list",
                remedy="unknown-layers",
            )
        if int(last) >= num_layers:
            raise _outside(layers, num_layers)
        chosen = list(range(int(first), int(last) + 1))
    else:
        chosen = sorted(set(layers))
    if not chosen or min(chosen) < 0 or max(chosen) >= num_layers:
        raise _outside(repr(layers), num_layers)
    return chosen


def _outside(layers: str, num_layers: int) -> ModelError:
    return ModelError(
        f"the layers {shown(layers, 60)} reach outside the model's, 0-{num_layers - 1}", remedy="unknown-layers"
    )
