"""Set-up shared by all recipes: turns groups of the configuration into the base, the data and the optimizer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from peft import LoraConfig
from transformers import PreTrainedTokenizerBase

from onebase.config.data_groups import DataGroup, PromptDataGroup, SampleDataGroup
from onebase.config.files import dump_config
from onebase.config.groups import (
    EpochsOptimizerGroup,
    EvaluationGroup,
    LoraGroup,
    MicrobatchGroup,
    ModelGroup,
    OptimizerGroup,
    OptionalModelGroup,
)
from onebase.config.run import RunConfig
from onebase.data.batches import num_minibatches, row_shape
from onebase.data.chat import ChatFormat, chat_format
from onebase.data.fit import Limits
from onebase.data.prepare import dropped_line, with_system
from onebase.data.remarks import remarks
from onebase.data.selection import drop_unusable
from onebase.engines.budget import TokenBudget, find_token_budget
from onebase.engines.opening import load_base
from onebase.errors import ConfigError, ModelError
from onebase.models.adapters import lora_config, without_adapter
from onebase.models.base import OneBase
from onebase.models.role_files import load_role
from onebase.models.roles import Role
from onebase.processes import Group, launched
from onebase.reading.formats import read_files
from onebase.records import Example, Row
from onebase.runs.progress import say
from onebase.shown import number_of, shown
from onebase.streaming.examples import OnDemand
from onebase.training.plan import BasePlan
from onebase.training.run import Run, Schedule
from onebase.training.threads import use_threads
from onebase.training.update import ParameterGroup, Update


def open_run(config: RunConfig, *, finished_parts: str | None = None) -> Run:
    """Opens the run's folder, shared by a launcher's processes; if it holds a checkpoint, the run resumes from it."""
    use_threads(config.threads)
    kept = config.checkpoint
    return Run(
        config.output_dir,
        seed=config.seed,
        config_text=dump_config(config),
        schedule=Schedule(kept.every_steps, kept.every_minutes, kept.save_total_limit),
        report_to=config.report_to,
        group=launched(),
        finished_parts=finished_parts,
    )


def open_base(model: ModelGroup, group: Group, *, trained_in_full: bool = False) -> OneBase:
    """Loads the base with its tokenizer, frozen unless it is trained in full.

    Full-parameter training uses float32 unless a dtype is named: an update is often smaller than the last bit of a
    bfloat16 weight.
    """
    base = load_base(
        model.model_name_or_path,
        dtype="float32" if trained_in_full and model.dtype == "auto" else model.dtype,
        quantization=model.quantization,
        device=model.device,
        layout=model.layout,
        group=group,
        shard=model.shard,
    )
    if model.shard and not base.is_spread:
        say("model.shard: one process alone holds the whole base; start several with --processes")
    return as_configured(base, model)


def as_configured(base: OneBase, model: OptionalModelGroup) -> OneBase:
    """Configures a base that was just loaded or made, and prints its limitations.

    Raises:
        ModelError: gradient checkpointing is configured, but this architecture's layers cannot do it.
    """
    for note in base.notes:
        say(note)
    if model.gradient_checkpointing and not base.can_recompute:
        raise ModelError(
            f"model.gradient_checkpointing: the layers of {type(base.model).__name__} cannot be recomputed; leave it "
            "out"
        )
    base.recomputes = model.gradient_checkpointing
    return base


def open_chat(tokenizer: PreTrainedTokenizerBase, model: OptionalModelGroup) -> ChatFormat:
    """The chat template in use; warns if its turn marks are not tokens of this tokenizer."""
    chat = chat_format(tokenizer, model.chat_template)
    spelled = [
        mark for mark in sorted(set(re.findall(r"<\|\w+\|>", chat.template or ""))) if mark not in tokenizer.get_vocab()
    ]
    if spelled:
        say(
            f"warning: {', '.join(spelled)} in the chat template {model.chat_template} are not tokens of this "
            "tokenizer, so each is spelled out in many tokens; model.chat_template: hh or plain suits it better"
        )
    return chat


def new_lora(base: OneBase | BasePlan, lora: LoraGroup) -> LoraConfig:
    """The configuration of a new adapter for this base; prints which layers it cannot reach."""
    if lora.target_modules == "all-linear" and (note := without_adapter(base.model)):
        say(note)
    return lora_config(
        base.model,
        r=lora.r,
        alpha=lora.alpha,
        dropout=lora.dropout,
        target_modules=lora.target_modules,
        layers=lora.layers,
    )


def load_start(base: OneBase, name: str, folder: str, lora: LoraGroup, *, kinds: tuple[str, ...], trains: bool) -> Role:
    """Loads the role that training starts from; the configuration must not ask for an adapter other than the role's.

    Raises:
        ConfigError: a key of `lora` is set to something other than the role's adapter has.
        ModelError, RoleMismatchError: as `load_role`.
    """
    role = load_role(base, name, folder, kinds=kinds, trains=trains)
    saved, default = base.adapter_config(name), LoraGroup()
    entries = {
        "r": "r",
        "alpha": "lora_alpha",
        "dropout": "lora_dropout",
        "target_modules": "target_modules",
        "layers": "layers_to_transform",
    }
    for key, entry in entries.items():
        if (value := getattr(lora, key)) == getattr(default, key):
            continue
        meant, has = (getattr(config, entry, None) for config in (new_lora(base, lora), saved))
        if meant != has:
            raise ConfigError(
                f"'lora.{key}' = {shown(value, 60)} would change nothing: {shown(folder)} brings its own adapter, "
                f"whose {entry} is {shown(sorted(has) if isinstance(has, set) else has, 60)}; leave lora.{key} out"
            )
    return role


def read_prompts(data: SampleDataGroup, *, answers: bool = False) -> list[Row]:
    """Reads the rows to sample from and prints what was left out. With `answers`, the answers must be usable too."""
    rows, dropped = drop_unusable(
        read_files(data.train, columns=data.columns, limit=data.limit),
        max_share=data.max_dropped_share,
        answers=answers,
    )
    for line in [*filter(None, [dropped_line(dropped)]), *remarks(rows, [])]:
        say(line)
    return with_system(rows, data.system_prompt)


def limits_of(data: DataGroup | SampleDataGroup | PromptDataGroup, context: int) -> Limits:
    """The length limits set by the configuration and the model's context; whatever they cut is printed."""
    longest = data.max_completion_tokens if isinstance(data, DataGroup) else None
    return Limits(context, data.max_prompt_tokens, longest, data.truncate_prompt, data.max_dropped_share, tell=say)


def token_budget(
    base: OneBase, batch: MicrobatchGroup, *, role: str, longest: int, before: int | None = None
) -> TokenBudget:
    """The microbatch budget: as configured, as `before` the run was stopped, or measured on this machine."""
    if batch.microbatch_tokens != "auto":
        return TokenBudget(batch.microbatch_tokens)
    if before is not None:
        return TokenBudget(before)
    # Each process finds a different amount free; taking the minimum gives all the same microbatches and bits.
    return TokenBudget(min(base.group.gather(find_token_budget(base, role, longest=longest))))


def largest_example(base: OneBase, *examples: Sequence[Example]) -> int:
    """Padded tokens of the largest example in several lists, which is never split; of streamed ones, in a sample."""
    return max(
        rows * width
        for side in examples
        for rows, width in (row_shape(e, base.layout) for e in (side.sample() if isinstance(side, OnDemand) else side))
    )


def num_steps(max_steps: int | None, optimizer: EpochsOptimizerGroup, num_examples: int, minibatch: int) -> int:
    """Optimizer steps in a run: `max_steps`, or its epochs' steps."""
    return max_steps or optimizer.num_epochs * num_minibatches(num_examples, minibatch)


def warn_of_warmup(optimizer: OptimizerGroup, steps: int) -> None:
    """Warns if the run ends within its warm-up; not an error, because a run can be extended."""
    if optimizer.warmup_steps > steps:
        say(
            f"warning: optimizer.warmup_steps = {optimizer.warmup_steps} is longer than the run of "
            f"{number_of(steps, 'optimizer step')}: the learning rate only reaches "
            f"{steps / optimizer.warmup_steps:.0%} of its peak"
        )


def make_update(
    base: OneBase,
    groups: list[ParameterGroup],
    optimizer: OptimizerGroup,
    *,
    total_steps: int,
    budget: TokenBudget,
    repro_folder: Path | None,
    dropout: bool = False,
) -> Update:
    """Makes the optimizer over the roles that train; `dropout` turns adapter dropout on in training passes."""
    return Update(
        base,
        groups,
        dropout=dropout,
        weight_decay=optimizer.weight_decay,
        schedule=optimizer.schedule,
        warmup_steps=optimizer.warmup_steps,
        total_steps=total_steps,
        max_grad_norm=optimizer.max_grad_norm,
        budget=budget,
        repro_folder=repro_folder,
    )


def best_by(metric: str, evaluation: EvaluationGroup) -> str | None:
    """The metric by which the best roles are kept; None if it is not measured during the run."""
    return metric if evaluation.every_steps else None
