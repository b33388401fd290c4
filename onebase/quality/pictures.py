"""Draws what a file holds as a PNG: lengths, scripts, turns, how much longer the better answers are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy  # noqa: E402
from matplotlib import pyplot as plt  # noqa: E402

from onebase.quality.statistics import Statistics  # noqa: E402
from onebase.shown import number_of

_BINS = 40
_COLUMNS = 9


def draw(found: Statistics, path: Path) -> Path:
    """Draws one file's figures, three panels in a row; panels without data are left out."""
    panels: list[tuple[str, Callable[[Any], None]]] = []
    for what, title in (("prompt", "prompt"), ("answer", "answer")):
        unit, values = ("tokens", found.tokens.get(what)) if found.tokens else ("characters", found.characters[what])
        if values:
            panels.append((f"{title} length", _lengths(values, unit)))
    if found.tokens.get("row"):
        panels.append(("rows that fit", _fits(found)))
    if found.differences:
        panels.append(("how much longer the better answer is", _differences(found)))
    if len(found.scripts) > 1:
        panels.append(("main script", _bars(dict(found.scripts.most_common(8)))))
    for title, counts in (("messages of a prompt", found.turns), ("answers of a row", found.answers)):
        if len(counts) > 1:
            panels.append((title, _columns(counts)))
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4 * columns, 2.8 * rows), squeeze=False, layout="constrained")
    for axis, (title, fill) in zip(axes.flat, panels, strict=False):
        fill(axis)
        axis.set_title(title, fontsize=10)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.25)
        axis.set_axisbelow(True)
    for axis in list(axes.flat)[len(panels) :]:
        axis.set_visible(False)
    figure.suptitle(f"{Path(found.name).name}: {number_of(found.rows, 'row', form=',')}", fontsize=11)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)
    finally:
        plt.close(figure)
    return path


def _lengths(values: list[int], unit: str) -> Callable[[Any], None]:
    def fill(axis: Any) -> None:
        least, most = max(1, min(values)), max(2, *values)
        if most / least > 20:  # a few long texts would squeeze all others into one bar
            # Whole numbers as edges: between 1 and 2 there is no length.
            edges = numpy.unique(numpy.geomspace(least, most + 1, _BINS).round())
            axis.hist(numpy.maximum(values, 1), bins=edges, color="tab:blue")
            axis.set_xscale("log")
        else:
            axis.hist(values, bins=min(_BINS, most - least + 1), color="tab:blue")
        middle = float(numpy.median(values))
        axis.axvline(middle, color="tab:orange", linewidth=1.2, label=f"median {middle:,.0f}")
        axis.legend(fontsize=8, frameon=False, loc="upper right")
        axis.set_ylim(0, 1.15 * axis.get_ylim()[1])  # room for the legend
        axis.set_xlabel(unit, fontsize=8)

    return fill


def _fits(found: Statistics) -> Callable[[Any], None]:
    def fill(axis: Any) -> None:
        values = numpy.sort(found.tokens["row"])
        axis.step(values, numpy.arange(1, len(values) + 1) / len(values), where="post", color="tab:blue")
        axis.set_xscale("log")
        axis.set_ylim(0, 1.02)
        axis.set_xlabel("tokens of prompt and longest answer", fontsize=8)
        axis.set_ylabel("share of rows", fontsize=8)

    return fill


def _differences(found: Statistics) -> Callable[[Any], None]:
    def fill(axis: Any) -> None:
        values = numpy.array(found.differences)
        edge = max(1.0, float(numpy.percentile(numpy.abs(values), 98)))
        axis.hist(values, bins=_BINS + 1, range=(-edge, edge), color="tab:blue")
        axis.axvline(0, color="black", linewidth=0.8)
        mean = float(values.mean())
        axis.axvline(mean, color="tab:orange", linewidth=1.2, label=f"mean {mean:+,.0f}")
        axis.legend(fontsize=8, frameon=False)
        axis.set_xlabel("characters (98 % of the rows)", fontsize=8)
        axis.set_ylabel("rows", fontsize=8)

    return fill


def _bars(counts: dict[str, int]) -> Callable[[Any], None]:
    def fill(axis: Any) -> None:
        names = list(counts)[::-1]
        axis.barh(names, [counts[name] for name in names], color="tab:blue", height=0.6)
        axis.set_xlabel("rows", fontsize=8)

    return fill


def _columns(counts: Mapping[int, int]) -> Callable[[Any], None]:
    def fill(axis: Any) -> None:
        numbers = sorted(counts)
        shown, rest = numbers[:_COLUMNS], numbers[_COLUMNS:]
        heights = [counts[number] for number in shown] + ([sum(counts[number] for number in rest)] if rest else [])
        axis.bar([*map(str, shown), *([f"{rest[0]}+"] if rest else [])], heights, color="tab:blue")
        axis.set_ylabel("rows", fontsize=8)

    return fill
