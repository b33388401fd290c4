"""Changes to a configuration that make a run fit: each is planned again, and shown only if it does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from pydantic import ValidationError

from onebase.config.run import RunConfig
from onebase.errors import OnebaseError
from onebase.planning.memory import peak_memory
from onebase.planning.run import Lengths, PlannedRun, Span
from onebase.plans.plan_time import costs_of
from onebase.plans.planned_run import planned_run

MOST = 3


@dataclass(frozen=True, slots=True)
class Change:
    """A change that makes a run fit."""

    words: tuple[str, ...]
    """As they are written on the command line: KEY=VALUE."""
    about: str
    """What it does, and what it costs beside time."""
    size: float
    """The peak then, in bytes."""
    time: float
    """The run's time then, as a multiple of before."""


@dataclass(frozen=True, slots=True)
class _Idea:
    keys: tuple[tuple[str, Any], ...]
    about: str


def changes_that_fit(config: RunConfig, run: PlannedRun, memory: float, *, hardware: str | None = None) -> list[Change]:
    """At most three changes that make a run fit, those with the smallest effect first: single ones, then pairs and
    threes of which no part is enough.
    """
    before = costs_of(run, hardware=hardware).times.total
    ideas = list(_ideas(config, run))
    found: list[Change] = []
    for together in (1, 2, 3):
        for chosen in combinations(ideas, together):
            keys = dict(pair for idea in chosen for pair in idea.keys)
            words = tuple(f"{key}={_written(value)}" for key, value in keys.items())
            if len(keys) < sum(len(idea.keys) for idea in chosen) or any(set(c.words) <= set(words) for c in found):
                continue
            changed = _planned(config, keys, run, hardware)
            if changed is None or (size := peak_memory(changed, memory).size) > memory:
                continue
            seconds = costs_of(changed, hardware=hardware).times.total
            about = "; ".join(dict.fromkeys(idea.about for idea in chosen))
            found.append(Change(words, about, size, seconds / max(1e-9, before)))
            if len(found) == MOST:
                return found
    return found


def _written(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _ideas(config: Any, run: PlannedRun) -> Iterator[_Idea]:
    """What may be changed, by how little it changes the result."""
    if run.trained and run.microbatch_tokens is not None:
        smaller = run.microbatch_tokens // 2
        while smaller >= max(64, run.lengths.tree.longest // 2):
            yield _Idea((("batch.microbatch_tokens", smaller),), "the same result in more, smaller passes")
            smaller //= 2
    if run.trained and not run.checkpointing:
        yield _Idea((("model.gradient_checkpointing", True),), "one more forward pass of every layer")
    rl = {"ppo": "ppo", "rft": "rft"}.get(run.verb)
    if run.dtype == "float32" and run.quantization == "none" and not run.in_full:
        yield _Idea((("model.dtype", "bfloat16"),), "weights and activations in 16 bits")
    if run.quantization == "none" and not run.in_full and not run.spread and run.verb != "pretrain":
        yield _Idea((("model.quantization", "nf4"),), "every weight is expanded before its product; some precision")
    if getattr(getattr(config, "lora", None), "r", 0) and config.lora.layers == "all":
        yield _Idea((("lora.layers", "upper-half"),), "the lower half stays as it is, and keeps no activations")
    if rl and getattr(config, rl).critic == "adapter" and any(role.name == "critic" for role in run.roles):
        yield _Idea(((f"{rl}.critic", "head"),), "the critic is a head on the policy's states")
    generation = getattr(config, "generation", None)
    if generation is not None:
        if generation.samples_per_prompt >= 4:
            half = generation.samples_per_prompt // 2
            yield _Idea((("generation.samples_per_prompt", half),), "half as many answers to a prompt")
        for part in (2, 4):
            if generation.max_new_tokens >= 16 * part:
                yield _Idea((("generation.max_new_tokens", generation.max_new_tokens // part),), "shorter completions")
    if run.in_full and run.verb != "pretrain":
        yield _Idea((("lora.r", 16),), "an adapter in place of all weights")
    if run.in_full and run.dtype == "float32":
        yield _Idea((("model.dtype", "bfloat16"),), "weights, gradients and moments in 16 bits: updates may be lost")
    longest = run.lengths.prompt.longest
    for part in (2, 4):
        if run.verb != "pretrain" and longest >= 64 * part:
            yield _Idea((("data.max_prompt_tokens", longest // part),), "long prompts are cut on the left")
    if run.verb == "pretrain":
        for part in (2, 4):
            if run.lengths.tree.longest >= 64 * part:
                yield _Idea((("block_length", run.lengths.tree.longest // part),), "shorter texts are learned from")
    if run.trained and getattr(getattr(config, "lora", None), "r", 0) >= 8 and config.start_from is None:
        yield _Idea((("lora.r", config.lora.r // 4),), "a smaller adapter")


def _planned(config: RunConfig, keys: dict[str, Any], run: PlannedRun, hardware: str | None) -> PlannedRun | None:
    """The run with these keys; None where they do not go together."""
    values = config.model_dump()
    for key, value in keys.items():
        *groups, last = key.split(".")
        group = values
        for name in groups:
            if not isinstance(group.get(name), dict):
                return None
            group = group[name]
        group[last] = value
    try:
        changed = type(config).model_validate(values)
        return planned_run(changed, machine=hardware, processes=run.processes, lengths=_changed(run.lengths, changed))
    except (ValidationError, OnebaseError):
        return None


def _changed(lengths: Lengths, config: Any) -> Lengths:
    """The lengths under changed limits, without reading the data again."""
    completion, count = lengths.completion, lengths.completions
    if hasattr(config, "generation"):
        most, least = config.generation.max_new_tokens, config.generation.random_min_new_tokens
        completion = Span(most if least is None else (most + least) / 2, most)
        samples = config.generation.samples_per_prompt
        count = Span(samples, samples)
    room = getattr(config.data, "max_prompt_tokens", None) or lengths.prompt.longest
    if getattr(config, "block_length", None):
        block = min(config.block_length, lengths.tree.longest)
        more = lengths.tree.longest / block
        return replace(
            lengths,
            tree=Span(block, block),
            completion=Span(block - 1, block - 1),
            counted=block - 1,
            examples=round(lengths.examples * more),
            held_out=round(lengths.held_out * more),
        )
    prompt = Span(min(lengths.prompt.mean, room), min(lengths.prompt.longest, room))
    if hasattr(config, "generation"):
        tree = Span(prompt.mean + count.mean * completion.mean, prompt.longest + count.longest * completion.longest)
        counted = count.mean * completion.mean
    else:
        cut = lengths.prompt.longest - prompt.longest
        tree = Span(min(lengths.tree.mean, lengths.tree.longest - cut), lengths.tree.longest - cut)
        counted = lengths.counted
    return replace(lengths, prompt=prompt, completion=completion, completions=count, tree=tree, counted=counted)
