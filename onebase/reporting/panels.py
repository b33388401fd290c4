"""Which metrics of a run are drawn together, and under which titles."""

from __future__ import annotations

from collections.abc import Sequence

TITLES = {
    "right": "pass@1",
    "score": "reward score",
    "kl": "KL (nats/completion)",
    "entropy": "entropy (nats/token)",
    "length": "length (tokens)",
}
"""Titles with units for the figures of `HeldOut.row`; a judge keeps its own name."""

PANELS = (
    ("loss", ("loss", "eval/loss")),
    ("score", ("objective/scores", "eval/score")),
    ("share of right answers", ("rewards/right", "eval/right")),
    ("score by the judge, which training never sees", ("eval/judge",)),
    ("score of the round's samples", ("samples/mean_score", "samples/best_score")),
    ("KL to the reference (nats per completion)", ("objective/kl", "eval/kl")),
    ("KL coefficient", ("objective/kl_coef",)),
    ("entropy (nats per token)", ("objective/entropy",)),
    ("accuracy", ("accuracy", "eval/accuracy")),
    ("accuracy of the implicit reward", ("rewards/accuracies", "learn/eval_accuracy")),
    ("margin", ("margin", "rewards/margins")),
    ("implicit reward", ("rewards/chosen", "rewards/rejected")),
    ("log-prob (nats per completion)", ("logps/chosen", "logps/rejected")),
    ("share of prompts whose completions all score the same", ("groups/without_variance",)),
    ("distinct completions of a prompt (share)", ("completions/distinct",)),
    ("completion length (tokens)", ("completions/mean_length",)),
    ("share of completions that ended", ("completions/ended",)),
    ("policy and value loss", ("loss/policy", "loss/value")),
    ("clip fraction", ("policy/clipfrac", "val/clipfrac")),
    ("KL of an update (nats per token)", ("policy/approxkl",)),
    ("probability ratio", ("policy/ratio",)),
    ("explained variance of the critic", ("val/explained_variance",)),
    ("gradient norm", ("grad_norm",)),
)
"""Panels in order: a title with its unit, and its metrics. A panel without data is skipped."""


def running_mean(values: Sequence[float], share: float = 0.05) -> list[float]:
    """Returns the exponential moving average over about a twentieth of the run, bias-corrected at the start."""
    keep = 1 - 1 / max(1.0, share * len(values))
    total = weight = 0.0
    means = []
    for value in values:
        total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
        means.append(total / weight)
    return means
