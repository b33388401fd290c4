"""Draws with a role's weights at a server: publishes the adapter whenever it changed, and has the server prove it.

A version is a fresh folder and a fresh name (`policy-v17-3fa9c1d2`: how often the weights had changed, and the first
digits of their hash), so that no request can meet other weights under the name it asks for. Before a version is used it
must be listed, and the server's log-probs after some fixed texts must be those of this process, and no longer those of
the version before. Only then is the version before unloaded.
"""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onebase.asking import Refused
from onebase.engines.budget import TokenBudget
from onebase.engines.forward import token_logprobs
from onebase.engines.passes import per_token
from onebase.errors import ModelError, QualityError, UnansweredError
from onebase.models.base import OneBase
from onebase.models.role_files import save_adapter
from onebase.records import Example
from onebase.sampling.elsewhere import AdapterServer
from onebase.sampling.local import generate
from onebase.sampling.sampler import Sample, Sampling
from onebase.shown import number_of, shown

LogProbs = list[dict[int, float]]
"""For each probe, log-probs of next tokens."""
PROBES, PROBE_TOKENS = 8, 12
"""Prompts after which log-probs are compared when a version is published, and with how many tokens more."""
MOST_DIFFERENCE = 0.01
"""Mean difference of probability at which the server does not run these weights."""
NOISE = {torch.float32: 1e-5}
"""By how many nats per token equal weights differ between two engines, at least; `USUAL_NOISE` in other formats. Or by
their format's rounding, which grows with the log-probs: those of a policy that has made up its mind are far from 0."""
USUAL_NOISE = 5e-3


@dataclass(frozen=True, slots=True)
class Version:
    """What is published."""

    name: str
    digest: str
    folder: Path | None
    """None: the base itself."""
    number: int


class PublishedSampler:
    """Draws at a server with a role of this process (implements `sampler.Sampler`).

    Args:
        role: whose weights draw; published when a sample is asked for and they changed.
        folder: where versions are written; the server must see it under the same path.
    """

    def __init__(self, base: OneBase, role: str, server: AdapterServer, folder: Path, *, budget: TokenBudget) -> None:
        self.base, self.role, self.server = base, role, server
        self._folder, self._budget = folder.absolute(), budget
        self._version: Version | None = None
        self._probes: list[list[int]] = []
        self._told: tuple[str, LogProbs] | None = None
        """The version that was last told apart, and the log-probs of tokens after the probes under it."""
        self._noise = NOISE.get(base.model.dtype, USUAL_NOISE)
        self._rounding = torch.finfo(base.model.dtype).eps

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        seeds: Sequence[int],
        samples_per_prompt: int = 1,
    ) -> list[Sample]:
        """Draws K completions of every prompt.

        Raises:
            QualityError: what was published did not arrive. ModelError: the server refuses what it is asked for.
            UnansweredError: it does not answer.
        """
        self.publish(prompts, sampling)
        return self.base.group.from_main(
            lambda: self.draw(prompts, sampling, seeds=seeds, samples_per_prompt=samples_per_prompt)
        )

    def draw(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, *, seeds: Sequence[int], samples_per_prompt: int
    ) -> list[Sample]:
        """Draws with the version that is published, in the calling process alone; uses no model here."""
        assert self._version is not None, "nothing is published"
        try:
            samples = self.server.draw(
                self._version.name, prompts, sampling, seeds=seeds, samples_per_prompt=samples_per_prompt
            )
        except Refused as refused:
            raise self._refusal(refused) from refused
        for sample in samples:
            sample.version = self._version.number
        return samples

    def publish(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> None:
        """Publishes the role's weights if they changed; see `sample` for what it raises.

        Args:
            prompts: what the first version's probes begin with.
        """
        role, group = self.base.roles[self.role], self.base.group
        if self._version is not None and self._version.number == role.version:
            return
        weights = self.base.adapter_weights(self.role)
        digest = _digest(weights)
        before = self._version
        if before is not None and before.digest == digest:  # a step in which only the critic moved
            self._version = Version(before.name, digest, before.folder, role.version)
            return
        name, folder = f"policy-v{role.version}-{digest[:8]}", None
        try:
            if weights:
                folder = self._folder / name
                save_adapter(self.base, self.role, folder)
                group.from_main(lambda: self._load(name, folder))
            else:
                name = group.from_main(lambda: self.server.models()[0])
            self._verify(name, prompts, sampling, has_adapter=bool(weights))
        except Refused as refused:
            raise self._refusal(refused) from refused
        self._version = Version(name, digest, folder, role.version)
        if before is not None:
            group.from_main(lambda: self._forget(before))

    def close(self) -> None:
        """Has the server forget what was published; a server that is gone has forgotten it."""
        version, self._version = self._version, None
        if version is not None and self.base.group.is_main:
            with suppress(UnansweredError, Refused):
                self._forget(version)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: how often the weights have changed."""
        return {"version": self.base.roles[self.role].version}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resumes from `state_dict()`."""
        self.base.roles[self.role].version = state["version"]

    def _load(self, name: str, folder: Path) -> None:
        if name in self.server.models():  # from an earlier run: the same weights, but perhaps not whole
            self.server.unload(name)
        self.server.load(name, folder)
        if name not in self.server.models():
            raise self._undelivered(f"took {name} without an error and does not list it")

    def _forget(self, version: Version) -> None:
        if version.folder is not None:
            self.server.unload(version.name)
            shutil.rmtree(version.folder, ignore_errors=True)
            with suppress(OSError):  # others are still in it
                self._folder.rmdir()

    def _verify(self, name: str, prompts: Sequence[Sequence[int]], sampling: Sampling, *, has_adapter: bool) -> None:
        """Compares the log-probs of the likeliest tokens after the probes.

        Raises:
            QualityError: the server's differ from ours, or are still those of another version.
        """
        first = not self._probes
        if first:
            self._probes = self._new_probes(prompts, sampling)
            if has_adapter:
                self._told = ("the base", self._theirs(None))
        theirs = self._theirs(name)
        ours = self._ours(theirs)
        rest, apart = _difference(theirs, ours), _difference(theirs, ours, of_probabilities=True)
        if not apart <= MOST_DIFFERENCE:
            raise self._undelivered(
                f"answers as {name} with log-probs that are not ours: probabilities differ by {apart:.4f} on average "
                f"after {number_of(len(ours), 'text')}, and at most by {MOST_DIFFERENCE:g} between two engines "
                "with one model"
            )
        if self._told is not None:
            told, before = self._told
            moved, rest_of_these = _difference(ours, before), _difference(theirs, ours, only=before)
            shared = any(p.keys() & q.keys() for p, q in zip(ours, before, strict=True))
            noise = max(self._noise, self._rounding * _size(ours))
            if shared and moved <= 4 * noise:  # too little to tell: the next version is compared with `told`
                return
            if rest_of_these > moved / 2:
                raise self._undelivered(
                    f"answers as {name}, but not with its weights: its log-probs are {rest_of_these:.2g} nats from "
                    f"ours, which moved by {moved:.2g} since {told}"
                )
        if first:
            self._noise = max(self._noise, rest)
        self._told = (name, ours)

    def _new_probes(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[list[int]]:
        """Some prompts, and each with a few tokens that this process draws itself."""
        some = [list(ids) for ids in prompts[:PROBES]]
        length = min(PROBE_TOKENS, sampling.max_new_tokens)
        drawn = generate(
            self.base, some, role=self.role, sampling=Sampling(max_new_tokens=length), seeds=list(range(len(some)))
        )
        longer = [some[sample.prompt] + sample.ids[:-1] for sample in drawn if len(sample.ids) > 1]
        return some + longer

    def _ours(self, theirs: Sequence[Mapping[int, float]]) -> LogProbs:
        """Our log-probs of the tokens that the server named."""
        examples = [
            Example(probe, [[token] for token in tokens]) for probe, tokens in zip(self._probes, theirs, strict=True)
        ]
        found = per_token(
            self.base,
            examples,
            lambda batch: {"logprobs": token_logprobs(self.base, batch, role=self.role)},
            budget=self._budget,
        )["logprobs"]
        return [dict(zip(tokens, own.tolist(), strict=True)) for tokens, own in zip(theirs, found, strict=True)]

    def _theirs(self, name: str | None) -> LogProbs:
        return self.base.group.from_main(lambda: self.server.likeliest(name or self.server.models()[0], self._probes))

    def _undelivered(self, what: str) -> QualityError:
        return QualityError(f"{self.server.where} {what}", remedy="not-delivered", where=self.server.where)

    def _refusal(self, refused: Refused) -> ModelError:
        return ModelError(shown(refused), remedy="engine-refused")


def _difference(
    some: LogProbs, others: LogProbs, *, of_probabilities: bool = False, only: LogProbs | None = None
) -> float:
    """Mean difference of log-probs, in nats, over the tokens that both have (and `only` too); 0 without any."""
    differences = [
        abs(math.exp(p[token]) - math.exp(q[token])) if of_probabilities else abs(p[token] - q[token])
        for p, q, r in zip(some, others, only or some, strict=True)
        for token in p
        if token in q and token in r
    ]
    return sum(differences) / max(1, len(differences))


def _size(found: LogProbs) -> float:
    """How far log-probs are from 0 on average, in nats."""
    every = [abs(logprob) for of_probe in found for logprob in of_probe.values()]
    return sum(every) / max(1, len(every))


def _digest(weights: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for key, weight in sorted(weights.items()):
        digest.update(key.encode() + weight.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
