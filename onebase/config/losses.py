"""The table of preference losses by name; a new loss is one more line.

The functions are in `objectives/`, each with its paper and equation. A loss takes its arguments by name
(`recipes/dpo.py`, `list_loss`): `chosen`, `rejected` and their `reference_` and `_lengths` over pairs; `rewards`,
`mean_logprobs`, `grades`, `list_index` and `num_lists` over lists; `logprobs` and `lengths` of the best answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Loss:
    """One line of the table."""

    path: str
    """`module.function` in `objectives/`."""
    over: Literal["pairs", "lists", "best", "single answers"]
    """What the loss sums over."""
    reads: frozenset[str] = frozenset()
    """The keys of `preference` it reads, except `max_pairs`; `reference` means the reference's log-probs."""
    beta: float = 0.1
    """The usual beta, used if none is configured."""
    alone: Mapping[str, float] = field(default_factory=dict)
    """The weighted losses that the paper trains under this name; empty: just this loss."""

    def function(self) -> Callable[..., Any]:
        """Imports the function, and torch with it."""
        module, _, name = self.path.rpartition(".")
        return getattr(import_module(f"onebase.objectives.{module}"), name)


def _reads(keys: str) -> frozenset[str]:
    return frozenset(keys.split())


# fmt: off
LOSSES = {
    "sigmoid": Loss("preference.sigmoid_loss", "pairs", _reads("reference beta label_smoothing")),
    "sigmoid_norm": Loss("preference.sigmoid_norm_loss", "pairs", _reads("reference beta label_smoothing"), beta=5.0),
    "robust": Loss("preference.robust_loss", "pairs", _reads("reference beta label_smoothing")),
    "hinge": Loss("preference.hinge_loss", "pairs", _reads("reference beta")),
    "ipo": Loss("preference.ipo_loss", "pairs", _reads("reference beta")),
    "step_dpo": Loss("preference.sigmoid_loss", "pairs", _reads("reference beta label_smoothing")),
    "cpo": Loss("reference_free.cpo_loss", "pairs", _reads("beta label_smoothing"), alone={"cpo": 1.0, "nll": 1.0}),
    "simpo": Loss("reference_free.simpo_loss", "pairs", _reads("beta gamma"), beta=2.0),
    "orpo": Loss("reference_free.orpo_loss", "pairs", alone={"nll": 1.0, "orpo": 0.1}),
    "kto": Loss("unpaired.kto_loss", "single answers", _reads("reference beta desirable_weight undesirable_weight")),
    "rrhf": Loss("ranked.rrhf_loss", "lists", alone={"rrhf": 1.0, "nll": 1.0}),
    "plackett_luce": Loss("ranked.plackett_luce_loss", "lists", _reads("reference beta")),
    "nll": Loss("preference.nll_loss", "best"),
}
# fmt: on
"""Losses by the papers' names; nll is the language-model loss on the best answer, to mix in."""


def readers_of(key: str) -> list[str]:
    """The losses that read a key of `preference`."""
    return [name for name, loss in LOSSES.items() if key in loss.reads or (key == "max_pairs" and loss.over == "pairs")]
