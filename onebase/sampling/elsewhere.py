"""What a server has to do to draw rollouts. `vllm.py` does it with vLLM; another server is another file like it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from onebase.sampling.sampler import Sample, Sampling


class AdapterServer(Protocol):
    """A program that holds the base, takes adapters from folders, and draws with the one that is named.

    Every method may raise UnansweredError, and `asking.Refused` for what the server will not do.
    """

    where: str
    """What messages call it."""

    def models(self) -> list[str]:
        """The names that it answers to, the base's first."""
        ...

    def load(self, name: str, folder: Path) -> None:
        """Has it take the adapter in this folder, which both see under this path, under a name it does not have yet."""
        ...

    def unload(self, name: str) -> None:
        """Has it forget an adapter."""
        ...

    def draw(
        self,
        model: str,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        seeds: Sequence[int],
        samples_per_prompt: int,
    ) -> list[Sample]:
        """Draws as `Sampler.sample`, with log-probs at the sampling's temperature, under the model of this name."""
        ...

    def likeliest(self, model: str, prompts: Sequence[Sequence[int]]) -> list[dict[int, float]]:
        """The likeliest next tokens after each prompt, with their log-probs at temperature 1."""
        ...
