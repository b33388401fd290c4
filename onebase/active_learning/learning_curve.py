"""`onebase label curve`: how well preferences are predicted, how well they could be, and what more ranking buys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from onebase.active_learning.ceiling import Ceiling, human_ceiling
from onebase.active_learning.curve import (
    FEWEST,
    FOLDS,
    SHARES,
    WORTH,
    Curve,
    Folds,
    Point,
    Ranked,
    accuracy_by_round,
    learning_curve,
)
from onebase.active_learning.features import answers_of, comparable
from onebase.active_learning.next_round import rankings_in
from onebase.errors import DataError
from onebase.labels.judged import Task
from onebase.labels.store import Store
from onebase.reporting.intervals import Interval
from onebase.runs.progress import say
from onebase.shown import json_shown, number_of, shown
from onebase.tools.tables import print_table

ANOTHER = 200
"""Rankings that the forecast is about."""
FEWEST_RANKINGS = round(FEWEST / SHARES[-3] * FOLDS / (FOLDS - 1))
"""With fewer there are not even three sizes on the curve."""


@dataclass(frozen=True, slots=True)
class Learned:
    """Everything the verb says."""

    rounds: dict[int, Point]
    ceiling: Ceiling | None
    curve: Curve

    @property
    def forecast(self) -> str:
        """The sentence that the stopping rule rests on."""
        gain = self.curve.gain.times(100)
        low, high = round(gain.low, 1) + 0.0, round(gain.high, 1) + 0.0
        return (
            f"another {number_of(self.curve.another, 'ranking buys', 'rankings buy')} about "
            f"{gain.mean + 0.0:+.1f} points "
            f"[{low:.1f}, {high:.1f}]"
        )

    @property
    def verdict(self) -> tuple[bool, str]:
        """Whether to stop, and why.

        Stop if the forecast's upper end is below one point, or if the accuracy is above the human ceiling with its
        whole interval: heads then predict a person better than another person does.
        """
        now = self.curve.points[-1].accuracy
        if self.curve.gain.high < WORTH:
            return True, f"more rankings like these buy less than {100 * WORTH:.0f} point"
        if self.ceiling is not None and now.low >= self.ceiling.agreement.mean:
            return True, "heads predict a person better than another person does"
        if self.curve.gain.low < WORTH <= self.curve.gain.high and self.curve.gain.mean < WORTH:
            return False, "the gain is uncertain: it may be worth another round, measured again after it"
        return False, "more rankings are expected to pay"

    def as_json(self) -> dict[str, Any]:
        """All figures by name."""
        stop, reason = self.verdict
        ceiling = self.ceiling
        return {
            "rankings": self.curve.rankings,
            "held_out_prompts": self.curve.prompts,
            "rounds": {number: _point(point) for number, point in self.rounds.items()},
            "human_ceiling": None
            if ceiling is None
            else {
                "tasks": ceiling.tasks,
                "agreement": asdict(ceiling.agreement),
                "most_of_a_perfect_head": asdict(ceiling.most),
            },
            "curve": [_point(point) for point in self.curve.points],
            "law": {"limit": asdict(self.curve.limit), "gap": self.curve.gap, "rate": self.curve.rate},
            "forecast": {"rankings": self.curve.another, "gain": asdict(self.curve.gain), "says": self.forecast},
            "ahead": [_point(point) for point in self.curve.ahead],
            "stop": stop,
            "reason": reason,
        }


def _point(point: Point) -> dict[str, Any]:
    return {"rankings": point.rankings, "accuracy": asdict(point.accuracy)}


def run(
    *,
    url: str,
    role: str,
    as_json: bool = False,
    plot: Path | None = None,
    seed: int = 0,
    model: str | None = None,
    device: str = "auto",
) -> Learned:
    """Measures what the database's rankings teach linear heads on a role's frozen features, and prints it.

    Args:
        role: the folder of a reward role, a policy role or a base. One that was trained on these very rankings has seen
            what is held out, and makes the accuracy too high.

    Raises:
        DataError: the database cannot be read, or holds too few rankings.
    """
    store = Store.open(url)
    try:
        snapshot, name = store.snapshot(), store.shown_url
    finally:
        store.close()
    ranked = rankings_in(snapshot.tasks, snapshot.judgements)
    check_enough(ranked, name)
    tasks = {f"task {task.id}": task for task, _ in ranked}
    say(f"label curve: features of {number_of(len(tasks), 'task')}")
    seen = answers_of(tasks, role, model=model, device=device)
    if any(own.scores is not None for own in seen.values()):
        say(
            f"label curve: {shown(role)} is a reward role; if it was trained on these rankings, the accuracy is too "
            "high: take the base or a policy role"
        )
    features = dict(zip(seen, comparable([own.features for own in seen.values()]), strict=True))
    found = learned(
        [
            Ranked(features[f"task {task.id}"], grades, prompt_key(task), task.round, unchosen(task))
            for task, grades in ranked
            if f"task {task.id}" in features
        ],
        ceiling_of(ranked),
        seed=seed,
    )
    if as_json:
        print(json_shown(found.as_json(), indent=2))
    else:
        report(found)
    if plot is not None:
        draw(found, plot)
    return found


def check_enough(ranked: Sequence[tuple[Task, tuple[float, ...]]], name: str) -> None:
    """Checks that there is something to train on and to test on.

    Raises:
        DataError: there is not.
    """
    random = {prompt_key(task) for task, grades in ranked if unchosen(task) and len(set(grades)) > 1}
    if len(ranked) < FEWEST_RANKINGS or len(random) < FOLDS:
        raise DataError(
            f"{shown(name)}: {number_of(len(ranked), 'ranking')}, with {number_of(len(random), 'prompt')} that no "
            "role chose, their answers "
            f"not all tied; a curve needs {FEWEST_RANKINGS} rankings and {FOLDS} such prompts; rank some more"
        )


def unchosen(task: Task) -> bool:
    """Whether no role chose the task, so that what is measured on it is unbiased."""
    return task.chosen != "active"


def prompt_key(task: Task) -> str:
    """What tasks with the same prompt share."""
    return repr([(message.role, message.text) for message in task.prompt])


def ceiling_of(ranked: Sequence[tuple[Task, tuple[float, ...]]], *, seed: int = 0) -> Ceiling | None:
    """How often people agree on the tasks that no role chose."""
    by_task: dict[int, tuple[str, list[tuple[float, ...]]]] = {}
    for task, grades in ranked:
        if unchosen(task):
            by_task.setdefault(task.id, (prompt_key(task), []))[1].append(grades)
    return human_ceiling(by_task.values(), seed=seed)


def learned(ranked: Sequence[Ranked], ceiling: Ceiling | None, *, seed: int) -> Learned:
    """Accuracy by round, the learning curve, and what they say beside the ceiling."""
    folds = Folds(ranked, seed=seed)
    return Learned(accuracy_by_round(folds), ceiling, learning_curve(folds, another=ANOTHER))


def report(found: Learned) -> None:
    """Prints the rounds, the curve and the sentences."""
    lines = [("round", str(number), point) for number, point in found.rounds.items()]
    lines += [("subset", "", point) for point in found.curve.points]
    print_table(
        ["", "", "rankings", "held-out accuracy"],
        [[what, which, str(point.rankings), points(point.accuracy)] for what, which, point in lines],
    )
    curve, ceiling = found.curve, found.ceiling
    print(
        f"{number_of(curve.rankings, 'ranking')}; accuracy in % on {number_of(curve.prompts, 'prompt')} that no "
        "role chose, held out in turn"
    )
    if ceiling is None:
        print("human ceiling: unknown, no task was ranked by two people; let some tasks overlap")
    else:
        print(
            f"human ceiling: people agree on {points(ceiling.agreement)} % of pairs "
            f"({number_of(ceiling.tasks, 'task')}); a "
            f"perfect head could agree with one of them on at most {points(ceiling.most)} %"
        )
    print(f"limit: {points(curve.limit)} % (accuracy = a - b n^-c, b {curve.gap:.2f}, c {curve.rate:.2f})")
    print(found.forecast)
    stop, reason = found.verdict
    print(f"{'stop' if stop else 'go on'}: {reason}")


def points(interval: Interval) -> str:
    """An accuracy in per cent, with its interval."""
    return interval.times(100).text(1)


def draw(found: Learned, path: Path) -> None:
    """Draws the curve, its law and the ceiling as a PNG file."""
    import matplotlib

    matplotlib.use("Agg")
    import numpy
    from matplotlib import pyplot

    curve = found.curve
    figure, axis = pyplot.subplots(figsize=(6, 4), layout="constrained")
    sizes = [point.rankings for point in curve.points]
    own = [point.accuracy.times(100) for point in curve.points]
    axis.vlines(sizes, [interval.low for interval in own], [interval.high for interval in own], color="C0")
    axis.plot(sizes, [interval.mean for interval in own], "o", color="C0", label="held-out accuracy")
    line = numpy.linspace(min(sizes), curve.rankings + curve.another, 200)
    law = curve.limit.mean - curve.gap * line**-curve.rate
    axis.plot(line, 100 * law, color="C0", label="a - b n^-c")
    axis.axvline(curve.rankings, color="0.6", linestyle=":", label="rankings so far")
    if found.ceiling is not None:
        agreement = found.ceiling.agreement.times(100)
        axis.axhspan(agreement.low, agreement.high, color="C1", alpha=0.2)
        axis.axhline(agreement.mean, color="C1", label="people among each other")
    axis.set_xlabel("rankings trained on")
    axis.set_ylabel("accuracy, %")
    axis.set_title(found.forecast, fontsize=10)
    axis.grid(alpha=0.25)
    axis.legend(fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
