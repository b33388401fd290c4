"""Rounds of sampling from the policy and learning from its samples, each made of two ordinary verbs.

    round   sample, score, pair (best-of)   ->   learn (dpo on the pairs, or sft on the best)   ->   the next policy

    learn: dpo                  iterative DPO (Xu et al. 2023); with few prompts a round, online DPO (Guo et al. 2024)
    learn: dpo, chosen: data    SPIN: the data's answer against the policy's own (Chen et al. 2024)
    learn: sft                  RAFT (Dong et al. 2023)

A round leaves `round-<n>/samples` and `round-<n>/learn`, two ordinary runs: the samples can be read, and a finished
round is not repeated.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from onebase import processes
from onebase.config.language import SFTConfig
from onebase.config.preferences import DPOConfig
from onebase.config.rollouts import BestOfConfig, IterateConfig
from onebase.data.batches import minibatch_indices
from onebase.data.view import first_lines
from onebase.errors import DataError
from onebase.files import atomic_folder
from onebase.recipes import best_of, dpo, sft
from onebase.recipes.setup.dry_run import planned_base
from onebase.recipes.setup.reward import open_rules
from onebase.recipes.setup.shared import open_chat, open_run, read_prompts
from onebase.records import Row
from onebase.runs.progress import say
from onebase.runs.record import checkpoints
from onebase.seeds import mixed_seed
from onebase.shown import number_of


def run(config: IterateConfig) -> dict[str, Any]:
    """Runs the rounds and leaves the last policy in `policy/`; returns the summary."""
    run = open_run(config, finished_parts="round-*/*/summary.json")  # a finished round is not redone
    run.open_record()
    rows = read_prompts(config.data, answers=config.chosen == "data")
    policy = config.start_from
    scores: list[float | None] = []
    for number in range(1, config.rounds + 1):
        say(f"iterate: round {number} of {config.rounds}, from {policy or 'the base'}")
        folder = run.folder / f"round-{number}"
        sampled = sample(config, folder / "samples", policy, rows, number)
        if not sampled["pairs" if config.learn == "dpo" else "prompts"]:
            raise DataError(
                f"{folder / 'samples'}: no two answers to a prompt differ in score, so there is nothing to learn from; "
                "raise generation.temperature or samples_per_prompt, or look at the reward"
            )
        scores.append(sampled.get("mean_score"))
        learnt = learn(config, folder, policy, number)
        policy = str(folder / "learn" / "policy")
        figures = {"samples": sampled, "learn": learnt}
        run.log(
            number,
            {
                f"{stage}/{name}": value
                for stage, summary in figures.items()
                for name, value in summary.items()
                if isinstance(value, int | float)
            },
        )
    with atomic_folder(run.folder / "policy") as temporary:
        shutil.copytree(Path(str(policy)), temporary, dirs_exist_ok=True)
    summary = {"verb": "iterate", "rounds": config.rounds, "mean_scores": scores, "data": {"train": len(rows)}}
    run.finish(summary)
    listed = ", ".join(f"{score:.3f}" for score in scores if score is not None)
    say(f"iterate: {f'mean score of the samples by round {listed}; ' if listed else ''}saved {run.folder / 'policy'}")
    return summary


def sample(config: IterateConfig, folder: Path, policy: str | None, rows: Sequence[Row], number: int) -> dict[str, Any]:
    """Samples for one round, with new prompts until all have been used; returns that run's summary."""
    size = min(config.prompts_per_round, len(rows))
    chosen = minibatch_indices(number - 1, num_examples=len(rows), size=size, seed=config.seed)
    options = {
        **sampling_options(config),
        "output_dir": str(folder),
        "start_from": policy,
        "seed": _seed(config, number),
        "batch": {"microbatch_tokens": config.batch.microbatch_tokens},
    }
    return summary_of(folder, lambda: best_of.run(BestOfConfig.model_validate(options), [rows[i] for i in chosen]))


def learn(config: IterateConfig, folder: Path, policy: str | None, number: int) -> dict[str, Any]:
    """Learns from the round's samples; returns that run's summary."""
    out = folder / "learn"
    shared = {
        **_shared(config, ("model", "lora", "optimizer", "batch")),
        "output_dir": str(out),
        "start_from": policy,
        "seed": _seed(config, number),
    }
    written = folder / "samples" / ("best.jsonl" if config.learn == "sft" else "pairs.jsonl")
    data = {
        "train": str(written),
        "eval_fraction": 0,
        "max_prompt_tokens": config.data.max_prompt_tokens,
        "truncate_prompt": config.data.truncate_prompt,
    }
    if config.learn == "sft":
        return summary_of(out, lambda: sft.run(SFTConfig.model_validate({**shared, "data": data})))
    first = None if config.reference == "renewed" else config.start_from or "base"
    options = {
        **shared,
        "data": data,
        "loss": config.loss,
        "reference_role": first,
        "preference": config.preference.model_dump(),
    }
    return summary_of(out, lambda: dpo.run(DPOConfig.model_validate(options)))


def summary_of(folder: Path, run: Callable[[], object]) -> dict[str, Any]:
    """Runs it unless it finished earlier, and returns the summary as it was written."""
    path = folder / "summary.json"
    if not path.exists():
        run()
    if processes.is_main():
        for checkpoint in checkpoints(folder):  # a round is never extended
            shutil.rmtree(checkpoint, ignore_errors=True)
    summary = json.loads(path.read_text(encoding="utf-8"))
    assert isinstance(summary, dict)
    return summary


def _shared(config: IterateConfig, keys: Sequence[str]) -> dict[str, Any]:
    return config.model_dump(include={*keys, "checkpoint", "report_to"})


def sampling_options(config: IterateConfig) -> dict[str, Any]:
    """The keys of a round's run of best-of."""
    shared = _shared(config, ("chosen", "model", "data", "generation"))
    # Not dumped: leave to run code is given on the command line, and no file holds it.
    return {**shared, "reward": config.reward, "output_dir": config.output_dir}


def _seed(config: IterateConfig, number: int) -> int:
    # Each round samples different answers and reads them in a different order.
    return mixed_seed("round", config.seed, number)


def plan(config: IterateConfig) -> str:
    """What `run` would do, in words; reads the data and the model's configuration, not its weights."""
    base = planned_base(config)
    rows = read_prompts(config.data, answers=config.chosen == "data")
    open_rules(config.reward).check(rows)
    sampling = BestOfConfig.model_validate(sampling_options(config))
    chat = open_chat(base.tokenizer, config.model)
    prompts = best_of.encode(sampling, chat, base.context, rows)
    size, count = min(config.prompts_per_round, len(rows)), config.generation.samples_per_prompt
    how = "sft on the best" if config.learn == "sft" else f"dpo ({config.loss}), reference {config.reference}"
    return "\n".join(
        [
            *base.lines,
            f"rounds      {config.rounds} of {number_of(size, 'prompt')} (of {len(rows)}) x "
            f"{number_of(count, 'answer')} of at most "
            f"{number_of(config.generation.max_new_tokens, 'token')}, then {how}",
            *first_lines(prompts[0], chat),
            f"saves       {config.output_dir}/round-<n>/ and {config.output_dir}/policy",
        ]
    )
