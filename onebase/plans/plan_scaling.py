"""`onebase plan scaling`: how large, on how much data, by published laws or by one fitted to your own runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from onebase.errors import ConfigError, DataError
from onebase.planning.fit import Fitted, Run, fit, profiles
from onebase.planning.picture import draw_law
from onebase.planning.scaling import Answer, count
from onebase.runs.finished import read_run
from onebase.runs.progress import say
from onebase.shown import json_shown, shown
from onebase.tools.tables import print_table


def run(answers: Sequence[Answer], *, as_json: bool) -> None:
    """Prints the answers."""
    if as_json:
        print(json_shown([asdict(answer) for answer in answers], indent=2))
        return
    for answer in answers:
        spread = (
            "" if answer.low == answer.high else f" [{_figure(answer, answer.low)}, {_figure(answer, answer.high)}]"
        )
        print(f"{answer.question}:\n  {_figure(answer, answer.figure)}{spread} {answer.unit}")
        for line in answer.more:
            print(f"  {line}")
    print("Laws: Besiroglu 2024; in brackets, the least and the most of it and Hoffmann 2022's approaches 1 to 3.")


def _figure(answer: Answer, value: float) -> str:
    return f"{value:.3f}" if answer.unit.startswith("nats") else count(value)


def run_fit(
    folders: Sequence[Path], *, parameters: float | None, tokens: float | None, plot: Path | None, as_json: bool
) -> None:
    """Fits a law to finished pretrain runs and prints it with its intervals, and what it says of a new run.

    Raises:
        ConfigError: there are too few runs, or all of one size.
        DataError: a run is no finished pretrain run.
    """
    runs = [_run(folder) for folder in folders]
    try:
        fitted = fit(runs)
    except ValueError as error:
        raise ConfigError(f"{error}; name more runs after --fit") from None
    report = _report(fitted, parameters, tokens)
    if plot is not None:
        draw_law(fitted, plot)
    if as_json:
        print(json_shown(report, indent=2))
        return
    print_table(
        ("run", "parameters", "tokens", "loss", "law says"),
        [
            (r.name, count(r.parameters), count(r.tokens), f"{r.loss:.4f}", f"{_says(fitted, r):.4f}")
            for r in sorted(runs, key=lambda r: (r.parameters, r.tokens))
        ],
    )
    law = fitted.law
    print(f"L(N, D) = {law.e:.4g} + {law.a:.4g} / N^{law.alpha:.3f} + {law.b:.4g} / D^{law.beta:.3f} nats a token")
    for name, (low, high) in report["intervals"].items():
        print(f"  {name:<6}{report['law'][name]:.4g} [{low:.4g}, {high:.4g}]")
    print(f"  single runs scatter by {100 * fitted.noise:.2g} % about it")
    if fitted.undecided:
        print(f"  warning: the runs leave {' and '.join(fitted.undecided)} open; more sizes or more data would decide")
    for profile in profiles(runs):
        at = f"  at {profile.compute:.2e} FLOP the best size"
        if profile.best is None:
            print(f"{at} lies outside the {len(profile.runs)} runs")
        else:
            print(f"{at} was {count(profile.best[0])} parameters, with a loss of {profile.best[1]:.4f}")
    if "prediction" in report:
        _print_prediction(**report["prediction"])


def _says(fitted: Fitted, r: Run) -> float:
    return fitted.law.loss(r.parameters, r.tokens)


def _print_prediction(parameters: float, tokens: float, loss: float, low: float, high: float, warning: str) -> None:
    print(f"{count(parameters)} parameters on {count(tokens)} tokens: loss {loss:.4f} [{low:.4f}, {high:.4f}]")
    if warning:
        print(f"  this extrapolates: {warning}; the interval assumes that the law holds there too")


def _report(fitted: Fitted, parameters: float | None, tokens: float | None) -> dict[str, Any]:
    law = fitted.law
    bounds = {}
    for name in ("e", "a", "b", "alpha", "beta"):
        values = sorted(getattr(resample, name) for resample in fitted.resampled)
        bounds[name] = (values[round(0.025 * (len(values) - 1))], values[round(0.975 * (len(values) - 1))])
    report: dict[str, Any] = {
        "law": {name: getattr(law, name) for name in bounds},
        "intervals": bounds,
        "noise": fitted.noise,
        "undecided": fitted.undecided,
        "runs": [asdict(r) for r in fitted.runs],
        "equal_compute": [(found.compute, *(found.best or (None, None))) for found in profiles(fitted.runs)],
    }
    if parameters is not None and tokens is not None:
        loss, low, high = fitted.loss(parameters, tokens)
        report["prediction"] = {
            "parameters": parameters,
            "tokens": tokens,
            "loss": loss,
            "low": low,
            "high": high,
            "warning": fitted.extrapolates(parameters, tokens),
        }
    return report


def _run(folder: Path) -> Run:
    record = read_run(folder)
    size, loss = record.summary.get("parameters"), record.summary.get("eval_loss_after")
    tokens = sum(float(row.get("num_tokens") or 0) for row in record.rows)
    if record.verb != "pretrain" or not size or loss is None or not math.isfinite(loss) or tokens <= 0:
        raise DataError(
            f"{shown(folder, 200)} is no finished pretrain run with a held-out loss; name others after --fit"
        )
    for problem in record.problems:
        say(problem)
    return Run(float(size), tokens, float(loss), folder.name)
