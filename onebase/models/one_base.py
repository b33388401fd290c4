"""One frozen base in memory, and the roles that are adapters on it.

| role      | adapter                                            | head          |
| policy    | yes (or none: full-parameter training of the base) | the base's    |
| reference | a frozen copy of what the policy started from,     | the base's    |
|           | or none where that is exactly the base             |               |
| reward    | yes                                                | ScalarHead    |
| critic    | yes, or the policy's own with a head on its trunk  | ScalarHead    |
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_layers import GradientCheckpointingLayer

from onebase.errors import ModelError
from onebase.models.adapters import plain_lora
from onebase.models.base_config import context_length
from onebase.models.decoder import Decoder
from onebase.models.heads import ScalarHead
from onebase.shown import shown


@dataclass(slots=True)
class Role:
    """A way to use the base: through an adapter or not, with a scalar head or not."""

    name: str
    adapter: str | None
    """The adapter's name in PEFT; None: adapters off."""
    head: ScalarHead | None
    trains: bool
    pooling: str = "last"
    """For a reward role: `last` scores the last token, `mean` the mean over the completion's tokens."""
    score_mean: float | None = None
    score_std: float | None = None
    """Moments of the held-out scores, to normalise by; None until they are measured."""


class OneBase:
    """Holds the base model, its tokenizer and the named roles.

    Args:
        model: a causal language model of transformers, already on its device; frozen here.
        fingerprint: of the base's weights: a role made on another base is refused.
        layout: `tree` where a prompt tree is exact for this architecture, else `separate`.
        decoder: runs the model without transformers where that is known to be the same.
        notes: what whoever opens the base should say once: what it cannot do, and what that costs.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        fingerprint: str,
        layout: str,
        name_or_path: str = "",
        decoder: Decoder | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.fingerprint = fingerprint
        self.layout = layout
        self.name_or_path = name_or_path
        self.notes = list(notes)
        self.recomputes = False
        """Whether the backward pass computes each layer again from its input instead of keeping what it needs."""
        self._decoder = decoder
        self.roles: dict[str, Role] = {}
        self._active: str | None = None
        self._trained_in_full: str | None = None
        self._peft: PeftModel | None = None
        self._tuner_layers: list[BaseTunerLayer] = []
        model.requires_grad_(False)
        model.eval()

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def decoder(self) -> Decoder | None:
        """What runs the trees and the decode steps; None: transformers, in padded rows.

        In full-parameter training the base's own weights need gradients, and dropout is PEFT's.
        """
        if self._decoder is None or self._trained_in_full is not None:
            return None
        if self._peft is not None and any(not plain_lora(config) for config in self._peft.peft_config.values()):
            return None
        if any(getattr(layer, "lora_variant", None) for layer in self._tuner_layers):  # DoRA, aLoRA and others
            return None
        return self._decoder

    @property
    def packs(self) -> bool:
        """Whether trees lie end to end in one row, without padding."""
        return self.layout == "tree" and self.decoder is not None

    @property
    def can_recompute(self) -> bool:
        """Whether gradient checkpointing is possible: there are layers that can be computed again."""
        return self.packs or any(isinstance(module, GradientCheckpointingLayer) for module in self.model.modules())

    @property
    def active(self) -> str | None:
        """The role in force, None outside `with one.role(...)`."""
        return self._active

    @property
    def hidden_size(self) -> int:
        return int(self.model.get_input_embeddings().weight.shape[1])  # type: ignore[index]

    @property
    def context_length(self) -> int:
        """Positions that the base can read at once."""
        return context_length(self.model.config)

    # ---------------------------------------------------------------------------------------------------- roles

    def add_role(
        self,
        name: str,
        *,
        lora: LoraConfig | None = None,
        weights: dict[str, Tensor] | None = None,
        copy_of: str | None = None,
        head: bool = False,
        trains: bool = False,
    ) -> Role:
        """Adds a role: on a new adapter (`lora`), on a copy of another role's (`copy_of`), or with adapters off.

        Args:
            weights: the adapter's tensors as PEFT saves them, instead of a fresh start.
            head: give it a scalar head, starting at zero, or at the copied role's where that has one.

        Raises:
            ModelError: the name is taken, the adapter's configuration cannot be, the weights do not fit it, or the base
                is itself in training.
        """
        self._check_new(name)
        source = self.roles[copy_of] if copy_of is not None else None
        if source is not None and source.adapter is not None:
            lora, weights = self.lora_config(source.name), self.adapter_weights(source.name)
        if lora is not None:
            self._add_adapter(name, lora, weights)
        new_head = ScalarHead(self.hidden_size).to(self.device) if head else None
        if new_head is not None and source is not None and source.head is not None:
            new_head.load_state_dict(source.head.state_dict())
        self.roles[name] = Role(name, name if lora is not None else None, new_head, trains)
        self._apply(self._active)
        return self.roles[name]

    def share_adapter(self, name: str, *, with_role: str, trains: bool = True) -> Role:
        """Adds a role that is only a scalar head on another role's adapter: the critic on the policy's trunk.

        Raises:
            ModelError: the name is taken.
        """
        if name in self.roles:
            raise ModelError(f"role '{name}' exists already; roles here: {', '.join(self.roles)}")
        role = Role(name, self.roles[with_role].adapter, ScalarHead(self.hidden_size).to(self.device), trains)
        self.roles[name] = role
        self._apply(self._active)
        return role

    def remove_role(self, name: str) -> None:
        """Takes a role and its adapter off the base.

        Raises:
            ModelError: another role's head stands on its adapter, or it has trained the base itself.
        """
        if name == self._trained_in_full:
            raise ModelError(f"role '{name}' has trained the base in full and cannot be taken off it")
        above = [role.name for role in self.roles.values() if role.adapter == name and role.name != name]
        if above:
            raise ModelError(f"role '{name}' cannot go: {', '.join(above)} stands on its adapter")
        role = self.roles.pop(name)
        if role.adapter == name and self._peft is not None:
            self._peft.delete_adapter(name)
        self._apply(self._active if self._active != name else None)

    @contextmanager
    def role(self, name: str) -> Iterator[Role]:
        """Runs the base as this role; on leaving, whatever was in force before is in force again."""
        if name not in self.roles:
            raise ModelError(f"no role '{name}' on this base; roles here: {', '.join(self.roles) or 'none'}")
        before = self._active
        if name != before:
            self._apply(name)
        try:
            yield self.roles[name]
        finally:
            if name != before:
                self._apply(before)

    @contextmanager
    def recomputing(self) -> Iterator[None]:
        """Has the layers that transformers runs computed again in the backward pass, under the role in force now."""
        name = self._active
        layers = [module for module in self.model.modules() if isinstance(module, GradientCheckpointingLayer)]
        if not self.recomputes or not torch.is_grad_enabled() or name is None:
            layers = []

        def again() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
            return nullcontext(), self.role(name)  # type: ignore[arg-type]

        # On the objects: transformers' own checkpointing looks whether the model is in training mode.
        before = [vars(layer).get("forward") for layer in layers]
        for layer in layers:
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, context_fn=again)
        try:
            yield
        finally:
            for layer, forward in zip(layers, before, strict=True):
                if forward is None:
                    del layer.forward
                else:
                    layer.forward = forward

    def _tuner_modules(self) -> list[nn.Module]:
        return [layer for layer in self._tuner_layers if isinstance(layer, nn.Module)]

    @contextmanager
    def dropout(self) -> Iterator[None]:
        """Turns adapter dropout on for a training pass; everywhere else it is off."""
        layers = [m for layer in self._tuner_modules() for m in layer.modules() if isinstance(m, nn.Dropout)]
        for layer in layers:
            layer.train()
        try:
            yield
        finally:
            for layer in layers:
                layer.eval()

    def parameters(self, name: str) -> list[nn.Parameter]:
        """What the optimizer gets for a role: its adapter and head, or the whole base in full-parameter training.

        A head on another role's adapter owns the head alone.
        """
        role = self.roles[name]
        owned: list[nn.Parameter] = []
        if role.adapter == name:
            owned = self._adapter_parameters(name)
        elif role.adapter is None and self._trained_in_full == name:
            owned = list(self.model.parameters())
        return owned + (list(role.head.parameters()) if role.head else [])

    def train_base(self, name: str) -> None:
        """Full-parameter training: the role `name`, adapters off, owns the base's own parameters.

        Raises:
            ModelError: the base is quantised, or other roles stand on it and would change with it.
        """
        if getattr(self.model, "is_quantized", False):
            raise ModelError("a quantised base cannot be trained in full; set model.quantization: none, or lora.r >= 1")
        others = [role.name for role in self.roles.values() if role.name != name]
        if others:
            raise ModelError(f"training the base in full would change the roles on it: {', '.join(others)}")
        self.roles[name].trains = True
        self._trained_in_full = name
        self.model.requires_grad_(True)

    def lora_config(self, name: str) -> LoraConfig:
        """The PEFT configuration of a role's adapter."""
        role = self.roles[name]
        if role.adapter is None or self._peft is None:
            raise ModelError(f"role '{name}' has no adapter: it is the base itself")
        return self._peft.peft_config[role.adapter]  # type: ignore[return-value]

    def adapter_weights(self, name: str) -> dict[str, Tensor]:
        """The adapter's tensors under the names PEFT saves them by, detached copies on CPU."""
        role = self.roles[name]
        if role.adapter is None or self._peft is None:
            return {}
        state = get_peft_model_state_dict(self._peft, adapter_name=role.adapter)
        return {key: tensor.detach().to("cpu", copy=True).contiguous() for key, tensor in state.items()}

    def set_adapter_weights(self, name: str, weights: dict[str, Tensor]) -> None:
        """Puts back what `adapter_weights` gave, in place: an optimizer keeps its parameters."""
        adapter = self.roles[name].adapter
        assert adapter is not None and self._peft is not None, f"role '{name}' has no adapter"
        set_peft_model_state_dict(self._peft, weights, adapter_name=adapter)

    # -------------------------------------------------------------------------------------------------- internal

    def _check_new(self, name: str) -> None:
        if name in self.roles:
            raise ModelError(f"role '{name}' exists already; roles here: {', '.join(self.roles)}")
        if self._trained_in_full is not None:
            raise ModelError(
                f"role '{name}' would change as '{self._trained_in_full}' trains the base in full; "
                "train an adapter instead: lora.r >= 1"
            )

    def _add_adapter(self, name: str, lora: LoraConfig, weights: dict[str, Tensor] | None) -> None:
        try:
            if self._peft is None:
                self._peft = PeftModel(self.model, lora, adapter_name=name)
            else:
                self._peft.add_adapter(name, lora)
        except (ValueError, TypeError, AttributeError, KeyError, re.error) as error:  # PEFT checks nothing beforehand
            raise ModelError(f"the adapter of role '{name}' cannot be put on this base: {shown(error, 200)}") from error
        self._tuner_layers = [module for module in self.model.modules() if isinstance(module, BaseTunerLayer)]
        self.model.eval()  # PEFT's new dropout layers are in training mode, whatever the model is in
        if weights is None:
            return
        problem = _misfit(self._peft, name, weights)
        if problem:
            self._peft.delete_adapter(name)
            self._apply(self._active)
            raise ModelError(
                f"the adapter of role '{name}' does not fit this base: {problem}; was it made on another architecture?"
            )

    def _apply(self, name: str | None) -> None:
        """Puts a role in force. Which parameters train never depends on which role is in force."""
        self._active = name
        adapter = self.roles[name].adapter if name is not None else None
        for layer in self._tuner_layers:
            # inference_mode: PEFT would make the adapter trainable that it activates.
            layer.set_adapter([adapter] if adapter else [], inference_mode=True)
        for role in self.roles.values():
            if role.trains and role.adapter == role.name:  # a head on another role's adapter does not train that
                for parameter in self._adapter_parameters(role.name):
                    parameter.requires_grad_(True)
            if role.head is not None:
                role.head.requires_grad_(role.trains)

    def _adapter_parameters(self, adapter: str) -> list[nn.Parameter]:
        parameters: list[nn.Parameter] = []
        for layer in self._tuner_layers:
            for attribute in layer.adapter_layer_names:
                branch = getattr(layer, attribute)
                if adapter in branch:
                    value = branch[adapter]
                    parameters += [value] if isinstance(value, nn.Parameter) else list(value.parameters())
        return parameters


def _misfit(peft: PeftModel, name: str, weights: dict[str, Tensor]) -> str:
    """Loads an adapter's tensors and says what does not fit, if anything."""
    try:
        result: Any = set_peft_model_state_dict(peft, weights, adapter_name=name)
    except RuntimeError as error:  # a tensor of another shape
        return str(error).strip().splitlines()[-1].strip().rstrip(".")
    missing, unexpected = [key for key in result.missing_keys if f".{name}." in key], list(result.unexpected_keys)
    if not missing and not unexpected:
        return ""
    first = (missing or unexpected)[0]
    return f"{len(missing)} tensors missing and {len(unexpected)} unexpected, the first is '{first}'"
