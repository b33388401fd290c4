"""What a planned run holds: the parts, the phases that hold them, and the highest of those."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Part:
    """A part of what is held."""

    name: str
    size: float
    """Bytes."""
    formula: str


@dataclass(frozen=True, slots=True)
class Phase:
    """What is held at the peak of one phase."""

    name: str
    parts: tuple[Part, ...]

    @property
    def size(self) -> float:
        """Bytes."""
        return sum(part.size for part in self.parts)


@dataclass(frozen=True, slots=True)
class Peak:
    """The memory of a run."""

    phases: tuple[Phase, ...]
    microbatch_tokens: int
    rows: int
    """Completions decoded at once."""

    @property
    def highest(self) -> Phase:
        """The phase that needs most."""
        return max(self.phases, key=lambda phase: phase.size)

    @property
    def size(self) -> float:
        """Bytes."""
        return self.highest.size
