"""Best of K: samples, scores and keeps the best, written as ordinary data.

    best.jsonl    the best answer to each prompt: `onebase sft` on it is rejection-sampling fine-tuning (RAFT, Dong et
                  al. 2023); with the reward's scores of all samples, and the judge's if there is one
    pairs.jsonl   the best against the worst, if their scores differ: `onebase dpo` on it is one round of online DPO;
                  with `chosen: data` the data's answer against each sample, scored or not: one round of self-play
                  (SPIN, Chen et al. 2024)

A sample that stopped at its length limit is written with `ended: false` (`chosen_ended`, `rejected_ended`), so that
nobody learns an end token that was not sampled. Reading the rows back gives the sampled tokens, if the tokenizer splits
their text as the policy wrote it.

An empty answer is no training data: it is scored and counted (`empty`), but not written.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from onebase.config.rollouts import BestOfConfig
from onebase.data.chat import ChatFormat
from onebase.data.prepare import best_answer, encode_prompts
from onebase.data.view import first_lines
from onebase.distributed.ray_actors import Cluster, in_order, over_blocks
from onebase.errors import DataError
from onebase.files import write_atomically
from onebase.models.role_files import load_role
from onebase.processes import ALONE, Group
from onebase.reading.tools import for_file
from onebase.reading.unread import DECIDING
from onebase.recipes.setup.dry_run import planned_base
from onebase.recipes.setup.reward import open_reward_source, open_rules
from onebase.recipes.setup.rollouts import longest_rollout_tree, open_drawing, sampling_of
from onebase.recipes.setup.shared import limits_of, open_base, open_chat, open_run, read_prompts, token_budget
from onebase.records import Prompt, RewardSource, Row
from onebase.reporting.intervals import bootstrap_mean, paired_bootstrap
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


@dataclass(slots=True)
class Written:
    """What the files will hold: the rows from the prompts answered so far."""

    best: list[dict[str, Any]] = field(default_factory=list)
    pairs: list[dict[str, Any]] = field(default_factory=list)
    means: list[float] = field(default_factory=list)
    """Mean score of each prompt's samples."""
    ended: int = 0
    empty: int = 0

    def add(
        self,
        config: BestOfConfig,
        chat: ChatFormat,
        prompt: Prompt,
        samples: Sequence[Sample],
        scores: Sequence[float] | None,
        judged: Sequence[float] | None = None,
    ) -> None:
        """Adds one prompt's samples, with the judge's scores of them if there is one."""
        stops = set(chat.single_tokens(config.generation.stop)) - {chat.end_token_id}
        asked, answers = asked_of(chat, prompt), [own_answer(chat, prompt, sample, stops) for sample in samples]
        self.ended += sum(sample.ended for sample in samples)
        self.empty += sum(not answer.text.strip() for answer in answers)
        if scores is not None:
            rows = best_row(prompt, asked, answers, scores)
            beside = {} if judged is None else {"judged": [round(score, 6) for score in judged]}
            self.best += [{**row, **beside} for row in rows]
            self.means.append(sum(scores) / len(scores))
        if config.chosen == "data":
            self.pairs += pairs_with_data(prompt, asked, answers)
        elif scores is not None:
            self.pairs += best_and_worst(prompt, asked, answers, scores)

    def figures(self) -> dict[str, float]:
        """Metrics to log, over all prompts so far."""
        if not self.best:
            return {"pairs": float(len(self.pairs))}
        return {
            "mean_score": sum(self.means) / len(self.means),
            "best_score": sum(row["score"] for row in self.best) / len(self.best),
        }

    def save(self, folder: Path) -> str:
        """Writes the files; returns what was written, in words."""
        files = {"best.jsonl": self.best, "pairs.jsonl": self.pairs}
        for name, lines in files.items():
            if lines or name == "pairs.jsonl":
                text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
                write_atomically(folder / name, text)
        told = (f"{number_of(len(lines), 'row')} to {folder / name}" for name, lines in files.items() if lines)
        return " and ".join(told)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps; called after every batch, so no row is copied."""
        return {
            "best": list(self.best),
            "pairs": list(self.pairs),
            "means": list(self.means),
            "ended": self.ended,
            "empty": self.empty,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resumes from `state_dict()`."""
        self.best, self.pairs, self.means = list(state["best"]), list(state["pairs"]), list(state["means"])
        self.ended, self.empty = state["ended"], state["empty"]


@dataclass(frozen=True, slots=True)
class Answer:
    """A sample in words."""

    text: str
    ended: bool
    """Whether it closes with an end token; False at the length limit and after a stop string, which is text."""


def best_row(
    prompt: Prompt, asked: Mapping[str, Any], answers: Sequence[Answer], scores: Sequence[float]
) -> list[dict[str, Any]]:
    """The best answer's row, with all scores; no row if every answer is empty."""
    ranked = ranked_answers(answers, scores)
    if not ranked:
        return []
    first = answers[ranked[0]]
    answered = {"text": asked["prompt"] + first.text} if is_text(prompt) else {"completion": first.text}
    rounded = [round(score, 6) for score in scores]
    return [
        {
            **columns_of(prompt),
            **({} if is_text(prompt) else asked),
            **answered,
            "score": rounded[ranked[0]],
            "scores": rounded,
            "ended": first.ended,
        }
    ]


def best_and_worst(
    prompt: Prompt, asked: Mapping[str, Any], answers: Sequence[Answer], scores: Sequence[float]
) -> list[dict[str, Any]]:
    """The best answer paired with the worst, if they differ in score and text."""
    ranked = ranked_answers(answers, scores)
    if not ranked or scores[ranked[0]] <= scores[ranked[-1]] or answers[ranked[0]].text == answers[ranked[-1]].text:
        return []
    first, last = ranked[0], ranked[-1]
    return [
        {
            **columns_of(prompt),
            **paired(asked, answers[first], answers[last]),
            "chosen_score": round(scores[first], 6),
            "rejected_score": round(scores[last], 6),
        }
    ]


def pairs_with_data(prompt: Prompt, asked: Mapping[str, Any], answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """The data's answer paired with each of the policy's answers that differs from it.

    Raises:
        DataError: the data has no answer.
    """
    row = prompt.row
    if row is None or not row.messages or not row.answers or row.prefix is not None:
        raise DataError(
            f"{row.place if row else 'a row'}: chosen: data pairs the data's answer with the policy's own, and this "
            "row has no prompt with a whole answer; add 'completion', or set chosen: best"
        )
    best = best_answer(row)
    chosen = Answer(best.answers[0], best.ended is None or best.ended[0])
    own = {answer.text: answer for answer in reversed(answers)}  # the first answer with each text
    differing = [
        own[text]
        for text in dict.fromkeys(answer.text for answer in answers)
        if text.strip() and text.strip() != chosen.text.strip()
    ]
    calls = {"chosen": for_file(best.answer(0))} if best.calls and best.calls[0] else {}
    return [{**columns_of(prompt), **paired(asked, chosen, answer), **calls} for answer in differing]


def paired(asked: Mapping[str, Any], chosen: Answer, rejected: Answer) -> dict[str, Any]:
    return {
        **asked,
        "chosen": chosen.text,
        "rejected": rejected.text,
        "chosen_ended": chosen.ended,
        "rejected_ended": rejected.ended,
    }


def ranked_answers(answers: Sequence[Answer], scores: Sequence[float]) -> list[int]:
    """Indices of the answers that have text, best first."""
    return sorted((k for k in range(len(answers)) if answers[k].text.strip()), key=lambda k: -scores[k])


def own_answer(chat: ChatFormat, prompt: Prompt, sample: Sample, stops: Collection[int]) -> Answer:
    """A sample in words: the whole answer, with its prefix.

    The template writes its own blanks around an answer to messages. So the text keeps as many of the sampled blanks as
    make it encode to the sampled tokens again, or none if no choice does.
    """
    text = chat.decode(sample.ids)
    ended = sample.ended and sample.ids[-1] not in stops
    row = prompt.row
    if row is None or not row.messages:
        return Answer(text, ended)
    text = (row.prefix or "") + text
    whole = slice(None, -1 if ended else None)  # without the end token: the text does not say which of several it was
    sampled = [*chat.encode_prompt(row.messages, tools=row.tools, prefix=row.prefix), *sample.ids][whole]
    for wording in dict.fromkeys((text.strip(), text.removeprefix(" "), text, text.rstrip(), text.lstrip())):
        again = replace(row, answers=(wording,), grades=None, prefix=None, ended=(ended,), calls=None)
        if wording.strip() and chat.encode_example(again).tokens(0)[whole] == sampled:
            return Answer(wording, ended)
    return Answer(text.strip(), ended)


def asked_of(chat: ChatFormat, prompt: Prompt) -> dict[str, Any]:
    """The prompt as a data file holds it: one question as a string, a conversation as messages."""
    row = prompt.row
    if row is None or not row.messages:
        return {"prompt": chat.decode(prompt.ids)}
    if len(row.messages) == 1 and row.messages[0].role == "user" and not row.tools:
        return {"prompt": row.messages[0].content}
    asked: dict[str, Any] = {"prompt": [for_file(message) for message in row.messages]}
    if row.tools:
        asked["tools"] = [json.loads(tool) for tool in row.tools]
    return asked


def columns_of(prompt: Prompt) -> Mapping[str, Any]:
    """The row's columns, but for those by whose names the row that is written would be read another way."""
    columns = {} if prompt.row is None else prompt.row.columns
    return {key: value for key, value in columns.items() if key not in DECIDING}


def is_text(prompt: Prompt) -> bool:
    """Whether the prompt is the beginning of a plain text."""
    return prompt.row is None or not prompt.row.messages


def describe_scores(means: Sequence[float], best: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean scores of all samples and of the best ones, and their difference with its interval."""
    if not best:
        return {}
    scores = [float(row["score"]) for row in best]
    rise = paired_bootstrap([sum(row["scores"]) / len(row["scores"]) for row in best], scores)
    return {
        "mean_score": bootstrap_mean(means).mean,
        "best_score": bootstrap_mean(scores).mean,
        "rise": [rise.mean, rise.low, rise.high],
        "best_ended": sum(row["ended"] for row in best) / len(best),
    }


def score_line(means: Sequence[float], best: Sequence[Mapping[str, Any]]) -> str:
    if not best:
        return ""
    scores = [float(row["score"]) for row in best]
    return f"mean score {bootstrap_mean(means)}, of the best {bootstrap_mean(scores)}; "


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
