"""A scaling law fitted to one's own runs: loss over parameters and tokens, with bootstrap intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy
from numpy.typing import NDArray

from onebase.planning.laws import FLOP_PER_PARAMETER_TOKEN, Parametric

FEWEST_RUNS = 6
"""One more than the law has parameters; a dozen are wanted before an interval means much."""
EXPONENTS = (0.02, 1.5)
GRID, NARROWINGS = 13, 9
RESAMPLES = 200

Table = NDArray[numpy.float64]


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run: its size, its data, where it ended."""

    parameters: float
    tokens: float
    loss: float
    """Nats a token, held out."""
    name: str = ""


@dataclass(frozen=True, slots=True)
class Fitted:
    """A law, and the laws of resampled runs, which give its intervals."""

    law: Parametric
    resampled: tuple[Parametric, ...]
    noise: float
    """Standard deviation of the runs about the law, in log loss."""
    runs: tuple[Run, ...]

    def loss(self, parameters: float, tokens: float) -> tuple[float, float, float]:
        """What a new run is expected to end with, and the 95 % interval it should fall into.

        The interval has two parts: the law's own, from the resamples, and the scatter of single runs about it.
        """
        generator = numpy.random.default_rng(0)
        drawn = numpy.array([law.loss(parameters, tokens) for law in self.resampled])
        drawn = drawn * numpy.exp(self.noise * generator.standard_normal(len(drawn)))
        low, high = numpy.percentile(drawn, [2.5, 97.5])
        return self.law.loss(parameters, tokens), float(low), float(high)

    @property
    def undecided(self) -> tuple[str, ...]:
        """The law's constants that lie at the edge of what was tried, because the runs leave them open."""
        low, high = EXPONENTS
        edges = {"alpha": self.law.alpha, "beta": self.law.beta}
        found = [name for name, value in edges.items() if not 1.01 * low < value < 0.99 * high]
        least = min(run.loss for run in self.runs)
        return (*(["E"] if self.law.e < 0.01 * least else []), *found)

    def extrapolates(self, parameters: float, tokens: float) -> str:
        """How far this lies outside the runs, in words; empty if it lies among them."""
        told = []
        for value, seen, what in (
            (parameters, [run.parameters for run in self.runs], "parameters"),
            (tokens, [run.tokens for run in self.runs], "tokens"),
        ):
            if value > max(seen):
                told.append(f"{value / max(seen):.3g} times the most {what} of any run")
            elif value < min(seen):
                told.append(f"{min(seen) / value:.3g} times fewer {what} than any run")
        return " and ".join(told)


def fit(runs: Sequence[Run], *, seed: int = 0) -> Fitted:
    """Fits L(N, D) = E + A / N^alpha + B / D^beta to runs.

    min over (E, A, B, alpha, beta) of sum_i ((L(N_i, D_i) - L_i) / L_i)^2, E, A, B > 0. For given exponents the rest
    is linear and solved exactly (variable projection, Golub and Pereyra 1973), which leaves a search in two dimensions
    without local minima to start from. The resamples draw runs with replacement.

    Raises:
        ValueError: there are too few runs, or all have the same size or the same data.
    """
    if len(runs) < FEWEST_RUNS:
        raise ValueError(f"{len(runs)} runs are too few for a law with 5 parameters; at least {FEWEST_RUNS} are needed")
    for values, what in (([r.parameters for r in runs], "parameters"), ([r.tokens for r in runs], "tokens")):
        if len({round(math.log(value), 3) for value in values}) < 3:
            raise ValueError(f"the runs have fewer than 3 different numbers of {what}; the law needs both to vary")
    table = numpy.array([(math.log(run.parameters), math.log(run.tokens), run.loss) for run in runs])
    law = _law(table)
    generator = numpy.random.default_rng(seed)
    resampled: list[Parametric] = []
    while len(resampled) < RESAMPLES:
        drawn = generator.integers(0, len(runs), len(runs))
        if len(numpy.unique(drawn)) >= FEWEST_RUNS - 1:
            resampled.append(_law(table[drawn]))
    residuals = [math.log(law.loss(run.parameters, run.tokens) / run.loss) for run in runs]
    noise = math.sqrt(sum(r * r for r in residuals) / max(len(runs) - 5, 1))
    return Fitted(law, tuple(resampled), noise, tuple(runs))


def _law(table: Table) -> Parametric:
    """The least-squares law of rows (log N, log D, loss): the exponents by narrowing a grid, the rest exactly."""
    low, high = numpy.array((EXPONENTS[0], EXPONENTS[0])), numpy.array((EXPONENTS[1], EXPONENTS[1]))
    for _ in range(NARROWINGS):
        axes = [numpy.linspace(low[i], high[i], GRID) for i in range(2)]
        alphas, betas = (axis.ravel() for axis in numpy.meshgrid(*axes, indexing="ij"))
        errors, solved = _solve(table, alphas, betas)
        best = int(errors.argmin())
        at, step = numpy.array((alphas[best], betas[best])), (high - low) / (GRID - 1)
        low, high = numpy.maximum(at - 2 * step, EXPONENTS[0]), numpy.minimum(at + 2 * step, EXPONENTS[1])
    a, b, e = solved[best]
    return Parametric("fitted", e=float(e), a=float(a), b=float(b), alpha=float(at[0]), beta=float(at[1]))


def _solve(table: Table, alphas: Table, betas: Table) -> tuple[Table, Table]:
    """The squared error and A, B, E for every pair of exponents; infinite where one would be negative."""
    n, d, loss = table.T
    # Powers about the runs' own middle, so that the three columns are of one size whatever the exponents.
    terms = numpy.stack(
        (
            numpy.exp(-alphas[:, None] * (n - n.mean())),
            numpy.exp(-betas[:, None] * (d - d.mean())),
            numpy.ones((len(alphas), len(n))),
        ),
        2,
    )
    terms = terms / loss[:, None]  # residuals relative to the loss, which to first order are those of its logarithm
    squares = terms.transpose(0, 2, 1) @ terms + 1e-12 * numpy.eye(3)
    solved = numpy.linalg.solve(squares, terms.sum(1)[:, :, None])[:, :, 0]
    errors = ((numpy.einsum("gij,gj->gi", terms, solved) - 1) ** 2).sum(1)
    errors = numpy.where((solved > 0).all(1), errors, numpy.inf)
    scale = numpy.stack((numpy.exp(alphas * n.mean()), numpy.exp(betas * d.mean()), numpy.ones(len(alphas))), 1)
    return errors, solved * scale


def by_compute(runs: Sequence[Run]) -> list[list[Run]]:
    """The runs in groups of about equal compute, 6 N D within a tenth of the group's least; the least first."""
    groups: list[list[Run]] = []
    for run in sorted(runs, key=_compute):
        if groups and _compute(run) <= 1.1 * _compute(groups[-1][0]):
            groups[-1].append(run)
        else:
            groups.append([run])
    return groups


def _compute(run: Run) -> float:
    return FLOP_PER_PARAMETER_TOKEN * run.parameters * run.tokens


@dataclass(frozen=True, slots=True)
class Profile:
    """Runs of about equal compute, and the parabola of loss over log N through them (an isoFLOP profile)."""

    compute: float
    """6 N D, the mean over the runs."""
    runs: tuple[Run, ...]
    curve: tuple[float, float, float]
    """Loss = curve[0] x^2 + curve[1] x + curve[2], x = log N."""

    @property
    def best(self) -> tuple[float, float] | None:
        """Size and loss at the vertex; None where that lies outside the runs, which then do not hold the best size."""
        a, b, _ = self.curve
        x = numpy.log([run.parameters for run in self.runs])
        vertex = -b / (2 * a) if a > 0 else math.inf
        return (math.exp(vertex), float(numpy.polyval(self.curve, vertex))) if x.min() <= vertex <= x.max() else None


def profiles(runs: Sequence[Run]) -> list[Profile]:
    """An isoFLOP profile for each compute that runs of three or more sizes share (Hoffmann et al. 2022, approach 2)."""
    found = []
    for group in by_compute(runs):
        x = numpy.log([run.parameters for run in group])
        if len({round(float(value), 3) for value in x}) >= 3:
            a, b, c = numpy.polyfit(x, [run.loss for run in group], 2)
            compute = float(numpy.mean([_compute(run) for run in group]))
            found.append(Profile(compute, tuple(group), (float(a), float(b), float(c))))
    return found
