"""What best-of writes: its files, what a checkpoint keeps of them, and the scores in words."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onebase.config.rollouts import BestOfConfig
from onebase.data.chat import ChatFormat
from onebase.files import write_atomically
from onebase.records import Prompt
from onebase.reporting.intervals import bootstrap_mean, paired_bootstrap
from onebase.rollouts.sampled_rows import asked_of, best_and_worst, best_row, own_answer, pairs_with_data
from onebase.sampling.sampler import Sample
from onebase.shown import number_of


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
