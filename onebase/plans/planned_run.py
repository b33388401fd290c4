"""Reads a verb's configuration as a `PlannedRun`: which roles, how long the data is, how often each token is read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from onebase.config.language import PretrainConfig, SFTConfig
from onebase.config.losses import readers_of
from onebase.config.preferences import DPOConfig, RewardConfig
from onebase.config.rft import RFTConfig
from onebase.config.rollouts import BestOfConfig, IterateConfig, PPOConfig
from onebase.config.run import RunConfig
from onebase.errors import ModelError
from onebase.evaluation.answers import MAX_NEW_TOKENS, NUM_PROMPTS
from onebase.models.adapters import layer_indices
from onebase.models.loading import choose_device, hardware_dtype
from onebase.planning.architecture import Architecture, from_config, read_architecture
from onebase.planning.run import (
    Adapter,
    Lengths,
    PlannedRole,
    PlannedRun,
    Span,
    rollout_passes,
    supervised_passes,
)
from onebase.plans.planned_data import read_lengths
from onebase.recipes import best_of, iterate
from onebase.recipes.pretrain import VOCAB_SIZE, read_tokenizer
from onebase.recipes.setup.rollouts import num_rollouts, num_updates

WITHOUT_BF16 = ("t4",)
"""Machines that only emulate bfloat16, and on which `model.dtype: auto` is float32."""
DEFAULT_LORA = 16


def planned_run(
    config: RunConfig, *, machine: str | None = None, processes: int = 1, lengths: Lengths | None = None
) -> PlannedRun:
    """The run that this configuration describes; weights are not needed.

    Args:
        machine: name of the GPU it runs on; None: this machine.
        lengths: of the data; None: they are read.

    Raises:
        ModelError: the base's sizes are not known, or it has no such layer or module.
        DataError: the data is here and cannot be used.
    """
    architecture = architecture_of(config)
    where = _device_of(config, machine)
    lengths = lengths or read_lengths(config, architecture)
    if isinstance(config, IterateConfig):
        return _rounds(config, architecture, where, processes, lengths)
    if isinstance(config, PPOConfig | RFTConfig | BestOfConfig):
        return _sampling_run(config, architecture, where, processes, lengths)
    assert isinstance(config, PretrainConfig | SFTConfig | RewardConfig | DPOConfig)
    return _supervised_run(config, architecture, where, processes, lengths)


def architecture_of(config: RunConfig) -> Architecture:
    """The base's architecture, or that of the new model that pretraining makes."""
    keys: Any = config
    if keys.model.model_name_or_path is not None:
        return read_architecture(keys.model.model_name_or_path)
    tiny = keys.tiny
    vocabulary = tiny.vocab_size or VOCAB_SIZE
    if tiny.tokenizer is not None:
        vocabulary = len(read_tokenizer(tiny.tokenizer))
    sizes = {
        "model_type": "llama",
        "num_hidden_layers": tiny.num_layers,
        "hidden_size": tiny.hidden_size,
        "intermediate_size": -(-tiny.hidden_size * 8 // 3 // 16) * 16,  # as `models/scratch.py` makes it
        "num_attention_heads": tiny.num_heads,
        "vocab_size": vocabulary,
        "tie_word_embeddings": True,
        "max_position_embeddings": tiny.max_length,
        "dtype": "float32",
    }
    return from_config(sizes, "a new model")


def _device_of(config: RunConfig, machine: str | None) -> tuple[Literal["cpu", "cuda"], Literal["float32", "bfloat16"]]:
    """The kind of device, and what `model.dtype: auto` is on it."""
    keys: Any = config
    if machine is not None:
        return "cuda", "float32" if machine.lower() in WITHOUT_BF16 else "bfloat16"
    device = choose_device(keys.model.device)
    native = str(hardware_dtype(device)) == "torch.bfloat16"
    return "cuda" if device.type == "cuda" else "cpu", "bfloat16" if native else "float32"


def _format_of(config: RunConfig, auto: Literal["float32", "bfloat16"]) -> Literal["float32", "bfloat16"]:
    keys: Any = config
    in_full = isinstance(config, PretrainConfig) or (hasattr(keys, "lora") and keys.lora.r == 0)
    if keys.model.dtype != "auto":
        return keys.model.dtype
    return "float32" if in_full else auto


def _base_of(config: RunConfig, architecture: Architecture, where: Any, processes: int) -> dict[str, Any]:
    """What every verb's run has."""
    keys: Any = config
    device, auto = where
    microbatch = keys.batch.microbatch_tokens
    return {
        "architecture": architecture,
        "dtype": _format_of(config, auto),
        "quantization": keys.model.quantization,
        "device": device,
        "layout": "separate" if keys.model.layout == "separate" else "tree",
        "microbatch_tokens": None if microbatch == "auto" else microbatch,
        "checkpointing": keys.model.gradient_checkpointing,
        "processes": processes,
        "spread": bool(getattr(keys.model, "shard", False)) and processes > 1,
    }


def _adapter(lora: Any, architecture: Architecture) -> Adapter:
    """The adapter that these keys describe."""
    names = [layer.name for layer in architecture.linear]
    wanted = lora.target_modules
    modules: tuple[str, ...] | None = None
    if wanted != "all-linear":
        modules = (wanted,) if isinstance(wanted, str) else tuple(wanted)
        if unknown := [name for name in modules if name not in names]:
            raise ModelError(
                f"no linear layer is named {unknown[0]!r}; here: {', '.join(sorted(set(names)))}",
                remedy="unknown-target-module",
            )
    return Adapter(lora.r, tuple(layer_indices(lora.layers, architecture.layers)), modules)


def _saved_adapter(folder: str, lora: Any, architecture: Architecture) -> Adapter:
    """The adapter in a role's folder; one that is not there yet is taken to be as `lora` says."""
    path = Path(folder) / "adapter_config.json"
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        names = {layer.name for layer in architecture.linear}
        modules = tuple(name for name in saved["target_modules"] if name in names)
        layers = saved.get("layers_to_transform")
        every = tuple(range(architecture.layers))
        return Adapter(int(saved["r"]), every if layers is None else tuple(layers), modules)
    except (OSError, ValueError, KeyError, TypeError):
        if lora is not None and lora.r:
            return _adapter(lora, architecture)
        return Adapter(DEFAULT_LORA, tuple(range(architecture.layers)))


def _learner(name: str, config: Any, architecture: Architecture, *, head: bool = False) -> PlannedRole:
    """The role that trains on data."""
    start = getattr(config, "start_from", None)
    if start is not None:
        return PlannedRole(name, _saved_adapter(start, config.lora, architecture), head, trains=True)
    if isinstance(config, PretrainConfig) or config.lora.r == 0:
        return PlannedRole(name, None, head, trains=True, in_full=True)
    return PlannedRole(name, _adapter(config.lora, architecture), head, trains=True)


def _supervised_run(
    config: PretrainConfig | SFTConfig | RewardConfig | DPOConfig,
    architecture: Architecture,
    where: Any,
    processes: int,
    lengths: Lengths,
) -> PlannedRun:
    verb = {PretrainConfig: "pretrain", SFTConfig: "sft", RewardConfig: "reward", DPOConfig: "dpo"}[type(config)]
    learner = _learner("reward" if verb == "reward" else "policy", config, architecture, head=verb == "reward")
    roles, measured = [learner], ""
    if isinstance(config, DPOConfig):
        frozen = None
        if config.reference_role not in (None, "base"):
            frozen = _saved_adapter(str(config.reference_role), config.lora, architecture)
        elif config.reference_role is None and config.start_from is not None:
            frozen = learner.adapter
        roles.append(PlannedRole("reference", frozen))
        if set(readers_of("reference")) & set(config.loss_weights()):
            measured = config.preference.reference
    size, epochs = config.batch.minibatch, config.optimizer.num_epochs
    steps = config.max_steps or epochs * -(-lengths.examples // size)
    every = config.evaluation.every_steps
    answered = 0 if verb == "reward" else min(NUM_PROMPTS, lengths.held_out)
    passes = supervised_passes(
        learner.name,
        lengths,
        steps=steps,
        minibatch=size,
        evaluations=2 + (steps // every if every else 0),
        reference=measured,  # type: ignore[arg-type]
        answered=answered,
        answer_tokens=min(MAX_NEW_TOKENS, architecture.context // 2),
    )
    return PlannedRun(
        verb=verb,
        **_base_of(config, architecture, where, processes),
        roles=tuple(roles),
        lengths=lengths,
        minibatch=size,
        steps=steps,
        epochs=epochs,
        passes=passes,
        dropout=getattr(config, "lora", None) is not None and config.lora.dropout > 0,  # type: ignore[union-attr]
        evaluated=answered,
        max_new_tokens=min(MAX_NEW_TOKENS, architecture.context // 2) if answered else 0,
        samples_per_prompt=1 if answered else 0,
        starts_new=config.model.model_name_or_path is None,
    )


def _sampling_run(
    config: PPOConfig | RFTConfig | BestOfConfig,
    architecture: Architecture,
    where: Any,
    processes: int,
    lengths: Lengths,
) -> PlannedRun:
    roles = _sampling_roles(config, architecture)
    count, elsewhere = config.generation.samples_per_prompt, config.generation.engine != "own"
    shared = {
        **_base_of(config, architecture, where, processes),
        "roles": tuple(roles),
        "lengths": lengths,
        "samples_per_prompt": count,
        "max_new_tokens": config.generation.max_new_tokens,
        "elsewhere": elsewhere,
        "classifier": read_architecture(config.reward.model) if config.reward.model else None,
    }
    if isinstance(config, BestOfConfig):
        passes = rollout_passes(
            roles, lengths, prompts=lengths.examples, samples_per_prompt=count, epochs=0, elsewhere=elsewhere,
            measures=False,
        )  # fmt: skip
        size = min(best_of.PROMPTS_AT_A_TIME, lengths.examples)
        rollouts = -(-lengths.examples // best_of.PROMPTS_AT_A_TIME)
        return PlannedRun(
            verb="best-of", **shared, minibatch=0, steps=0, passes=passes, rollouts=rollouts, rollout_prompts=size
        )
    rl = config.ppo if isinstance(config, PPOConfig) else config.rft
    epochs = config.ppo.num_ppo_epochs if isinstance(config, PPOConfig) else config.rft.num_epochs
    rollouts = num_rollouts(config.max_steps, lengths.examples, rl.rollout_prompts)
    size = min(rl.rollout_prompts, lengths.examples)
    every, again = config.evaluation.every_steps, config.evaluation.samples_per_prompt
    held_out = min(config.evaluation.prompts, lengths.held_out)
    times = 2 + (rollouts // every if every else 0)
    passes = rollout_passes(
        roles,
        lengths,
        prompts=rollouts * size,
        samples_per_prompt=count,
        epochs=epochs,
        elsewhere=elsewhere,
        evaluated=times * held_out * again / count,
        as_sampled=isinstance(config, RFTConfig) and config.rft.learns_in_one_step and not elsewhere,
    )
    steps = num_updates(
        rollouts,
        lengths.examples,
        rollout_prompts=rl.rollout_prompts,
        minibatch_prompts=rl.minibatch_prompts,
        num_epochs=epochs,
    )
    return PlannedRun(
        verb="ppo" if isinstance(config, PPOConfig) else "rft",
        **shared,
        minibatch=rl.minibatch_prompts,
        steps=steps,
        passes=passes,
        rollouts=rollouts,
        rollout_prompts=size,
        epochs=epochs,
        evaluated=held_out * again,
    )


def _sampling_roles(config: PPOConfig | RFTConfig | BestOfConfig, architecture: Architecture) -> list[PlannedRole]:
    if isinstance(config, BestOfConfig):
        start = config.start_from
        roles = [PlannedRole("policy", _saved_adapter(start, None, architecture) if start else None)]
    else:
        learner = _learner("policy", config, architecture)
        roles = [learner]
        rl = config.ppo if isinstance(config, PPOConfig) else config.rft
        if isinstance(config, PPOConfig) or config.rft.kl_coefficient > 0:
            roles.append(PlannedRole("reference", learner.adapter if config.start_from is not None else None))
        if isinstance(config, PPOConfig) or config.advantage == "gae":
            scorer = None
            if config.reward.role is not None and rl.critic_start in ("auto", "reward"):
                scorer = _saved_adapter(config.reward.role, config.lora, architecture)
            own = None if rl.critic == "head" else scorer or learner.adapter
            roles.append(PlannedRole("critic", own, head=True, trains=True))
    if config.reward.role is not None:
        saved = _saved_adapter(config.reward.role, getattr(config, "lora", None), architecture)
        roles.append(PlannedRole("reward", saved, head=True))
    return roles


def _rounds(
    config: IterateConfig, architecture: Architecture, where: Any, processes: int, read_from: Lengths
) -> PlannedRun:
    """A round is a run of best-of and one of dpo or sft; all rounds have these sizes."""
    sampling = BestOfConfig.model_validate(iterate.sampling_options(config))
    sampled = _sampling_run(sampling, architecture, where, processes, read_from)
    prompts = min(config.prompts_per_round, sampled.lengths.examples)
    lengths = replace(sampled.lengths, examples=config.rounds * prompts)
    adapter = _adapter(config.lora, architecture)
    roles = (PlannedRole("policy", adapter if config.start_from or config.rounds > 1 else None), *sampled.roles[1:])
    generating = replace(
        sampled,
        roles=roles,
        lengths=lengths,
        passes=rollout_passes(
            roles,
            lengths,
            prompts=lengths.examples,
            samples_per_prompt=sampled.samples_per_prompt,
            epochs=0,
            elsewhere=sampled.elsewhere,
            measures=False,
        ),
        rollouts=config.rounds * -(-prompts // best_of.PROMPTS_AT_A_TIME),
        rollout_prompts=min(best_of.PROMPTS_AT_A_TIME, prompts),
    )
    kept = 1 if config.learn == "sft" else 2
    tree = lengths.prompt.mean + kept * lengths.completion.mean
    longest = lengths.prompt.longest + kept * lengths.completion.longest
    read = replace(
        lengths,
        tree=Span(tree, longest),
        completions=Span(kept, kept),
        counted=kept * lengths.completion.mean,
        examples=prompts,
        held_out=0,
    )
    epochs, size = config.optimizer.num_epochs, config.batch.minibatch
    steps = config.rounds * epochs * -(-prompts // size)
    learned = [PlannedRole("policy", adapter, trains=True)]
    if config.learn == "dpo":
        same = config.reference == "renewed" and (config.start_from is not None or config.rounds > 1)
        learned.append(PlannedRole("reference", adapter if same or config.start_from else None))
    learning = PlannedRun(
        verb=config.learn,
        **_base_of(config, architecture, where, processes),
        roles=tuple(learned),
        lengths=read,
        minibatch=size,
        steps=steps,
        epochs=epochs,
        passes=supervised_passes(
            "policy", read, steps=steps, minibatch=size, evaluations=0,
            reference="" if config.learn == "sft" else config.preference.reference,
        ),
        dropout=config.lora.dropout > 0,
    )  # fmt: skip
    return _joined(generating, learning)


def _joined(generating: PlannedRun, learning: PlannedRun) -> PlannedRun:
    return replace(
        generating,
        verb="iterate",
        roles=tuple({role.name: role for role in (*generating.roles, *learning.roles)}.values()),
        minibatch=learning.minibatch,
        steps=learning.steps,
        epochs=learning.epochs,
        passes=generating.passes + learning.passes,
        parts=(generating, learning),
    )
