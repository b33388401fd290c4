"""`onebase plan`: what a run will need, before it runs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter, Token

from onebase.cli import modules, preflight, streams
from onebase.cli.numbers import Real, Whole
from onebase.errors import ConfigError
from onebase.shown import json_shown, shown
from onebase.verbs import VERBS

plan = App(name="plan", help="Know before you run: how long, how much, how large, on how much data.", sort_key=54)

_LETTERS = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}


def _amount(_hint: Any, tokens: list[Token]) -> float:
    found = re.fullmatch(r"(\d+\.?\d*(?:[eE]\+?\d+)?)([kmbt]?)", tokens[0].value.strip(), re.IGNORECASE)
    if found is None or float(found[1]) <= 0:
        raise ValueError(f"{shown(tokens[0].value, 60)} is not an amount, such as 10B, 1.4T or 7e9")
    return float(found[1]) * _LETTERS[found[2].lower()]


Amount = Annotated[float, Parameter(converter=_amount)]


def _bytes(_hint: Any, tokens: list[Token]) -> float:
    found = re.fullmatch(r"(\d+\.?\d*)\s*([MGT])(i?)B?", tokens[0].value.strip(), re.IGNORECASE)
    if found is None or float(found[1]) <= 0:
        raise ValueError(f"{shown(tokens[0].value, 60)} is not a size, such as 24GB, 80GiB or 512MB")
    power = {"m": 2, "g": 3, "t": 4}[found[2].lower()]
    return float(found[1]) * float(1024**power if found[3] else 1000**power)


@plan.default
def plan_run(
    *words: Annotated[str, Parameter(allow_leading_hyphen=True)],
    hardware: str | None = None,
    memory: Annotated[float | None, Parameter(converter=_bytes)] = None,
    price_per_hour: Real | None = None,
    watts: Real | None = None,
    calibrate: bool = False,
    json: bool = False,
) -> None:
    """What a run will need before it runs: its memory by part, its time by phase, money and energy.

    Reads the base's config.json (or a table of well-known models), its tokenizer and the data if they are here, and no
    weights. Exit code 4: it will not fit; the changes that would make it fit are printed.

    Args:
        words: A verb, its config and KEY=VALUE, as the verb itself takes them: sft config.yaml max_steps=100.
        hardware: A machine of the table: A10G, L4, T4, 3090, 4090, A100, A100-40GB, H100, H200, B200, M2-Max and so on;
            without it, this machine.
        memory: That the run may use, such as 24GB; without it, what the machine has, or what is free here.
        price_per_hour: Of the machine, in any currency.
        watts: That a device draws; without it, as the table says.
        calibrate: Measure this machine instead, for at most a minute; plans and runs go by it from then on.
        json: Print JSON.
    """
    if calibrate:
        if words or hardware is not None or memory is not None:
            raise ConfigError("--calibrate measures this machine and plans nothing; leave the rest out")
        modules.load("onebase.plans.plan_time").calibrate(as_json=json)
        return
    verb, *rest = words or ("",)
    if verb not in VERBS:
        raise ConfigError(f"plan what? name a verb and its config, or --calibrate; the verbs are {', '.join(VERBS)}")
    config = _config_of(verb, rest)
    tool = modules.load("onebase.plans.plan_time")
    tool.check_options(hardware=hardware, price_per_hour=price_per_hour, watts=watts)
    run = modules.load("onebase.plans.planned_run").planned_run(config, machine=hardware)
    costs = tool.costs_of(run, hardware=hardware, threads=config.threads, price_per_hour=price_per_hour, watts=watts)
    room = modules.load("onebase.plans.plan_memory")
    held = room.plan_memory(config, run, memory=memory, hardware=hardware)
    if json:
        print(json_shown({"memory": held.report(), **costs.report()}, indent=2))
    else:
        room.print_memory(held)
        tool.print_costs(costs)
    room.refuse_if_too_large(held, as_json=json)


def _config_of(verb: str, words: Sequence[str]) -> Any:
    """The verb's config, read from the file named first and KEY=VALUE."""
    from onebase.config.files import load_config
    from onebase.config.verbs import VERB_CONFIGS

    file = None
    if words and not words[0].startswith("-") and ("=" not in words[0] or words[0].endswith((".yaml", ".yml"))):
        file, words = Path(words[0]), words[1:]
    return load_config(VERB_CONFIGS[verb], file, list(words))


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
        tool = modules.load("onebase.plans.plan_scaling")
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
    modules.load("onebase.plans.plan_scaling").run(told, as_json=json)


@plan.command
def kl(folders: Annotated[list[Path], Parameter(consume_multiple=True)], /, *, json: bool = False) -> None:
    """Show how far a policy may move before its reward misleads it: KL against a score that was never trained on.

    Args:
        folders: Finished ppo, rft or best-of runs with a judge (evaluation.judge, in best-of judge).
        json: Print JSON.
    """
    modules.load("onebase.plans.plan_kl").run(folders, as_json=json)


@plan.command
def preferences(config: Path, /, *, seeds: Whole = 3, plot: Path | None = None, json: bool = False) -> None:
    """Show how accurate a reward role becomes with how many rankings, and what more of them would buy.

    Trains the role on growing subsets and tests it on held-out lists. For linear heads on the rankings of a labeling
    project, which take seconds, see `onebase label curve`.

    Args:
        config: The config of `onebase reward`.
        seeds: Subsets drawn and roles trained for each size.
        plot: A PNG file to draw the curve in.
        json: Print JSON.
    """
    from onebase.config.files import load_config
    from onebase.config.preferences import RewardConfig

    if seeds < 1:
        raise ConfigError(f"--seeds is {seeds}; it should be at least 1")
    found = load_config(RewardConfig, config)
    if found.lora.r == 0:
        raise ConfigError("'lora.r' = 0 trains the base itself, which every subset needs anew; set lora.r >= 1")
    preflight.check(found)
    if plot is not None:
        preflight.check_output(plot, "--plot")
    preflight.check_models(found)
    streams.say_first(f"plan preferences: loading {found.model.model_name_or_path}")
    modules.load("onebase.active_learning.role_curve").run(found, seeds=seeds, as_json=json, plot=plot)
