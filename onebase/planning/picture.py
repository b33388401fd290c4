"""A picture of a fitted law and the runs it was fitted to."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402

from onebase.planning.fit import Fitted, Run, profiles  # noqa: E402
from onebase.planning.scaling import count  # noqa: E402


def draw_law(fitted: Fitted, path: Path, *, held_back: tuple[Run, ...] = ()) -> None:
    """Draws loss over tokens, and loss over parameters where runs share their compute (isoFLOP profiles).

    Args:
        held_back: runs that the law was not fitted to, drawn as crosses with their predicted intervals.
    """
    shared = profiles(fitted.runs)
    figure, axes = plt.subplots(1, 1 + bool(shared), figsize=(8 + 6 * bool(shared), 4.5), squeeze=False)
    figure.set_layout_engine("constrained")
    _over_tokens(axes[0, 0], fitted, held_back)
    if shared:
        _over_parameters(axes[0, 1], fitted)
    try:
        figure.savefig(path, dpi=110)
    finally:
        plt.close(figure)


def _over_tokens(axis: Axes, fitted: Fitted, held_back: tuple[Run, ...]) -> None:
    ends = [run.tokens for run in (*fitted.runs, *held_back)]
    tokens = numpy.geomspace(min(ends), max(ends), 60)
    for size in sorted({run.parameters for run in fitted.runs}):
        own = [(run.tokens, run.loss) for run in fitted.runs if run.parameters == size]
        (dots,) = axis.plot(*zip(*own, strict=True), "o", label=f"{count(size)} parameters")
        axis.plot(tokens, [fitted.law.loss(size, d) for d in tokens], color=dots.get_color(), alpha=0.6)
    for number, run in enumerate(held_back):
        _, low, high = fitted.loss(run.parameters, run.tokens)
        axis.vlines(run.tokens, low, high, color="black", linewidth=1, label="" if number else "predicted")
        axis.plot([run.tokens], [run.loss], "x", color="black", label=f"held back, {count(run.parameters)}")
    axis.set(xscale="log", xlabel="tokens", ylabel="held-out loss, nats a token", title="Loss over data and size")
    axis.grid(alpha=0.25)
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))  # a line for every size: no room inside


def _over_parameters(axis: Axes, fitted: Fitted) -> None:
    for profile in profiles(fitted.runs):
        sizes = [run.parameters for run in profile.runs]
        (dots,) = axis.plot(sizes, [run.loss for run in profile.runs], "o", label=f"{profile.compute:.1e} FLOP")
        line = numpy.geomspace(min(sizes), max(sizes), 60)
        axis.plot(line, numpy.polyval(profile.curve, numpy.log(line)), color=dots.get_color(), alpha=0.6)
        if profile.best is not None:
            axis.plot(*profile.best, "*", markersize=14, color=dots.get_color())
    axis.set(xscale="log", xlabel="parameters", title="Equal compute; a star where the parabola is lowest")
    axis.grid(alpha=0.25)
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
