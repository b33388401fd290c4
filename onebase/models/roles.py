"""Roles: ways to use one base.

| role      | adapter                                            | head          |
| --------- | -------------------------------------------------- | ------------- |
| policy    | yes (or none: full-parameter training of the base) | the base's    |
| reference | a frozen copy of what the policy started from,     | the base's    |
|           | or none where that is exactly the base             |               |
| reward    | yes                                                | `ScalarHead`  |
| critic    | yes, or the policy's own with a head on its trunk  | `ScalarHead`  |
"""

from __future__ import annotations

from dataclasses import dataclass, field

from onebase.models.heads import ScalarHead


@dataclass(slots=True, kw_only=True)
class Role:
    """The base with its output layer, run through an adapter or with adapters off."""

    name: str
    adapter: str | None
    """The adapter's name in PEFT; None: adapters off."""
    trains: bool = False
    version: int = 0
    """How often the role's weights have changed since it was put on the base."""


@dataclass(slots=True)
class Moments:
    """Mean and standard deviation of a reward role's held-out scores, to normalise by."""

    mean: float = 0.0
    std: float = 1.0
    measured: bool = False
    """False if nothing was held out to measure them on; normalising by them then changes nothing."""


@dataclass(slots=True, kw_only=True)
class ScalarRole(Role):
    """A role that gives one number per state: scores or values."""

    head: ScalarHead
    pooling: str = "last"
    """How a reward role scores: `last` reads the last token, `mean` averages over the completion's tokens."""
    moments: Moments = field(default_factory=Moments)
