"""Best of K: samples, scores and keeps the best, written as ordinary data.

    best.jsonl    the best answer to each prompt: `onebase sft` on it is rejection-sampling fine-tuning (RAFT, Dong et
                  al. 2023); with the reward's scores of all samples, and the judge's if there is one
    pairs.jsonl   the best against the worst, if their scores differ: `onebase dpo` on it is one round of online DPO;
                  with `chosen: data` the data's answer against each sample, scored or not: one round of self-play
                  (SPIN, Chen et al. 2024)

An empty answer is no training data: it is scored and counted (`empty`), but not written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onebase.config.rollouts import BestOfConfig
from onebase.data.chat import ChatFormat
from onebase.data.prepare import encode_prompts
from onebase.data.view import first_lines
from onebase.distributed.ray_actors import Cluster, in_order, over_blocks
from onebase.models.role_files import load_role
from onebase.processes import ALONE, Group
from onebase.recipes.setup.best_of import Written, describe_scores, score_line
from onebase.recipes.setup.dry_run import planned_base
from onebase.recipes.setup.reward import open_reward_source, open_rules
from onebase.recipes.setup.rollouts import longest_rollout_tree, open_drawing, sampling_of
from onebase.recipes.setup.shared import limits_of, open_base, open_chat, open_run, read_prompts, token_budget
from onebase.records import Prompt, RewardSource, Row
from onebase.rollouts.collect import collect
from onebase.runs.progress import say
from onebase.sampling.sampler import Sample
from onebase.seeds import sample_seeds
from onebase.shown import number_of
from onebase.training.checkpoint import inputs_of
from onebase.training.loop import Loop

PROMPTS_AT_A_TIME = 32


def run(config: BestOfConfig, rows: Sequence[Row] | None = None, *, cluster: Cluster | None = None) -> dict[str, Any]:
    """Samples, scores and writes `best.jsonl` and `pairs.jsonl` in the run's folder; returns the summary.

    Args:
        rows: prompts to use instead of `data.train`.
        cluster: whose actors sample and score, each with its own base; None: this process does.
    """
    run = open_run(config)
    opened = Opened(config, run.group, run.folder, rows)
    prompts, count, rules = opened.prompts, config.generation.samples_per_prompt, opened.rules
    scored = f"scored by {opened.source.name}" if opened.source else "not scored"
    say(f"best-of: {number_of(len(prompts), 'prompt')} x {number_of(count, 'answer')}, {scored}")
    written = Written()
    with Loop(
        run,
        "best-of",
        len(prompts),
        save=lambda folder: None,
        state=written,
        inputs={**inputs_of(opened.base, prompts), **rules.record},
    ) as loop:
        numbers = range(loop.done // PROMPTS_AT_A_TIME, -(-len(prompts) // PROMPTS_AT_A_TIME))
        parts: Iterator[Part] = map(opened, numbers)
        if cluster is not None:
            parts = in_order(over_blocks([(n, n) for n in numbers], InActor(config, rows), cluster), numbers)
        for number, part in zip(numbers, parts, strict=True):
            asked = opened.asked(number)
            for i, prompt in enumerate(asked):
                own = part.samples[i * count : (i + 1) * count]
                scores, judged = (None if found is None else found[i] for found in (part.scores, part.judged))
                written.add(config, opened.chat, prompt, own, scores, judged)
            loop.end_step({**written.figures(), **part.delivered}, shown=["best_score"], steps=len(asked))

        opened.drawing.close()
    listed = written.save(run.folder)
    summary = {
        "verb": "best-of",
        "prompts": len(prompts),
        "samples_per_prompt": count,
        "pairs": len(written.pairs),
        "ended": written.ended / (len(prompts) * count),
        "empty": written.empty,
        **rules.record,
        **describe_scores(written.means, written.best),
    }
    loop.finish(summary)
    say(f"best-of: {score_line(written.means, written.best)}wrote {listed}")
    return summary


@dataclass(frozen=True, slots=True)
class Part:
    """The samples of some prompts, and their scores prompt by prompt."""

    samples: list[Sample]
    scores: list[list[float]] | None
    judged: list[list[float]] | None
    """By the judge, if there is one."""
    delivered: dict[str, float]
    """What is logged of a server that drew them."""


class Opened:
    """The base with its roles, the prompts and the reward: what samples and scores any part of the prompts."""

    def __init__(self, config: BestOfConfig, group: Group, folder: Path, rows: Sequence[Row] | None) -> None:
        self._config, self._count = config, config.generation.samples_per_prompt
        self.rules = rules = open_rules(config.reward, group, judge=config.judge, judge_key="judge")
        rules.meet()
        self.base = base = open_base(config.model, group)
        self.chat = open_chat(base.tokenizer, config.model)
        if config.start_from is not None:
            load_role(base, "policy", config.start_from, kinds=("policy",))
        else:
            base.add_role("policy")
        if config.reward.role is not None:
            load_role(base, "reward", config.reward.role, kinds=("reward",))
        self.prompts = encode(config, self.chat, base.context_length, rows)
        rules.check(prompt.row for prompt in self.prompts)
        longest = longest_rollout_tree(base, config.generation, self.prompts)
        self._budget = token_budget(base, config.batch, role="policy", longest=longest)
        self.source: RewardSource | None = None
        if config.reward.source is not None:
            self.source = open_reward_source(config.reward, self.rules, base, self._budget)
        self._sampling = sampling_of(base, self.chat, config.generation)
        self._seeds = sample_seeds(
            config.seed, num_prompts=len(self.prompts), samples_per_prompt=self._count, stream="best-of"
        )
        self._sampler, self.drawing = open_drawing(base, config.generation, self._budget, folder)

    def asked(self, number: int) -> list[Prompt]:
        """The prompts of a part."""
        return self.prompts[number * PROMPTS_AT_A_TIME : (number + 1) * PROMPTS_AT_A_TIME]

    def __call__(self, number: int) -> Part:
        """Samples and scores a part; whoever does finds the same."""
        asked, first = self.asked(number), number * PROMPTS_AT_A_TIME
        rollout = collect(
            self.base,
            self.chat,
            asked,
            sampler=self._sampler,
            sampling=self._sampling,
            seeds=self._seeds[first * self._count : (first + len(asked)) * self._count],
            samples_per_prompt=self._count,
            budget=self._budget,
            reward=self.source,
        )
        delivered = self.drawing.proof(rollout, number, self._sampling)
        scores = None if rollout.scores is None else rollout.scores.total.view(len(asked), self._count).tolist()
        judge = self.rules.judge
        judged = None if judge is None else judge.score(rollout.request).total.view(len(asked), self._count).tolist()
        return Part(rollout.samples, scores, judged, delivered)


@dataclass(frozen=True)
class InActor:
    """Opens in an actor what samples and scores there."""

    config: BestOfConfig
    rows: Sequence[Row] | None

    def __call__(self) -> Opened:
        return Opened(self.config, ALONE, Path(self.config.output_dir), self.rows)


def encode(config: BestOfConfig, chat: ChatFormat, context: int, rows: Sequence[Row] | None = None) -> list[Prompt]:
    """Reads the prompts, or takes `rows`, and encodes them within the limits."""
    return encode_prompts(
        read_prompts(config.data, answers=config.chosen == "data") if rows is None else rows,
        chat,
        limits_of(config.data, context),
        max_new_tokens=config.generation.max_new_tokens,
        opening_tokens=config.data.opening_tokens,
    )


def plan(config: BestOfConfig) -> str:
    """What `run` would do, in words; reads the data and the model's configuration, not its weights."""
    base = planned_base(config)
    chat = open_chat(base.tokenizer, config.model)
    prompts = encode(config, chat, base.context)
    open_rules(config.reward, judge=config.judge, judge_key="judge").check(prompt.row for prompt in prompts)
    return "\n".join(
        [
            *base.lines,
            f"samples     {number_of(len(prompts), 'prompt')} x "
            f"{number_of(config.generation.samples_per_prompt, 'answer')} of at most "
            f"{number_of(config.generation.max_new_tokens, 'token')}",
            *first_lines(prompts[0], chat),
            f"writes      {config.output_dir}/best.jsonl and {config.output_dir}/pairs.jsonl",
        ]
    )
