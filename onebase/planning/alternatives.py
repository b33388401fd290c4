"""What the same work would take in other layouts: every model trained in full, or four models apart."""

from __future__ import annotations

from onebase.planning.peak import Part
from onebase.planning.run import PlannedRun
from onebase.planning.weights import NUMBER_BYTES

TRAINED_BYTES = 16
"""A parameter that trains: weight and gradient in 16 bits with a weight in float32 beside, or both in float32; and
AdamW's two moments in float32 (Rajbhandari et al. 2020, section 3.1)."""
WEIGHT_BYTES, MOMENT_BYTES = 2, 8
"""A weight in 16 bits; AdamW's two moments in float32."""


def weights_and_moments(parameters: float) -> Part:
    """The weights in 16 bits and AdamW's moments alone: (2 + 8) P, which is 70 GB for 7 B parameters.

    It is the figure by which tutorials say what a 7 B model in full needs; gradients and activations come on top.
    """
    size = (WEIGHT_BYTES + MOMENT_BYTES) * parameters
    formula = f"({WEIGHT_BYTES} + {MOMENT_BYTES}) x {_billions(parameters)}: weights and AdamW's moments alone"
    return Part("one model in full, as often estimated", size, formula)


def in_full(run: PlannedRun) -> Part:
    """One model that trains in full: 16 P."""
    count = run.architecture.parameters
    formula = f"{TRAINED_BYTES} x {_billions(count)}: weights, gradients, moments"
    return Part("one model in full", float(TRAINED_BYTES * count), formula)


def four_in_full(run: PlannedRun) -> Part:
    """PPO's four models apart, policy and critic trained in full: (2 x 16 + 2 e) P."""
    count, e = run.architecture.parameters, NUMBER_BYTES[run.dtype]
    formula = (
        f"(2 x {TRAINED_BYTES} + 2 x {e}) x {_billions(count)}: policy and critic train, reference and reward do not"
    )
    return Part("four models, two in full", float((2 * TRAINED_BYTES + 2 * e) * count), formula)


def four_with_adapters(run: PlannedRun) -> Part:
    """The same four models apart, with adapters on those that train: 4 e P and the adapters."""
    count, e = run.architecture.parameters, NUMBER_BYTES[run.dtype]
    trained = 0 if run.in_full else run.trained_parameters
    formula = f"4 x {e} x {_billions(count)}, adapters {TRAINED_BYTES} x {trained / 1e6:.1f} M"
    return Part("four models, with adapters", float(4 * e * count + TRAINED_BYTES * trained), formula)


def alternatives(run: PlannedRun) -> list[Part]:
    """The alternatives to a run: weights, gradients and moments, without activations."""
    apart = [four_with_adapters(run), four_in_full(run)] if run.verb in ("ppo", "rft") else []
    return [*apart, in_full(run), weights_and_moments(float(run.architecture.parameters))]


def _billions(parameters: float) -> str:
    return f"{parameters / 1e9:.3g} B" if parameters >= 1e8 else f"{parameters / 1e6:.3g} M"
