"""Draws the curves of runs as PNG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

from onebase.reporting.intervals import Interval  # noqa: E402
from onebase.reporting.panels import PANELS, TITLES, running_mean  # noqa: E402
from onebase.runs.record import read_rows  # noqa: E402

Rows = Sequence[Mapping[str, float]]


def plot_run(folder: Path) -> Path | None:
    """Draws `metrics.jsonl` as `plots/metrics.png`; None if there is nothing to draw."""
    rows, _ = read_rows(folder / "metrics.jsonl")
    drawn = any(row.get(metric) is not None for row in rows for _, metrics in PANELS for metric in metrics)
    if len(rows) < 2 or not drawn:
        return None
    return plot_metrics(rows, folder / "plots" / "metrics.png", title=folder.name)


def plot_metrics(rows: Rows, path: Path, *, title: str) -> Path:
    """Draws one run, a panel per group of metrics, three in a row: raw values, with the moving average on top."""
    return plot_together({"": rows}, path, title=f"{title} (light: raw values, dark: moving average)")


def plot_together(runs: Mapping[str, Rows], path: Path, *, title: str) -> Path:
    """Draws several runs in the same panels: a colour per run, a panel's second metric dashed. One run: a colour per
    metric.

    Args:
        runs: rows of `metrics.jsonl` by run name; at least one panel must have data.
    """
    every = [row for rows in runs.values() for row in rows]
    panels = [(name, [m for m in metrics if any(row.get(m) is not None for row in every)]) for name, metrics in PANELS]
    panels = [(name, metrics) for name, metrics in panels if metrics]
    num_columns = min(3, len(panels))
    num_rows = -(-len(panels) // num_columns)
    figure, axes = plt.subplots(
        num_rows, num_columns, figsize=(4 * num_columns, 2.8 * num_rows), squeeze=False, layout="constrained"
    )
    for axis, (name, metrics) in zip(axes.flat, panels, strict=False):
        for r, (run, rows) in enumerate(runs.items()):
            for m, metric in enumerate(metrics):
                color, style = (f"C{m}", "-") if len(runs) == 1 else (f"C{r}", ("-", "--")[m])
                _curve(axis, rows, metric, color=color, linestyle=style, label=f"{run} {metric}".strip())
        axis.set_title(name, fontsize=10)
        axis.grid(alpha=0.25)
        axis.tick_params(labelsize=8)
        if len(metrics) > 1 and len(runs) == 1:
            axis.legend(fontsize=8, frameon=False)
        elif len(metrics) > 1:
            axis.set_xlabel(f"(dashed: {metrics[1]})", fontsize=8)
    for axis in list(axes.flat)[len(panels) :]:
        axis.set_visible(False)
    for axis in axes[-1]:
        axis.set_xlabel(" ".join(filter(None, ("step", axis.get_xlabel()))), fontsize=8)
    figure.suptitle(title, fontsize=11)
    if len(runs) > 1:
        lines = [plt.Line2D([], [], color=f"C{r}", label=run) for r, run in enumerate(runs)]
        figure.legend(handles=lines, loc="outside lower center", ncols=min(4, len(runs)), fontsize=9, frameon=False)
    _save(figure, path)
    return path


def _curve(axis: Any, rows: Rows, metric: str, *, label: str, **style: Any) -> None:
    steps = [row["step"] for row in rows if row.get(metric) is not None]
    values = [row[metric] for row in rows if row.get(metric) is not None]
    if len(values) < 30:
        axis.plot(steps, values, marker="o", markersize=3, label=label, **style)
        return
    axis.plot(steps, values, alpha=0.25, **style)
    axis.plot(steps, running_mean(values), label=label, **style)


def _save(figure: Any, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)
    finally:
        plt.close(figure)


def plot_stages(stages: Mapping[str, Mapping[str, Interval]], path: Path) -> Path:
    """Draws a bar for each stage and figure, with its 95 % interval."""
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
    _save(figure, path)
    return path
