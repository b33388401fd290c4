"""`onebase plan`: what a run will need, before it runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter, Token

from onebase.cli import modules, preflight
from onebase.cli.numbers import Real, Whole
from onebase.errors import ConfigError
from onebase.shown import shown

plan = App(name="plan", help="Know before you run: how large, on how much data.", sort_key=54)

_LETTERS = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}


def _amount(_hint: Any, tokens: list[Token]) -> float:
    found = re.fullmatch(r"(\d+\.?\d*(?:[eE]\+?\d+)?)([kmbt]?)", tokens[0].value.strip(), re.IGNORECASE)
    if found is None or float(found[1]) <= 0:
        raise ValueError(f"{shown(tokens[0].value, 60)} is not an amount, such as 10B, 1.4T or 7e9")
    return float(found[1]) * _LETTERS[found[2].lower()]


Amount = Annotated[float, Parameter(converter=_amount)]


@plan.command
def scaling(
    *,
    data_for: Amount = 10e9,
    size_for: Amount = 1e12,
    days: Real = 30.0,
    machine: str = "A100",
    machines: Whole = 100,
    utilisation: Real = 0.4,
    grow_from: Amount = 10e9,
    grow_to: Amount = 100e9,
    answers: Annotated[float | None, Parameter(converter=_amount)] = None,
    fit: Annotated[list[Path] | None, Parameter(consume_multiple=True)] = None,
    parameters: Annotated[float | None, Parameter(converter=_amount)] = None,
    tokens: Annotated[float | None, Parameter(converter=_amount)] = None,
    plot: Path | None = None,
    json: bool = False,
) -> None:
    """Answer four questions by published scaling laws, or fit a law to your own pretrain runs.

    How much data for a model of this size? How large a model for this much data? What to train in this time on these
    machines? What does a larger model bring?

    Args:
        data_for: Parameters of the model whose data is asked for: 10B, 7e9.
        size_for: Tokens of the data whose model is asked for: 1T.
        days: Time for training.
        machine: A10G, L4, T4, 3090, 4090, A100, H100, H200 or B200.
        machines: How many.
        utilisation: Share of the machines' peak that training reaches.
        grow_from: Parameters of the smaller model.
        grow_to: Parameters of the larger model.
        answers: Tokens the model will read and write in use; then the model that is cheapest over its whole life.
        fit: Folders of finished pretrain runs; fits a law to them instead.
        parameters: With --fit and --tokens: predict the loss of a run of this size.
        tokens: With --fit and --parameters: on this much data.
        plot: With --fit: a PNG of the runs and the law.
        json: Print JSON.
    """
    if fit:
        if (parameters is None) != (tokens is None):
            raise ConfigError("a prediction needs both --parameters and --tokens")
        if plot is not None:
            preflight.check_output(plot)
        tool = modules.load("onebase.tools.plan_scaling")
        tool.run_fit(fit, parameters=parameters, tokens=tokens, plot=plot, as_json=json)
        return
    for given, name in ((parameters, "--parameters"), (tokens, "--tokens"), (plot, "--plot")):
        if given is not None:
            raise ConfigError(f"{name} is of use only with --fit; add the folders of your runs")
    if not (0 < utilisation <= 1 and days > 0 and machines > 0):
        raise ConfigError("--days and --machines should be above 0, and --utilisation above 0 and at most 1")
    if grow_to <= grow_from:
        raise ConfigError("--grow-to should be more than --grow-from")
    questions = modules.load("onebase.planning.scaling")
    found = modules.load("onebase.planning.machines").MACHINES
    if machine.lower() not in found:
        names = ", ".join(known.name for known in found.values())
        raise ConfigError(f"--machine {shown(machine, 40)} is not known; choose one of {names}")
    told = [
        questions.data_for(data_for),
        questions.size_for(size_for),
        questions.train_in(days, found[machine.lower()], machines, utilisation),
        questions.grow(grow_from, grow_to),
    ]
    if answers is not None:
        told.append(questions.with_answers(data_for, answers))
    modules.load("onebase.tools.plan_scaling").run(told, as_json=json)
