"""Draws the curves of docs/performance.md from bench/results.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

TITLES = {
    "rows": "More prompts",
    "completions": "More completions of a prompt: a tree and separate rows",
    "vocabulary": "A larger vocabulary: seconds of a pass",
    "prompt_length": "Longer prompts: seconds of a pass",
    "rank": "A higher rank of LoRA",
    "model_size": "A larger model",
}
MEMORY_TITLES = {
    "vocabulary": "A larger vocabulary: peak memory of a pass",
    "prompt_length": "Longer prompts: peak memory of a pass",
}
INCHES, DPI = (9.0, 5.2), 100
COLOURS = ("#1f6fb2", "#c4551d", "#3a7d44")


def draw_all(growth: dict[str, Any], folder: Path) -> list[str]:
    """Draws all curves and returns the file names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for name, curve in growth.items():
        draw(folder / f"{name}.png", curve, curve["series"], TITLES[name], curve["ylabel"])
        names.append(f"{name}.png")
        if "memory" in curve:
            draw(folder / f"{name}_memory.png", curve, curve["memory"], MEMORY_TITLES[name], "MiB above the model")
            names.append(f"{name}_memory.png")
    return names


def draw(path: Path, curve: dict[str, Any], series: dict[str, list[float]], title: str, ylabel: str) -> None:
    """Draws one picture, with axes from zero so that a line through the corner means proportional growth."""
    figure, axes = plt.subplots(figsize=INCHES, dpi=DPI, facecolor="white")
    for (label, y), colour in zip(series.items(), COLOURS, strict=False):
        axes.plot(curve["x"], y, marker="o", linewidth=2, color=colour, label=label or None)
    axes.set(title=title, xlabel=curve["xlabel"], ylabel=f"{ylabel} ({curve['precision']})")
    axes.set_xlim(0, max(curve["x"]) * 1.05)
    axes.set_ylim(0, max(max(y) for y in series.values()) * 1.1)
    axes.set_xticks(curve["x"][-4:], [f"{x:,.0f}" for x in curve["x"][-4:]])
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if any(series):
        axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, facecolor="white", metadata={"Software": None})
    plt.close(figure)
