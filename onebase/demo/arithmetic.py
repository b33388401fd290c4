"""Arithmetic tasks with a dial for their difficulty, each with its working and its answer.

    1  one-digit sums                                     3+8
    2  three one-digit numbers, + or -                    3+8-5
    3  three numbers of up to two digits                  12+70-5
    4  one product among the three                        60-4*12
    5  brackets and a product among four                  7*(15-9)+31

No value on the way is negative. All rows depend on the seed alone; whether a task is held out depends on the task
alone, and tasks of the same numbers and signs (3+8 and 8+3) stay together.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Literal

from onebase.errors import DataError

DIFFICULTIES = (1, 2, 3, 4, 5)

_STEPS = tuple(map(re.compile, (r"\((\d+)([+-])(\d+)\)", r"(\d+)(\*)(\d+)", r"^(\d+)([+-])(\d+)")))
"""What is worked out first: brackets, then products, then from the left."""
_MOST_DRAWS = 2000
"""Draws in a row without a new task, after which there are no more."""


def arithmetic_rows(
    *, seed: int, count: int, difficulty: int, split: Literal["train", "held_out"]
) -> list[dict[str, Any]]:
    r"""Different tasks as rows of a data file: prompt, answer (`12+7+5 = 19+5 = 24\n#### 24`), gold, difficulty, terms.

    About a fifth of all tasks is held out; of the hundred of difficulty 1, eleven.

    Raises:
        DataError: there are fewer different tasks of this difficulty.
    """
    assert difficulty in DIFFICULTIES, f"difficulty is {difficulty}; it is a number from 1 to 5"
    rng = Random(f"arithmetic {difficulty} {split} {seed}")
    rows: dict[str, dict[str, Any]] = {}
    draws = 0
    while len(rows) < count:
        task = _drawn(rng, difficulty)
        draws += 1
        steps = working(task) if task not in rows and (split == "held_out") == _is_held_out(task) else None
        if steps is not None:
            draws, (gold, terms) = 0, (steps[-1], len(re.findall(r"\d+", task)))
            answer = f"{' = '.join(steps)}\n#### {gold}"
            rows[task] = {"prompt": f"What is {task}?", "answer": answer, "gold": gold}
            rows[task] |= {"difficulty": difficulty, "terms": terms}
        elif draws == _MOST_DRAWS:
            raise DataError(
                f"only {len(rows)} different {split} tasks of difficulty {difficulty} were found, not {count}; ask for "
                "fewer, or for a higher difficulty"
            )
    return list(rows.values())


def overheard_texts(*, seed: int, count: int, difficulties: Sequence[int], right: float) -> list[str]:
    r"""Tasks of the training split with careless answers, to pretrain on: each step is right with probability `right`,
    else off by one or two, and the next step starts from there.

    Formatted as in the chat template `hh`. A model of these texts knows the sums, and is as careless as they are.
    """
    rng = Random(f"overheard {seed}")
    texts: list[str] = []
    while len(texts) < count:
        task = _drawn(rng, rng.choice(list(difficulties)))
        if not _is_held_out(task) and working(task) is not None:
            steps = working(task, slip=lambda: 0 if rng.random() < right else rng.choice((-2, -1, 1, 2)))
            assert steps is not None
            texts.append(f"\n\nHuman: What is {task}?\n\nAssistant: {' = '.join(steps)}\n#### {steps[-1]}")
    return texts


def working(task: str, slip: Callable[[], int] | None = None) -> list[str] | None:
    """The task, then what is left after each step, down to its value; None if a value on the way is negative.

    Args:
        slip: how far off the next step is; a value that would then be negative is 0.
    """
    steps = [task]
    while not steps[-1].isdigit():
        found = next(match for match in (step.search(steps[-1]) for step in _STEPS) if match)
        a, b = int(found[1]), int(found[3])
        value = {"+": a + b, "-": a - b, "*": a * b}[found[2]]
        if slip is not None:
            value = max(0, value + slip())
        if value < 0:
            return None
        steps.append(f"{steps[-1][: found.start()]}{value}{steps[-1][found.end() :]}")
    return steps


def _drawn(rng: Random, difficulty: int) -> str:
    small, large, sign = (lambda: rng.randint(2, 9)), (lambda: rng.randint(1, 99)), (lambda: rng.choice("+-"))
    if difficulty == 1:
        return f"{rng.randint(0, 9)}+{rng.randint(0, 9)}"
    if difficulty == 2:
        return f"{rng.randint(0, 9)}{sign()}{rng.randint(0, 9)}{sign()}{rng.randint(0, 9)}"
    if difficulty == 3:
        return f"{large()}{sign()}{large()}{sign()}{large()}"
    if difficulty == 4:
        product = f"{small()}*{large()}"
        return f"{product}{sign()}{large()}" if rng.random() < 0.5 else f"{large()}{sign()}{product}"
    product = f"{small()}*({large()}{sign()}{large()})"
    return f"{product}{sign()}{large()}" if rng.random() < 0.5 else f"{large()}{sign()}{product}"


def _is_held_out(task: str) -> bool:
    same = " ".join(sorted(re.findall(r"\d+|\D", task)))
    return hashlib.sha256(same.encode()).digest()[0] % 5 == 0
