"""Mean and standard deviation of a stream of scores."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

LEAST_SPREAD = 1e-3
"""Standard deviation over absolute mean below which values count as equal."""


class RunningMoments:
    """Mean and population standard deviation of all values seen so far, in one pass and float64.

    With counts n_a, n_b, means m_a, m_b and sums of squared deviations S_a, S_b of the old and the new values:

        m = m_a + (m_b - m_a) n_b / n
        S = S_a + S_b + (m_b - m_a)^2 n_a n_b / n,   n = n_a + n_b     (Chan, Golub and LeVeque 1979)

    which is Welford's update when n_b = 1. Every value weighs the same, however old. Not done: no gathering across
    processes; pass `update` the values of all of them.
    """

    def __init__(self) -> None:
        self._count = 0
        self._mean = 0.0
        self._squared_deviations = 0.0

    @property
    def count(self) -> int:
        """How many values have been seen."""
        return self._count

    @property
    def mean(self) -> float:
        """Their mean.

        Raises:
            ValueError: if no value has been seen.
        """
        self._check_seen()
        return self._mean

    @property
    def std(self) -> float:
        """Their population standard deviation; 0 while all are equal, so divide by `scale`.

        Raises:
            ValueError: if no value has been seen.
        """
        self._check_seen()
        return math.sqrt(self._squared_deviations / self._count)

    @property
    def scale(self) -> float:
        """What to divide values by: their standard deviation, or 1 while it is below a thousandth of their mean.

        Until then the values are practically equal, and dividing would only magnify rounding or chance.

        Raises:
            ValueError: if no value has been seen.
        """
        return self.std if self.std > LEAST_SPREAD * abs(self.mean) else 1.0

    def update(self, values: Tensor) -> None:
        """Adds new values.

        Args:
            values: any shape; may be empty.

        Raises:
            ValueError: if a value is not finite: it would stay in the moments for good.
        """
        values = values.detach().to("cpu", torch.float64).flatten()
        finite = values.isfinite()
        if not finite.all():
            place = int((~finite).nonzero()[0])
            raise ValueError(f"value {place} of {values.numel()} is {values[place].item()}; moments need finite values")
        if not values.numel():
            return
        new_mean = values.mean()
        count = self._count + values.numel()
        shift = new_mean.item() - self._mean
        self._mean += shift * values.numel() / count
        self._squared_deviations += (values - new_mean).square().sum().item()
        self._squared_deviations += shift * shift * self._count * values.numel() / count
        self._count = count

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return {"count": self._count, "mean": self._mean, "squared_deviations": self._squared_deviations}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Resumes from `state_dict()`.

        Raises:
            ValueError: if the state is not that of running moments.
        """
        if set(state) != set(self.state_dict()):
            raise ValueError(f"moments state has keys {sorted(state)}; expected {sorted(self.state_dict())}")
        self._count = int(state["count"])
        self._mean = float(state["mean"])
        self._squared_deviations = float(state["squared_deviations"])

    def _check_seen(self) -> None:
        if not self._count:
            raise ValueError("no value was seen yet; update the moments before reading them")
