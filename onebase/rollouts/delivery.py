"""Proof of delivery: that a server drew with the weights that are learned from, shown by its own log-probs.

Adapters that never reach the server, or another's that does, leave loss curves that look fine; the tokens' log-probs
tell. Two engines with one model differ by rounding: mean |p - q| over tokens below 0.005 is usual, above 0.01 something
is wrong (the thresholds of verl's documentation).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from onebase.engines.budget import TokenBudget
from onebase.errors import QualityError
from onebase.models.base import OneBase
from onebase.objectives.policy import truncated_importance_weights
from onebase.rollouts.collect import Roles, Rollout, measure
from onebase.runs.progress import say

WARN, STOP = 0.005, 0.01
"""Mean |difference of probability| per token."""
STOP_NATS = 0.2
"""Mean |difference of log-prob| per token: probabilities that are all small never differ by `STOP`."""
MOST_WEIGHT = 2.0
"""Cap of the importance weights that correct what remains."""


class Delivery:
    """Compares a server's log-probs with our own.

    Args:
        role: the role whose weights draw.
        where: what messages call the server.
        every: rollouts from one comparison to the next.
    """

    def __init__(self, base: OneBase, budget: TokenBudget, *, role: str, where: str, every: int = 1) -> None:
        self._base, self._budget, self._role = base, budget, role
        self._where, self._every = where, every

    def check(self, rollout: Rollout, index: int, *, temperature: float, policy: str = "policy") -> dict[str, float]:
        """A rollout's comparison, before anything is learned from it; returns its metrics.

        Args:
            index: the rollout's number; only every few are compared.
            policy: the role whose log-probs `rollout.measured` has.

        Raises:
            QualityError: the server drew with other weights.
        """
        version = rollout.samples[0].version
        metrics = {"sampling/staleness": float(self._base.roles[policy].version - version)}
        if index % self._every:
            return metrics
        if rollout.measured is not None and self._role == policy:
            own = rollout.measured.logprobs
        else:
            roles = Roles(self._role)
            own = measure(self._base, rollout.examples, roles, temperature=temperature, budget=self._budget).logprobs
        ours, theirs = torch.cat(own), rollout.sampled_logprobs
        apart, nats = float((ours.exp() - theirs.exp()).abs().mean()), float((ours - theirs).abs().mean())
        found = (
            f"rollout {index + 1}: the log-probs of {self._where} are not ours: on average probabilities differ by "
            f"{apart:.4f} and log-probs by {nats:.2g} nats"
        )
        if not (apart <= STOP and nats <= STOP_NATS):
            raise QualityError(
                f"{found}; two engines with one model differ by at most {STOP:g} and {STOP_NATS:g}",
                remedy="not-delivered",
                where=self._where,
            )
        if apart > WARN:
            say(f"warning: {found}; above {STOP:g} the run stops")
        return {**metrics, "sampling/probability_difference": apart}


def correction(own: Sequence[Tensor], sampled: Tensor) -> tuple[list[Tensor], dict[str, float]]:
    """The importance weights of a rollout's tokens, and their metrics.

    Args:
        own: our own log-probs before the update, one tensor per prompt.
        sampled: the log-probs `[M]` as the tokens were drawn.
    """
    weights = truncated_importance_weights(torch.cat(list(own)), sampled, cap=MOST_WEIGHT)
    capped = float((weights >= MOST_WEIGHT).float().mean())
    metrics = {"sampling/weight": float(weights.mean()), "sampling/weights_capped": capped}
    return list(weights.split([len(of_prompt) for of_prompt in own])), metrics
