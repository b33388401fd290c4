"""What one measurement of a training pass is made of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Point:
    """A model and its input; lengths in tokens."""

    examples: int = 8
    prompt: int = 128
    completion: int = 64
    completions: int = 1
    """K, the completions per prompt."""
    layout: str = "tree"
    rank: int = 16
    hidden: int = 512
    num_layers: int = 8
    vocab: int = 8192
    precision: str = "fp32"
