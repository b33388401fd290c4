"""A picture of a fitted law and the runs it was fitted to."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

from onebase.planning.fit import Fitted  # noqa: E402
from onebase.planning.scaling import count  # noqa: E402


def draw_law(fitted: Fitted, path: Path) -> None:
    """Draws loss over tokens, a colour for each size: runs as dots, the law as lines."""
    figure, axis = plt.subplots(figsize=(7, 4.5), layout="constrained")
    ends = [run.tokens for run in fitted.runs]
    tokens = numpy.geomspace(min(ends), max(ends), 60)
    for size in sorted({run.parameters for run in fitted.runs}):
        own = [(run.tokens, run.loss) for run in fitted.runs if run.parameters == size]
        (dots,) = axis.plot(*zip(*own, strict=True), "o", label=f"{count(size)} parameters")
        axis.plot(tokens, [fitted.law.loss(size, d) for d in tokens], color=dots.get_color(), alpha=0.6)
    axis.set(xscale="log", xlabel="tokens", ylabel="held-out loss, nats a token", title="Loss over data and size")
    axis.grid(alpha=0.25)
    axis.legend(fontsize=8)
    try:
        figure.savefig(path, dpi=110)
    finally:
        plt.close(figure)
