"""How many rankings active selection saves: simulated annotators rank the demo's answers, chosen actively or at random.

    python -m onebase demo                       # once: the reward role whose features the heads read
    python -m bench.active runs/demo             # seeds 0 to 4: the table in docs/labeling.md
    python -m bench.active runs/demo --answers 2 --random-share 0.1

Everything is real but the people: answers come from the demo's grammar, features from the demo's reward role, and each
round is chosen as `onebase label next` chooses it. An annotator orders the distinct gold scores of a task by score /
0.12 + Gumbel noise (Plackett 1975, the demo's own preferences), and with a probability of 5, 10, 20 or 30 %, by
annotator, at random. Heads are trained on the rankings so far and tested on gold scores of held-out questions, which no
annotator sees. The role itself is not trained again after each round; it has seen the demo's preferences, so it is a
later round's role, whose features already tell good answers from bad ones.

The rule: per seed, both curves are means of `--repeats` runs that start from other rankings, made monotone by isotonic
regression (Barlow et al. 1972). The target is what the random curve has at its end; the result is where the active
curve first reaches that, between two rounds on a straight line.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy
from numpy.typing import NDArray

from onebase.active_learning.choose import expected_curvature, most_informative
from onebase.active_learning.features import answers_of, comparable
from onebase.active_learning.heads import (
    Floats,
    Rankings,
    bootstrap_heads,
    evident_ridge,
    information,
    pair_accuracy,
)
from onebase.active_learning.next_round import NUM_HEADS
from onebase.demo import grammar
from onebase.labels.judged import NewTask

LAPSES = (0.05, 0.1, 0.2, 0.3)
"""How often each annotator orders answers at random."""
ROUND, LAST = 50, 800
"""Rankings per round, and altogether."""
TARGET = 0.6
WORLD = 1_000_003
"""Seed of the tasks: none of the demo's own, whose preferences the role was trained on."""


@dataclass(frozen=True, slots=True)
class World:
    """Tasks with their features and the truth about them."""

    features: Floats
    """`[N, K, F]`."""
    gold: Floats
    """`[N, K]`."""
    held_out: Floats
    """`[H, K, F]`."""
    held_out_gold: Floats


@dataclass(frozen=True, slots=True)
class Outcome:
    """One seed: accuracies in [0, 1] after every round."""

    seed: int
    rankings: tuple[int, ...]
    random: tuple[float, ...]
    active: tuple[float, ...]
    needed: float
    """Rankings at which the active curve reaches the end of the random one; infinite if it never does."""


def world_of(role: Path, *, num_answers: int, pool: int, held_out: int) -> World:
    """Tasks of the demo's grammar as a role sees them."""
    tasks, gold = [], []
    for split, count in (("train", pool), ("held_out", held_out)):
        # Pairs and lists of 4 come alternately; what the demo's annotators said of them is not looked at.
        rows = grammar.preference_rows(seed=WORLD, count=2 * count, split=split)  # type: ignore[arg-type]
        for row in rows[num_answers == 4 :: 2]:
            tasks.append(NewTask(row.messages, row.answers))
            gold.append([grammar.gold_score(row.messages[0].content, answer) for answer in row.answers])
    seen = answers_of({str(n): task for n, task in enumerate(tasks)}, str(role))
    features = numpy.stack(comparable([seen[str(n)].features for n in range(len(tasks))]))
    truth = numpy.array(gold)
    return World(features[:pool], truth[:pool], features[pool:], truth[pool:])


def judged(gold: Floats, generator: numpy.random.Generator) -> Floats:
    """What annotators of known reliability say: grades, equal for equal gold scores: `[N, K]`."""
    grades = numpy.empty(gold.shape)
    for row, own in enumerate(gold):
        levels = numpy.unique(own)
        lapses = generator.random() < LAPSES[generator.integers(len(LAPSES))]
        noisy = (0.0 if lapses else levels / grammar.PREFERENCE_TEMPERATURE) + generator.gumbel(size=len(levels))
        grades[row] = numpy.argsort(numpy.argsort(noisy))[numpy.searchsorted(levels, own)]
    return grades


def accuracies(world: World, grades: Floats, *, share: float, seed: int) -> list[float]:
    """Held-out accuracy after every round, of which this share is random."""
    generator = numpy.random.default_rng(seed)
    have: list[int] = []
    found: list[float] = []
    ridge, weights = 10.0, numpy.zeros(world.features.shape[2])
    while len(have) < LAST:
        left = numpy.setdiff1d(numpy.arange(len(grades)), have)
        num_random = ROUND if not have else round(share * ROUND)
        new = generator.choice(left, num_random, replace=False).tolist()
        if num_random < ROUND:
            left = numpy.setdiff1d(left, new)
            rankings = Rankings(world.features[have], grades[have])
            new += left[_most_informative(world.features[left], rankings, ridge, weights, ROUND - num_random)].tolist()
        have += new
        ridge, weights = evident_ridge(Rankings(world.features[have], grades[have]), start=ridge)
        scores = world.held_out @ weights
        found.append(float(pair_accuracy(list(scores), world.held_out_gold.tolist()).mean()))
    return found


def _most_informative(features: Floats, rankings: Rankings, ridge: float, weights: Floats, num: int) -> list[int]:
    heads = bootstrap_heads(rankings, ridge, num_heads=NUM_HEADS, seed=len(rankings), start=weights)
    there = numpy.ones(features.shape[:2], bool)
    covariance: Floats = numpy.asarray(
        numpy.linalg.inv(information(rankings, weights) + ridge * numpy.eye(len(weights))), numpy.float64
    )
    return most_informative(features, expected_curvature([features @ head for head in heads], there), covariance, num)


def outcome(world: World, *, share: float, seed: int, repeats: int) -> Outcome:
    """Active against random selection, with annotators of this seed."""
    grades = judged(world.gold, numpy.random.default_rng([seed, 1]))
    curves = {
        own: numpy.mean([accuracies(world, grades, share=own, seed=1000 * seed + n) for n in range(repeats)], axis=0)
        for own in (1.0, share)
    }
    rankings = tuple(range(ROUND, LAST + 1, ROUND))
    random, active = monotone(curves[1.0]), monotone(curves[share])
    return Outcome(
        seed,
        rankings,
        tuple(curves[1.0].tolist()),
        tuple(curves[share].tolist()),
        reached(rankings, active, float(random[-1])),
    )


def monotone(values: Floats) -> Floats:
    """The nearest line that never falls: pools neighbours that do (Ayer et al. 1955)."""
    blocks: list[list[float]] = []
    for value in values.tolist():
        blocks.append([value, 1])
        while len(blocks) > 1 and blocks[-2][0] >= blocks[-1][0]:
            (low, n), (high, m) = blocks[-2:]
            blocks[-2:] = [[(low * n + high * m) / (n + m), n + m]]
    return numpy.concatenate([numpy.full(int(n), mean) for mean, n in blocks])


def reached(rankings: Sequence[int], curve: Floats, level: float) -> float:
    """Where a line that never falls first reaches a level; infinite if it does not."""
    above: NDArray[numpy.int64] = numpy.flatnonzero(curve >= level)
    if not len(above):
        return float("inf")
    n = int(above[0])
    if n == 0:
        return float(rankings[0])
    rise = float(curve[n] - curve[n - 1])
    return rankings[n - 1] + (rankings[n] - rankings[n - 1]) * (level - float(curve[n - 1])) / rise


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("demo", type=Path, help="folder of the demo, or of any role on its base")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3, help="runs per seed and curve")
    parser.add_argument("--answers", type=int, choices=(2, 4), default=4, help="answers per task")
    parser.add_argument("--random-share", type=float, default=0.25)
    parser.add_argument("--pool", type=int, default=3000, help="candidates")
    parser.add_argument("--held-out", type=int, default=800, help="tasks of held-out questions")
    parser.add_argument("--output", type=Path, help="a JSON file for the curves")
    options = parser.parse_args()
    inside = options.demo / "reward" / "reward"
    role = inside if inside.is_dir() else options.demo
    world = world_of(role, num_answers=options.answers, pool=options.pool, held_out=options.held_out)
    found = []
    print(f"{options.answers} answers a task, {options.random_share:.0%} random, features of {role}")
    print(f"| seed | random at {LAST // 2} | at {LAST} | active at {LAST // 2} | at {LAST} | rankings needed | share |")
    for seed in range(options.seeds):
        own = outcome(world, share=options.random_share, seed=seed, repeats=options.repeats)
        found.append(own)
        half = own.rankings.index(LAST // 2)
        cells = [own.random[half], own.random[-1], own.active[half], own.active[-1]]
        said = " | ".join(f"{100 * cell:.1f}" for cell in cells)
        needed = f"{own.needed:.0f} | {own.needed / LAST:.0%}" if math.isfinite(own.needed) else f"not by {LAST} |"
        print(f"| {seed} | {said} | {needed} |", flush=True)
    met = sum(own.needed <= TARGET * LAST for own in found)
    print(f"at most {TARGET:.0%} of the rankings on {met} of {len(found)} seeds")
    if options.output is not None:
        options.output.write_text(json.dumps([asdict(own) for own in found], indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
