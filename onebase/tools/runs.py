"""`onebase runs`: inspects run folders without importing torch or changing anything a run resumes from."""

from __future__ import annotations

import errno
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from onebase import processes
from onebase.config.files import defaults_of
from onebase.config.verbs import VERB_CONFIGS, verb_of
from onebase.errors import ConfigError
from onebase.reporting.page import write_report
from onebase.runs.finished import RunRecord, duration, flattened, read_run, shown
from onebase.runs.progress import say
from onebase.runs.record import checkpoints, read_object
from onebase.shown import json_shown
from onebase.shown import shown as text_shown
from onebase.tools.tables import print_table

NO_RUN = ("checkpoint-", ".")
"""Prefixes of folder names that are not searched for runs."""
ABOUT_ITSELF = {"output_dir"}
"""Keys that differ between any two runs."""


def ls(folder: Path, *, as_json: bool = False) -> None:
    """Prints a line for each run below the folder, the most recently written last.

    Raises:
        ConfigError: no such folder.
    """
    if not os.path.isdir(folder):  # Path.is_dir raises if the name is too long
        raise ConfigError(f"no folder '{shown(str(folder))}'; give the folder that runs were written to")
    found, unread = [], []
    for path in below(folder):
        try:
            found.append(opened(path))
        except ConfigError as error:
            unread.append(str(error))
    found.sort(key=last_written)
    if as_json:
        print(json_shown([described(run, folder) for run in found], indent=2))
    else:
        lines = [[str(value) for value in described(run, folder).values()] for run in found]
        for line, run in zip(lines, found, strict=True):
            line[4] = duration(run.seconds)
        print_table(("run", "verb", "state", "steps", "time", "result"), lines)
    for problem in unread:
        print(text_shown(f"skipped: {problem}"), file=sys.stderr)
    warn_of_damage(*found)


def show(folder: Path, *, as_json: bool = False) -> None:
    """Prints a run's state, result, non-default keys, last metrics, summary and checkpoints.

    Raises:
        ConfigError: no run there.
    """
    run = opened(folder)
    best, damage = read_object(folder / "best" / "best.json")
    run = replace(run, problems=(*run.problems, *filter(None, [damage])))
    warn_of_damage(run)
    known = {
        **described(run, folder.parent),
        "data": run.summary.get("data"),
        "changed": {key: value for key, (value, _) in run.changed(_defaults(run)).items()},
        "last_metrics": run.rows[-1] if run.rows else {},
        "summary": run.summary,
        "checkpoints": [path.name for path in checkpoints(folder)],
        "failed": sorted(path.name for path in folder.glob("failed-in-step-*")),
        "best": best or None,
    }
    if as_json:
        print(json_shown(known, indent=2))
        return
    data = [f"{count:,} {'held out' if name == 'held_out' else name}" for name, count in (known["data"] or {}).items()]
    print(text_shown(f"{folder}: {run.verb}"))
    _print_pairs(
        {
            "state": run.state,
            "done": f"{run.steps} {run.step_name}s in {duration(run.seconds)}",
            "result": run.result,
            "data": data,
            "checkpoints": known["checkpoints"],
            "failed": known["failed"],
            "best": [f"{name} {shown(value)}" for name, value in (known["best"] or {}).items()],
        }
    )
    _print_pairs(known["changed"], "config, non-default values")
    _print_pairs({k: v for k, v in known["last_metrics"].items() if k != "step"}, f"metrics of step {run.steps}")
    _print_pairs(flattened(run.summary), "summary")


def plot(folders: Sequence[Path], *, output: Path | None = None) -> None:
    """Draws the curves of one run, or of several in one picture, and prints the path.

    Raises:
        ConfigError: no run there, or nothing to draw yet.
    """
    runs = _distinct(folders, at_least=1)
    warn_of_damage(*runs.values())
    # Importing matplotlib takes longer than everything else.
    from onebase.reporting.panels import PANELS
    from onebase.reporting.plots import plot_metrics, plot_together

    drawn = {metric for _, metrics in PANELS for metric in metrics}
    for run in runs.values():
        if len(run.rows) < 2 or not any(row.get(metric) is not None for row in run.rows for metric in drawn):
            raise ConfigError(f"{run.folder}: nothing to draw yet; curves need two steps")
    names, first = list(runs), folders[0]
    path = output or first / "plots" / ("metrics.png" if len(runs) == 1 else f"{'-'.join(names).replace('/', '_')}.png")
    if path.suffix != ".png" or os.path.isdir(path):
        raise ConfigError(f"--output {path}: give the name of a .png file")
    with _writing(path):
        if len(runs) == 1:
            plot_metrics(runs[names[0]].rows, path, title=names[0])
        else:
            together = {name: run.rows for name, run in runs.items()}
            plot_together(together, path, title="light: raw values, dark: moving average")
    print(path)


def compare(folders: Sequence[Path], *, as_json: bool = False) -> None:
    """Prints the config keys that differ, and summaries and last metrics side by side.

    Raises:
        ConfigError: fewer than two runs, or a folder without one.
    """
    runs = _distinct(folders, at_least=2)
    warn_of_damage(*runs.values())
    configs = _side_by_side({name: flattened(run.config) for name, run in runs.items()}, differing=True)
    tables = {
        "config": {key: values for key, values in configs.items() if key not in ABOUT_ITSELF},
        "summary": _side_by_side({n: {"state": r.state, **flattened(r.summary)} for n, r in runs.items()}),
        "last_metrics": _side_by_side({name: run.rows[-1] if run.rows else {} for name, run in runs.items()}),
    }
    if as_json:
        print(json_shown(tables, indent=2))
        return
    titles = {"config": "config, where it differs", "summary": "summary", "last_metrics": "last metrics"}
    for name, rows in tables.items():
        lines = [[key, *map(shown, values.values())] for key, values in rows.items()]
        print_table((titles[name], *runs), lines or [["(nothing)"]])
        print()


def report(folder: Path, *, price_per_hour: float | None = None) -> None:
    """Writes `report.html` and prints its path.

    Raises:
        ConfigError: no run there, or the price is not a number of at least 0.
    """
    if price_per_hour is not None and not (math.isfinite(price_per_hour) and price_per_hour >= 0):
        raise ConfigError(f"--price-per-hour {price_per_hour:g}: a price is 0 or more")
    run = opened(folder)
    warn_of_damage(run)
    with _writing(folder / "report.html"):
        print(write_report(folder, _defaults(run), verb=run.verb, price_per_hour=price_per_hour))


def leave_pictures(folder: Path) -> None:
    """Draws a finished run's curves and writes its report; if that fails, warns and leaves the run complete."""
    if not processes.is_main():
        return
    run = opened(folder)
    try:
        from onebase.reporting.plots import plot_run

        drawn = plot_run(folder)
        write_report(folder, _defaults(run))
    except Exception as error:  # whatever a drawing library or its settings raise
        say(
            f"warning: {run.verb}: no curves or no report: {text_shown(error, 200)}; the run is complete; run "
            f"'onebase runs report {text_shown(folder)}' to write the report"
        )
        return
    say(f"{run.verb}: {f'curves in {drawn}, ' if drawn else ''}report in {folder / 'report.html'}")


def warn_of_damage(*runs: RunRecord) -> None:
    """Warns on stderr of each damaged file of these runs."""
    for run in runs:
        for problem in run.problems:
            print(text_shown(f"warning: {problem}"), file=sys.stderr)


def below(folder: Path) -> Iterable[Path]:
    """Yields every folder at or below this one that has a `config.yaml`."""
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(NO_RUN))
        if "config.yaml" in files:
            yield Path(place)


def opened(folder: Path) -> RunRecord:
    """Reads the run in a folder and finds out its verb.

    Raises:
        ConfigError: no run there; names the runs below it, if any.
    """
    if not os.path.exists(folder / "config.yaml") and os.path.isdir(folder) and (near := list(below(folder))):
        listed = ", ".join(map(text_shown, near[:5])) + (", ..." if len(near) > 5 else "")
        raise ConfigError(f"{text_shown(folder)}: no run here, but there are runs below: {listed}")
    run = read_run(folder)
    return run if run.verb else read_run(folder, verb_of(run.config))


def described(run: RunRecord, where: Path) -> dict[str, Any]:
    """Returns a run's line in a listing; its name is relative to `where`."""
    name = os.path.relpath(run.folder, where)
    return {
        "run": run.folder.resolve().name if name == "." else name,
        "verb": run.verb,
        "state": run.state,
        "steps": run.steps,
        "seconds": round(run.seconds, 1),
        "result": run.result,
    }


def last_written(run: RunRecord) -> float:
    """When the run last recorded something, in seconds since 1970."""
    files = [run.folder / name for name in ("summary.json", "metrics.jsonl", "config.yaml")]
    return next(file.stat().st_mtime for file in files if file.exists())


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        raise ConfigError(f"{text_shown(path, 200)}: cannot be written ({error.strerror})") from None


def _defaults(run: RunRecord) -> dict[str, Any]:
    return defaults_of(VERB_CONFIGS[run.verb if run.verb in VERB_CONFIGS else verb_of(run.config)])


def _distinct(folders: Sequence[Path], *, at_least: int) -> dict[str, RunRecord]:
    """The runs, keyed by the shortest path endings that tell them apart."""
    places = [Path(os.path.realpath(folder)) for folder in folders]
    if len(set(places)) < max(at_least, len(folders)):
        raise ConfigError(f"give the folders of {at_least} {'run' if at_least == 1 else 'different runs'} or more")
    paths = [place.parts for place in places]
    length = next(n for n in range(1, max(map(len, paths)) + 1) if len({path[-n:] for path in paths}) == len(paths))
    return {"/".join(path[-length:]): opened(folder) for path, folder in zip(paths, folders, strict=True)}


def _side_by_side(columns: Mapping[str, Mapping[str, Any]], *, differing: bool = False) -> dict[str, dict[str, Any]]:
    """The value of each key in each column; None if it has none."""
    keys = dict.fromkeys(key for column in columns.values() for key in column)
    rows = {key: {name: column.get(key) for name, column in columns.items()} for key in keys}
    return {key: row for key, row in rows.items() if not differing or len({json.dumps(v) for v in row.values()}) > 1}


def _print_pairs(pairs: Mapping[str, Any], title: str = "") -> None:
    """Prints a line for each pair with a value."""
    told = {key: shown(value) for key, value in pairs.items() if value not in (None, [], "")}
    if told and title:
        print(f"\n{title}")
    width = max(map(len, told), default=0)
    for key, text in told.items():
        print(text_shown(f"  {key:<{width}}  {text}"))
