"""A small planned run, to change one thing of at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from onebase.planning.architecture import Architecture
from onebase.planning.run import (
    Adapter,
    Lengths,
    PlannedRole,
    PlannedRun,
    Span,
    rollout_passes,
    supervised_passes,
)

BASE = Architecture(
    name="tiny",
    model_type="llama",
    layers=2,
    hidden=4,
    intermediate=6,
    heads=2,
    kv_heads=1,
    head_size=2,
    vocabulary=10,
    tied=True,
    context=64,
)
BOTH = Adapter(3, (0, 1), ("q_proj", "v_proj"))
LENGTHS = Lengths(
    prompt=Span(6.0, 8),
    completion=Span(4.0, 5),
    tree=Span(10.0, 13),
    completions=Span(1.0, 1),
    counted=4.0,
    examples=12,
    held_out=3,
    source="by hand",
    measured=True,
)


def supervised(verb: str = "sft", *, reference: Any = "", **changes: Any) -> PlannedRun:
    """12 examples of 10 tokens in minibatches of 4, for two epochs."""
    roles = (PlannedRole("policy", BOTH, trains=True), PlannedRole("reference"))
    run = PlannedRun(
        verb=verb,
        architecture=BASE,
        dtype="float32",
        quantization="none",
        device="cpu",
        layout="tree",
        roles=roles if reference else roles[:1],
        lengths=LENGTHS,
        minibatch=4,
        microbatch_tokens=None,
        steps=6,
        passes=supervised_passes("policy", LENGTHS, steps=6, minibatch=4, evaluations=2, reference=reference),
        epochs=2,
    )
    return replace(run, **changes)


def rollouts(**changes: Any) -> PlannedRun:
    """PPO: 3 rollouts of 4 prompts with 2 completions of 4 tokens, two epochs, and 5 prompts held out."""
    lengths = replace(LENGTHS, tree=Span(14.0, 18), completions=Span(2.0, 2), counted=8.0)
    roles = (
        PlannedRole("policy", BOTH, trains=True),
        PlannedRole("reference"),
        PlannedRole("critic", BOTH, head=True, trains=True),
        PlannedRole("reward", BOTH, head=True),
    )
    run = PlannedRun(
        verb="ppo",
        architecture=BASE,
        dtype="float32",
        quantization="none",
        device="cpu",
        layout="tree",
        roles=roles,
        lengths=lengths,
        minibatch=2,
        microbatch_tokens=None,
        steps=12,
        passes=rollout_passes(roles, lengths, prompts=12, samples_per_prompt=2, epochs=2, elsewhere=False, evaluated=5),
        rollouts=3,
        rollout_prompts=4,
        samples_per_prompt=2,
        max_new_tokens=5,
        epochs=2,
        evaluated=10,
    )
    return replace(run, **changes)
