"""What the worker is asked for, and what it reports back."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from onebase.sampling.sampler import Sampling
from onebase.serving.roles import Served


@dataclass(frozen=True, slots=True)
class Token:
    """One token of an answer, for a client that asked for log-probs."""

    text: str
    logprob: float
    """Under the model itself: at temperature 1, over the whole vocabulary."""
    likeliest: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """What is new about one choice of an answer."""

    choice: int
    text: str = ""
    tokens: tuple[Token, ...] = ()
    finish: str | None = None
    """`stop` or `length` in a choice's last piece."""
    num_tokens: int = 0
    """How many tokens were drawn, in the last piece."""


Report = Piece | Exception
"""An exception ends the whole answer."""


@dataclass(slots=True, eq=False)
class Job:
    """An answer: some choices drawn for one prompt as one role."""

    served: Served
    prompt: Sequence[int]
    sampling: Sampling
    seeds: Sequence[int]
    """One per choice."""
    stops: tuple[str, ...] = ()
    tops: int | None = None
    """How many of the likeliest tokens to tell of at every place; None: no log-probs."""
    strips: bool = False
    """Leave out blanks around the text."""
    deadline: float = float("inf")
    """On `time.monotonic`; the answer ends there as it stands."""
    report: Callable[[Sequence[Report]], None] = field(default=lambda reports: None)
    """Called in the client's thread."""
    piecewise: bool = False
    """Report every piece as it comes; without, each choice is reported once, whole, which wakes its client's thread
    less often."""
    gone: bool = False
    """Set when nobody waits for the answer any more; its rows are then taken out."""

    began: float | None = None
    """When its first tokens were drawn, on `time.monotonic`."""

    @property
    def is_late(self) -> bool:
        return time.monotonic() > self.deadline
