"""One frozen base in memory, with named roles on it (`roles.py`)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_layers import GradientCheckpointingLayer

from onebase.distributed.sharding import in_step
from onebase.errors import ModelError
from onebase.models.base_config import context_length
from onebase.models.heads import ScalarHead
from onebase.models.roles import Role, ScalarRole
from onebase.processes import ALONE, Group
from onebase.shown import shown


class OneBase:
    """Holds the base model, its tokenizer and the named roles.

    Args:
        model: a transformers causal language model, already on its device; frozen here.
        fingerprint: identifies the base's weights, so that a role made on another base is refused.
        layout: `tree` if prompt trees are exact for this architecture, else `separate`.
        packs: whether the packed engine runs this model, as tried at loading.
        flex: whether attention uses `engines/flex.py`'s kernel on this device, as tried at loading.
        group: the processes that share the work on this base.
        is_spread: whether each of them holds only a part of the base's weights (`distributed/sharding.py`).
        notes: limitations and what they cost, for whoever opens the base to print once.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        fingerprint: str,
        layout: str,
        name_or_path: str = "",
        packs: bool = False,
        flex: bool = False,
        group: Group = ALONE,
        is_spread: bool = False,
        notes: Sequence[str] = (),
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.fingerprint = fingerprint
        self.layout = layout
        self.name_or_path = name_or_path
        self.notes = list(notes)
        self.recomputes = False
        """Whether the backward pass recomputes each layer from its input instead of keeping its activations."""
        self.packs = packs
        self.flex = flex
        self.group, self.is_spread = group, is_spread
        self.roles: dict[str, Role] = {}
        self._active: str | None = None
        self.trained_in_full: str | None = None
        """The role whose training changes the base itself; None: no role does."""
        self._peft: PeftModel | None = None
        self._tuner_layers: list[BaseTunerLayer] = []
        model.requires_grad_(False)
        model.eval()

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def can_recompute(self) -> bool:
        """Whether gradient checkpointing is possible: some layers can be recomputed."""
        return self.packs or any(isinstance(module, GradientCheckpointingLayer) for module in self.model.modules())

    @property
    def active(self) -> str | None:
        """The role in force; None outside `with base.role(...)`."""
        return self._active

    @property
    def hidden_size(self) -> int:
        return int(self.model.get_input_embeddings().weight.shape[1])  # type: ignore[index]

    @property
    def context_length(self) -> int:
        """Positions the base can read at once."""
        return context_length(self.model.config)

    # ---------------------------------------------------------------------------------------------------- roles

    def add_role(
        self,
        name: str,
        *,
        adapter: PeftConfig | None = None,
        weights: dict[str, Tensor] | None = None,
        copy_of: str | None = None,
        head: bool = False,
        trains: bool = False,
    ) -> Role:
        """Adds a role: on a new adapter, on a copy of another role's adapter (`copy_of`), or with adapters off.

        Args:
            adapter: the configuration of any adapter that PEFT injects into layers; all roles of a base need one kind.
            weights: the adapter's tensors as PEFT saves them; None starts it fresh.
            head: make it a `ScalarRole`. Its head starts at zero, or as a copy of the copied role's head if it has one.

        Raises:
            ModelError: the name is taken, the adapter's configuration is invalid, the weights do not fit it, or the
                base itself is being trained.
        """
        self._check_new(name)
        source = self.roles[copy_of] if copy_of is not None else None
        if source is not None and source.adapter is not None:
            adapter, weights = self.adapter_config(source.name), self.adapter_weights(source.name)
        if adapter is not None:
            self._add_adapter(name, adapter, weights)
        own = name if adapter is not None else None
        if head:
            scalar = ScalarRole(name=name, adapter=own, trains=trains, head=self._new_head())
            if isinstance(source, ScalarRole):
                scalar.head.load_state_dict(source.head.state_dict())
            self.roles[name] = scalar
        else:
            self.roles[name] = Role(name=name, adapter=own, trains=trains)
        self._apply(self._active)
        return self.roles[name]

    def share_adapter(self, name: str, *, with_role: str, trains: bool = True) -> ScalarRole:
        """Adds a role that is only a scalar head on another role's adapter, such as the critic on the policy's trunk.

        Raises:
            ModelError: the name is taken.
        """
        if name in self.roles:
            raise ModelError(f"role '{name}' exists already; roles here: {', '.join(self.roles)}")
        role = ScalarRole(name=name, adapter=self.roles[with_role].adapter, trains=trains, head=self._new_head())
        self.roles[name] = role
        self._apply(self._active)
        return role

    def scalar_role(self, name: str) -> ScalarRole:
        """The role of this name as a `ScalarRole`.

        Raises:
            ModelError: the role has no scalar head.
        """
        role = self.roles[name]
        if not isinstance(role, ScalarRole):
            raise ModelError(f"role '{name}' gives no scores or values: it has no scalar head")
        return role

    def remove_role(self, name: str) -> None:
        """Takes a role and its adapter off the base.

        Raises:
            ModelError: another role's head stands on its adapter, or the role has trained the base itself.
        """
        if name == self.trained_in_full:
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
        """Puts this role in force, and on leaving restores whatever was in force before."""
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

    def in_step(self) -> AbstractContextManager[None]:
        """Every process's passes without gradient, however many each makes, belong into this block."""
        return in_step(self.model, self.group) if self.is_spread else nullcontext()

    @contextmanager
    def recomputing(self, within: Callable[[], AbstractContextManager[Any]] = nullcontext) -> Iterator[None]:
        """Makes layers run by transformers recompute in the backward pass, under the role in force now.

        Args:
            within: what else has to be in force while a layer is recomputed.
        """
        name = self._active
        layers = [module for module in self.model.modules() if isinstance(module, GradientCheckpointingLayer)]
        if not self.recomputes or not torch.is_grad_enabled() or name is None:
            layers = []

        @contextmanager
        def in_force() -> Iterator[None]:
            with self.role(name), within():  # type: ignore[arg-type]
                yield

        def again() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
            return nullcontext(), in_force()

        # Patched per layer: transformers' own checkpointing only works in training mode.
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
        """The parameters a role trains: its adapter and head, or the whole base in full-parameter training.

        A role that is a head on another role's adapter owns only the head.
        """
        role = self.roles[name]
        owned: list[nn.Parameter] = []
        if role.adapter == name:
            owned = self._adapter_parameters(name)
        elif role.adapter is None and self.trained_in_full == name:
            owned = list(self.model.parameters())
        return owned + (list(role.head.parameters()) if isinstance(role, ScalarRole) else [])

    def train_base(self, name: str) -> None:
        """Starts full-parameter training: the role `name`, adapters off, owns the base's own parameters.

        Raises:
            ModelError: the base is quantised, or it holds other roles that would change with it.
        """
        if getattr(self.model, "is_quantized", False):
            raise ModelError("a quantised base cannot be trained in full", remedy="quantised-in-full")
        others = [role.name for role in self.roles.values() if role.name != name]
        if others:
            raise ModelError(f"training the base in full would change the roles on it: {', '.join(others)}")
        self.roles[name].trains = True
        self.trained_in_full = name
        self.model.requires_grad_(True)

    def merged(self, name: str) -> PreTrainedModel:
        """Merges a role's adapter into the base's own weights and returns the model; all roles leave the base.

        A weight in 16 bits is added to in float32 and rounded once.

        Raises:
            ModelError: the base is quantised, or the adapter cannot be merged.
        """
        if getattr(self.model, "is_quantized", False):
            raise ModelError("an adapter cannot be merged into a quantised base; load the base in 16 bits")
        if (adapter := self.roles[name].adapter) is not None and self._peft is not None:
            try:
                tuner: Any = self._peft.base_model
                tuner.merge_and_unload(adapter_names=[adapter])
            except (ValueError, RuntimeError, NotImplementedError) as error:  # kinds that PEFT cannot merge
                raise ModelError(f"the adapter of role '{name}' cannot be merged: {shown(error, 200)}") from error
        self._peft, self._tuner_layers, self._active = None, [], None
        self.roles.clear()
        return self.model

    def adapter_config(self, name: str) -> PeftConfig | None:
        """The PEFT configuration of a role's adapter; None if the role runs with adapters off."""
        role = self.roles[name]
        return None if role.adapter is None or self._peft is None else self._peft.peft_config[role.adapter]

    def has_lora_variant(self, name: str) -> bool:
        """Whether some layer computes a role's adapter as a variant of LoRA (DoRA, aLoRA and others)."""
        adapter = self.roles[name].adapter
        return any(adapter in (getattr(layer, "lora_variant", None) or {}) for layer in self._tuner_layers)

    def adapter_weights(self, name: str) -> dict[str, Tensor]:
        """The adapter's tensors under PEFT's saved names, as detached copies on CPU."""
        role = self.roles[name]
        if role.adapter is None or self._peft is None:
            return {}
        state = get_peft_model_state_dict(self._peft, adapter_name=role.adapter)
        return {key: tensor.detach().to("cpu", copy=True).contiguous() for key, tensor in state.items()}

    def set_adapter_weights(self, name: str, weights: dict[str, Tensor]) -> None:
        """Restores what `adapter_weights` returned, in place, so that an optimizer keeps its parameters."""
        adapter = self.roles[name].adapter
        assert adapter is not None and self._peft is not None, f"role '{name}' has no adapter"
        set_peft_model_state_dict(self._peft, weights, adapter_name=adapter)
        self.roles[name].version += 1

    # -------------------------------------------------------------------------------------------------- internal

    def _check_new(self, name: str) -> None:
        if name in self.roles:
            raise ModelError(f"role '{name}' exists already; roles here: {', '.join(self.roles)}")
        if self.trained_in_full is not None:
            raise ModelError(
                f"role '{name}' would change as '{self.trained_in_full}' trains the base in full",
                remedy="train-an-adapter",
            )

    def _new_head(self) -> ScalarHead:
        return ScalarHead(self.hidden_size).to(self.device)

    def _add_adapter(self, name: str, config: PeftConfig, weights: dict[str, Tensor] | None) -> None:
        reason = _why_not_beside_others(config)
        if reason:
            raise ModelError(f"the adapter of role '{name}' {reason}")
        if self.is_spread and (name_of := _reads_weights(config)):
            raise ModelError(
                f"the adapter of role '{name}' has {name_of}, which reads the base's weights, and of a base spread "
                "over several processes each holds a part"
            )
        head = self.model.get_output_embeddings()
        try:
            if self._peft is None:
                self._peft = PeftModel(self.model, config, adapter_name=name)
            else:
                self._peft.add_adapter(name, config)
        except (ValueError, TypeError, AttributeError, KeyError, re.error) as error:  # PEFT checks nothing beforehand
            raise ModelError(f"the adapter of role '{name}' cannot be put on this base: {shown(error, 200)}") from error
        self._tuner_layers = [module for module in self.model.modules() if isinstance(module, BaseTunerLayer)]
        self.model.eval()  # PEFT adds its dropout layers in training mode, whatever mode the model is in
        problem = ""
        if self.model.get_output_embeddings() is not head:
            self.model.set_output_embeddings(head)
            problem = "it adapts the output layer, which all roles read as it is"
        elif weights is not None and (misfit := _misfit(self._peft, name, weights)):
            problem = f"{misfit}; was it made on another architecture?"
        if problem:
            self._peft.delete_adapter(name)
            self._apply(self._active)
            raise ModelError(f"the adapter of role '{name}' does not fit this base: {problem}")

    def _apply(self, name: str | None) -> None:
        """Puts a role in force. Which parameters train never depends on which role is in force."""
        self._active = name
        adapter = self.roles[name].adapter if name is not None else None
        for layer in self._tuner_layers:
            # inference_mode: otherwise PEFT makes the adapter it activates trainable.
            layer.set_adapter([adapter] if adapter else [], inference_mode=True)
        for role in self.roles.values():
            if role.trains and role.adapter == role.name:  # a head on another role's adapter does not train the adapter
                for parameter in self._adapter_parameters(role.name):
                    parameter.requires_grad_(True)
            if isinstance(role, ScalarRole):
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


def _why_not_beside_others(config: PeftConfig) -> str:
    """Why an adapter would not stay in layers of its own, where the base and other roles never see it; else empty."""
    kind = str(config.peft_type).removeprefix("PeftType.")
    tuners: dict[Any, type] = PEFT_TYPE_TO_TUNER_MAPPING
    if not issubclass(tuners.get(config.peft_type, object), BaseTuner):
        return f"is {shown(kind, 40)}, which does not go into a model's layers; use LoRA, or another kind that does"
    for name in ("bias", "layer_replication", "modules_to_save", "trainable_token_indices"):
        value = getattr(config, name, None)
        if value and value != "none":
            return f"has {name} = {shown(repr(value), 60)}, which the base and other roles would share; leave it out"
    return ""


def _reads_weights(config: PeftConfig) -> str:
    """The setting by which an adapter reads the base's weights when it is made; empty if it reads none."""
    start = getattr(config, "init_lora_weights", True)
    if isinstance(start, str) and start != "gaussian":
        return f"init_lora_weights = {shown(start, 40)}"
    return "use_dora" if getattr(config, "use_dora", False) else ""


def _misfit(peft: PeftModel, name: str, weights: dict[str, Tensor]) -> str:
    """Loads an adapter's tensors; returns what does not fit, or an empty text."""
    try:
        result: Any = set_peft_model_state_dict(peft, weights, adapter_name=name)
    except RuntimeError as error:  # a tensor of another shape
        return str(error).strip().splitlines()[-1].strip().rstrip(".")
    own = {key for key, _ in peft.named_parameters() if f".{name}." in f"{key}."}
    missing, unexpected = [key for key in result.missing_keys if key in own], list(result.unexpected_keys)
    if not missing and not unexpected:
        return ""
    first = (missing or unexpected)[0]
    return f"{len(missing)} tensors missing and {len(unexpected)} unexpected, the first is '{first}'"
