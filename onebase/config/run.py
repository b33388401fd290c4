"""Keys that every verb with a run folder has."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from onebase.config.groups import CheckpointGroup, LoraGroup, OptionalModelGroup
from onebase.config.values import Count, Group, Int, PathText, Trackers
from onebase.shown import shown


class RunConfig(Group):
    """The keys of every verb that leaves a run."""

    output_dir: PathText
    """Folder of the run: resolved config, metrics, checkpoints, roles."""
    seed: Annotated[Int, Field(ge=0, lt=2**32)] = 0
    """Random seed for the data order, new weights and sampling."""
    report_to: Trackers = []
    """Trackers that also get the metrics (each has to be installed): tensorboard, trackio, wandb."""
    threads: Count | None = None
    """CPU threads; null = one per core. A different number changes the last digits of results."""
    checkpoint: CheckpointGroup = CheckpointGroup()


class VerbConfig(RunConfig):
    """The keys of every training verb."""

    max_steps: Count | None = None
    """Train for this many steps (ppo, rft: rollouts), whatever the epochs; null = until the data has been read."""


def adapter_problems(model: OptionalModelGroup, lora: LoraGroup, start_from: str | None) -> list[str]:
    problems = []
    if model.quantization == "nf4" and lora.r == 0:
        problems.append(
            "'model.quantization' = nf4 cannot be trained in full: set lora.r >= 1, or quantization to none"
        )
    if getattr(model, "shard", False) and lora.r == 0:
        problems.append(
            "'model.shard' spreads a base that is frozen, and 'lora.r' = 0 trains all of it; set lora.r >= 1, or "
            "model.shard to false"
        )
    if start_from is not None and lora.r == 0:
        problems.append(
            "'lora.r' = 0 trains the whole base, but 'start_from' names an adapter on it; set lora.r >= 1, or "
            "leave out start_from"
        )
    for key in ("alpha", "dropout", "target_modules", "layers") if lora.r == 0 else ():
        if (value := getattr(lora, key)) != LoraGroup.model_fields[key].default:
            problems.append(
                f"'lora.{key}' = {shown(value, 60)} would change nothing: 'lora.r' = 0 trains the whole base, "
                "without an adapter; leave one out"
            )
    return problems
