"""The interface for drawing completions: in this process (`local.py`), or by a server that holds the same weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn.

    With `top_k` or `top_p`, samples come from a truncated distribution; `Sample.logprobs` still refer to the full
    distribution at this temperature.
    """

    max_new_tokens: int
    temperature: float = 1.0
    """0: always the most probable token."""
    top_k: int = 0
    """Keep the k most probable tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the most probable tokens that together reach this probability; 1 keeps all."""
    stop_ids: tuple[int, ...] = ()
    """Tokens that end a completion and stay as its last token."""


@dataclass(slots=True)
class Sample:
    """One completion as it was drawn."""

    prompt: int
    """Index of its prompt."""
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    """One per token, under the full distribution at the temperature, as the sampler saw it."""
    ended: bool = False
    """Whether it ended with one of `stop_ids` rather than at the length limit."""
    version: int = 0
    """The version of the weights it was drawn with (`models.roles.Role.version`)."""


class Sampler(Protocol):
    """Draws completions as one policy."""

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        seeds: Sequence[int],
        samples_per_prompt: int = 1,
    ) -> list[Sample]:
        """Draws K completions of every prompt.

        Args:
            prompts: token ids, at least one each.
            seeds: one per completion, prompt by prompt (`seeds.sample_seeds`).

        Returns:
            The samples prompt by prompt: K of the first, K of the second, ...
        """
        ...
