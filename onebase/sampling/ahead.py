"""Draws the next rollout at a server while this process learns from the last one: one policy behind.

    rollout t is drawn with policy t - 1 while it becomes policy t (t = 0: with policy 0, before anything is learned)

The weights that draw are a role of their own, a frozen copy. So what was drawn can still be compared with them, and a
checkpoint has them: what was under way when a run stopped is drawn again by the same weights with the same seeds.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onebase.sampling.published import PublishedSampler
from onebase.sampling.sampler import Sample, Sampling

DRAWS = "sampled"
"""The role with the weights that draw."""


@dataclass(slots=True)
class Draw:
    """A rollout that is asked for."""

    prompts: list[list[int]]
    sampling: Sampling
    seeds: list[int]
    samples_per_prompt: int


class Ahead:
    """A `PublishedSampler` that can begin a draw before it is asked for (implements `sampler.Sampler`).

    Args:
        sampler: draws as the role `DRAWS`.
        policy: the role that trains.
    """

    def __init__(self, sampler: PublishedSampler, policy: str) -> None:
        assert sampler.role == DRAWS
        self._sampler, self._policy, self._base = sampler, policy, sampler.base
        self._under_way: tuple[Draw, _Promise] | None = None

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        seeds: Sequence[int],
        samples_per_prompt: int = 1,
    ) -> list[Sample]:
        """The draw that was begun, if it is this one; else a new one. Raises as `PublishedSampler.sample`."""
        draw = Draw([list(ids) for ids in prompts], sampling, list(seeds), samples_per_prompt)
        under_way, self._under_way = self._under_way, None
        if under_way is not None and under_way[0] == draw:
            return self._base.group.from_main(under_way[1].result)
        return self._sampler.sample(prompts, sampling, seeds=seeds, samples_per_prompt=samples_per_prompt)

    def renew(self) -> None:
        """Has the policy as it is now draw what follows."""
        self._base.set_adapter_weights(DRAWS, self._base.adapter_weights(self._policy))
        self._base.roles[DRAWS].version = self._base.roles[self._policy].version

    def begin(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        seeds: Sequence[int],
        samples_per_prompt: int,
    ) -> None:
        """Publishes the weights that draw, and begins a draw in a thread; its errors are raised by `sample`."""
        draw = Draw([list(ids) for ids in prompts], sampling, list(seeds), samples_per_prompt)
        self._sampler.publish(draw.prompts, sampling)
        promise = _Promise(self._sampler, draw)
        if self._base.group.is_main:
            promise.start()
        self._under_way = (draw, promise)

    def close(self) -> None:
        """Waits for what is under way, and has the server forget the weights."""
        under_way, self._under_way = self._under_way, None
        if under_way is not None and self._base.group.is_main:
            under_way[1].join()
        self._sampler.close()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: the weights that draw, and how often they and the policy's had changed."""
        versions = {name: self._base.roles[name].version for name in (DRAWS, self._policy)}
        return {"weights": self._base.adapter_weights(DRAWS), "versions": versions}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resumes from `state_dict()`."""
        self._base.set_adapter_weights(DRAWS, state["weights"])
        for name, version in state["versions"].items():
            self._base.roles[name].version = version


class _Promise(threading.Thread):
    """A draw in a thread that waits for the server alone; a daemon, so that a second Ctrl-C does not wait for it."""

    def __init__(self, sampler: PublishedSampler, draw: Draw) -> None:
        super().__init__(daemon=True, name="draw ahead")
        self._sampler, self._draw = sampler, draw
        self._samples: list[Sample] = []
        self._error: BaseException | None = None

    def run(self) -> None:
        draw = self._draw
        try:
            self._samples = self._sampler.draw(
                draw.prompts, draw.sampling, seeds=draw.seeds, samples_per_prompt=draw.samples_per_prompt
            )
        except BaseException as error:  # raised in the thread that waits
            self._error = error

    def result(self) -> list[Sample]:
        while self.is_alive():
            self.join(0.5)  # short waits, so that Ctrl-C gets through
        if self._error is not None:
            raise self._error
        return self._samples
