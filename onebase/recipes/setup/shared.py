"""What every recipe sets up the same way: from groups of the configuration to the base, the data and the optimizer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from peft import LoraConfig
from transformers import PreTrainedTokenizerBase

from onebase import processes
from onebase.config.files import dump_config
from onebase.config.groups import (
    DataGroup,
    EpochsOptimizerGroup,
    EvaluationGroup,
    FilesGroup,
    LoraGroup,
    MicrobatchGroup,
    ModelGroup,
    OptimizerGroup,
    OptionalModelGroup,
    PromptDataGroup,
    SampleDataGroup,
)
from onebase.config.run import RunConfig
from onebase.data.batches import num_minibatches, row_shape
from onebase.data.chat import ChatFormat, chat_format
from onebase.data.fit import Limits
from onebase.data.formats import drop_unusable, read_files
from onebase.data.prepare import dropped_line, read_split
from onebase.data.remarks import remarks
from onebase.errors import ConfigError, ModelError
from onebase.models.adapters import lora_config, without_adapter
from onebase.models.loading import load_base
from onebase.models.one_base import OneBase, Role
from onebase.models.role_files import load_role
from onebase.records import Example, Row
from onebase.runs.progress import say
from onebase.shown import shown
from onebase.training.memory import find_token_budget
from onebase.training.plan import BasePlan
from onebase.training.run import Run, Schedule
from onebase.training.threads import use_threads
from onebase.training.update import ParameterGroup, Update


def open_run(config: RunConfig) -> Run:
    """The run's folder; if it holds a checkpoint, the run resumes from it."""
    use_threads(config.threads)
    kept = config.checkpoint
    return Run(
        config.output_dir,
        seed=config.seed,
        config_text=dump_config(config),
        schedule=Schedule(kept.every_steps, kept.every_minutes, kept.save_total_limit),
        report_to=config.report_to,
    )


def open_base(model: ModelGroup, *, trained_in_full: bool = False) -> OneBase:
    """The base with its tokenizer; frozen, but in full-parameter training.

    Then in float32 unless another dtype is named: an update of a bfloat16 weight is often smaller than its last bit.
    """
    base = load_base(
        model.model_name_or_path,
        dtype="float32" if trained_in_full and model.dtype == "auto" else model.dtype,
        quantization=model.quantization,
        device=model.device,
        layout=model.layout,
    )
    return as_configured(base, model)


def as_configured(base: OneBase, model: OptionalModelGroup) -> OneBase:
    """Sets up a base that was just loaded or made; says what it cannot do.

    Raises:
        ModelError: gradient checkpointing is asked for, and this architecture has no layers that can do it.
    """
    for note in base.notes:
        say(note)
    if model.gradient_checkpointing and not base.can_recompute:
        raise ModelError(
            f"model.gradient_checkpointing: the layers of {type(base.model).__name__} cannot be computed again; leave "
            "it out"
        )
    base.recomputes = model.gradient_checkpointing
    return base


def open_chat(tokenizer: PreTrainedTokenizerBase, model: OptionalModelGroup) -> ChatFormat:
    """The chat template in use; says so where its turn marks are not tokens of this tokenizer."""
    chat = chat_format(tokenizer, model.chat_template)
    spelled = [
        mark for mark in sorted(set(re.findall(r"<\|\w+\|>", chat.template or ""))) if mark not in tokenizer.get_vocab()
    ]
    if spelled:
        say(
            f"warning: {', '.join(spelled)} of the chat template {model.chat_template} are no tokens of this tokenizer "
            "and are spelled out in many; model.chat_template: hh or plain suit it better"
        )
    return chat


def new_lora(base: OneBase | BasePlan, lora: LoraGroup) -> LoraConfig:
    """The configuration of a new adapter for this base; says which layers it cannot reach."""
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
    """Puts the role that training starts from on the base; the configuration may not ask for another adapter than its.

    Raises:
        ConfigError: a key of `lora` that is neither left alone nor what the role's adapter has.
        ModelError, RoleMismatchError: as `load_role`.
    """
    role = load_role(base, name, folder, kinds=kinds, trains=trains)
    saved, default = base.lora_config(name), LoraGroup()
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
        meant, has = (getattr(config, entry) for config in (new_lora(base, lora), saved))
        if meant != has:
            raise ConfigError(
                f"'lora.{key}' = {shown(value, 60)} would change nothing: {shown(folder)} brings its own adapter, "
                f"whose {entry} is {shown(sorted(has) if isinstance(has, set) else has, 60)}; leave lora.{key} out"
            )
    return role


def read_rows(data: FilesGroup, seed: int) -> tuple[list[Row], list[Row]]:
    """Training and held-out rows; says what was left out, and what a person should know of the others."""
    train, held_out, dropped = read_split(
        data.train,
        data.eval,
        eval_fraction=data.eval_fraction,
        limit=data.limit,
        seed=seed,
        max_dropped_share=data.max_dropped_share,
    )
    for line in [*filter(None, [dropped_line(dropped)]), *remarks(train, held_out)]:
        say(line)
    return train, held_out


def read_prompts(data: SampleDataGroup, *, answers: bool = False) -> list[Row]:
    """The rows to sample from; says what was left out. With `answers`, these have to be usable too."""
    rows, dropped = drop_unusable(
        read_files(data.train, limit=data.limit), max_share=data.max_dropped_share, answers=answers
    )
    for line in [*filter(None, [dropped_line(dropped)]), *remarks(rows, [])]:
        say(line)
    return rows


def limits_of(data: DataGroup | SampleDataGroup | PromptDataGroup, context: int) -> Limits:
    """The limits on lengths that the configuration and the model's context set; what they cut is said."""
    longest = data.max_completion_tokens if isinstance(data, DataGroup) else None
    return Limits(context, data.max_prompt_tokens, longest, data.truncate_prompt, data.max_dropped_share, tell=say)


def token_budget(base: OneBase, batch: MicrobatchGroup, *, role: str, longest: int, before: int | None = None) -> int:
    """Padded tokens of a microbatch: as configured, as `before` the run was stopped, or measured on this machine."""
    if batch.microbatch_tokens != "auto":
        return batch.microbatch_tokens
    if before is not None:
        return before
    # Every process finds another amount free; the same microbatches in all of them give the same bits again.
    return min(processes.gather(find_token_budget(base, role, longest=longest)))


def largest_example(base: OneBase, *examples: Sequence[Example]) -> int:
    """Padded tokens of the example, of several lists, that takes the most room: it is never split."""
    return max(rows * width for part in examples for rows, width in (row_shape(e, base.layout) for e in part))


def num_steps(max_steps: int | None, optimizer: EpochsOptimizerGroup, num_examples: int, minibatch: int) -> int:
    """Optimizer steps of a run: `max_steps`, or those of its epochs; says so where the warm-up is longer."""
    steps = max_steps or optimizer.num_epochs * num_minibatches(num_examples, minibatch)
    say_warmup(optimizer, steps)
    return steps


def say_warmup(optimizer: OptimizerGroup, steps: int) -> None:
    """Says so where the run ends within its warm-up; no error, as a run can be made longer."""
    if optimizer.warmup_steps > steps:
        say(
            f"warning: optimizer.warmup_steps = {optimizer.warmup_steps} is longer than the run of {steps} optimizer "
            f"steps: the learning rate only reaches {steps / optimizer.warmup_steps:.0%} of its peak"
        )


def make_update(
    base: OneBase,
    groups: list[ParameterGroup],
    optimizer: OptimizerGroup,
    *,
    total_steps: int,
    token_budget: int,
    repro_folder: Path,
    dropout: bool = False,
) -> Update:
    """The optimizer over the roles that train; `dropout` turns adapter dropout on in the passes that train."""
    return Update(
        base,
        groups,
        dropout=dropout,
        weight_decay=optimizer.weight_decay,
        schedule=optimizer.schedule,
        warmup_steps=optimizer.warmup_steps,
        total_steps=total_steps,
        max_grad_norm=optimizer.max_grad_norm,
        token_budget=token_budget,
        repro_folder=repro_folder,
    )


def best_by(metric: str, evaluation: EvaluationGroup) -> str | None:
    """The metric by which the best roles are kept, where it is measured as the run goes on."""
    return metric if evaluation.every_steps else None
