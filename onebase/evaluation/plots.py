"""Curves of a run as PNG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

from onebase.evaluation.held_out import TITLES  # noqa: E402
from onebase.evaluation.intervals import Interval  # noqa: E402
from onebase.training.metrics import read_metrics  # noqa: E402

PANELS = (
    ("loss", ("loss", "eval/loss")),
    ("score", ("objective/scores", "eval/score")),
    ("score of the round's samples", ("samples/mean_score", "samples/best_score")),
    ("KL to the reference (nats per completion)", ("objective/kl", "eval/kl")),
    ("KL coefficient", ("objective/kl_coef",)),
    ("entropy (nats per token)", ("objective/entropy",)),
    ("accuracy", ("accuracy", "eval/accuracy")),
    ("accuracy of the implicit reward", ("rewards/accuracies", "learn/eval_accuracy")),
    ("margin", ("margin", "rewards/margins")),
    ("implicit reward", ("rewards/chosen", "rewards/rejected")),
    ("log-prob (nats per completion)", ("logps/chosen", "logps/rejected")),
    ("completion length (tokens)", ("completions/mean_length",)),
    ("share of completions that ended", ("completions/ended",)),
    ("policy and value loss", ("loss/policy", "loss/value")),
    ("clip fraction", ("policy/clipfrac", "val/clipfrac")),
    ("explained variance of the critic", ("val/explained_variance",)),
    ("gradient norm", ("grad_norm",)),
)
"""Panels in order: a title with its unit, and the metrics drawn in it. A panel without data is left out."""


def plot_run(folder: Path) -> Path | None:
    """Draws `metrics.jsonl` as `plots/metrics.png`; None where there is nothing to draw."""
    rows = read_metrics(folder / "metrics.jsonl")
    drawn = any(row.get(metric) is not None for row in rows for _, metrics in PANELS for metric in metrics)
    if len(rows) < 2 or not drawn:
        return None
    return plot_metrics(rows, folder / "plots" / "metrics.png", title=folder.name)


def plot_metrics(rows: Sequence[Mapping[str, float]], path: Path, *, title: str) -> Path:
    """One panel per group of metrics, three in a row: the steps faintly, their running mean on top."""
    panels = [(name, [m for m in metrics if any(row.get(m) is not None for row in rows)]) for name, metrics in PANELS]
    panels = [(name, metrics) for name, metrics in panels if metrics]
    num_columns = min(3, len(panels))
    num_rows = -(-len(panels) // num_columns)
    figure, axes = plt.subplots(
        num_rows, num_columns, figsize=(4 * num_columns, 2.8 * num_rows), squeeze=False, layout="constrained"
    )
    for axis, (name, metrics) in zip(axes.flat, panels, strict=False):
        for color, metric in zip(("tab:blue", "tab:orange"), metrics, strict=False):
            steps = [row["step"] for row in rows if row.get(metric) is not None]
            values = [row[metric] for row in rows if row.get(metric) is not None]
            few = len(values) < 30
            axis.plot(steps, values, color=color, alpha=1.0 if few else 0.25, marker="o" if few else None,
                      markersize=3, label=metric if few else None)  # fmt: skip
            if not few:
                axis.plot(steps, _running_mean(values), color=color, label=metric)
        axis.set_title(name, fontsize=10)
        axis.grid(alpha=0.25)
        axis.tick_params(labelsize=8)
        if len(metrics) > 1:
            axis.legend(fontsize=8, frameon=False)
    for axis in list(axes.flat)[len(panels) :]:
        axis.set_visible(False)
    for axis in axes[-1]:
        axis.set_xlabel("step", fontsize=8)
    figure.suptitle(f"{title} (pale: each step, dark: running mean)", fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def _running_mean(values: Sequence[float], share: float = 0.05) -> list[float]:
    """Exponential mean that looks back about a twentieth of the run; its start is corrected for having seen little."""
    keep = 1 - 1 / max(1.0, share * len(values))
    total = weight = 0.0
    means = []
    for value in values:
        total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
        means.append(total / weight)
    return means


def plot_stages(stages: Mapping[str, Mapping[str, Interval]], path: Path) -> Path:
    """A bar per stage and figure, with its 95 % interval."""
    figures = list(next(iter(stages.values())))
    figure, axes = plt.subplots(1, len(figures), figsize=(2.6 * len(figures), 3.0), squeeze=False, layout="constrained")
    for axis, name in zip(axes[0], figures, strict=True):
        rows = [stage[name] for stage in stages.values()]
        means = [row.mean for row in rows]
        errors = [[row.mean - row.low for row in rows], [row.high - row.mean for row in rows]]
        axis.bar(list(stages), means, yerr=errors, capsize=4, color=["tab:gray", "tab:blue", "tab:orange"][: len(rows)])
        axis.set_title(TITLES.get(name, name), fontsize=10)
        axis.axhline(0, color="black", linewidth=0.6)
        axis.grid(axis="y", alpha=0.25)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
