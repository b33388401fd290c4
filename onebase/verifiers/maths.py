"""Maths: a verifier that compares answers as expressions, with math-verify."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cache

from onebase.errors import DataError, MissingExtraError, VerifierError
from onebase.shown import shown
from onebase.verifiers.extract import at
from onebase.verifiers.verifier import Task, Verdict
from onebase.verifiers.workers import Workers

_OTHER_NUMBER = 7919


@dataclass(frozen=True, slots=True)
class Maths:
    """Score 1 if the answer equals the row's gold as an expression, `wrong` for another answer, 0 for none.

    Args:
        wrong: the score of an answer that can be read and is not right.
        timeout: seconds per completion.
        memory_mb: address space of each process that compares.

    Raises:
        MissingExtraError: math-verify is not installed.
    """

    wrong: float = 0.1
    timeout: float = 5.0
    memory_mb: int = 1024

    name = "maths"
    decides = True
    slow = True

    def __post_init__(self) -> None:
        if importlib.util.find_spec("math_verify") is None:
            raise MissingExtraError("the verifier maths needs math-verify: pip install 'onebase[rft]'")

    def verify(self, completion: str, task: Task) -> Verdict:
        """Compares the completion's last answer with the row's gold.

        Raises:
            DataError: the row has no gold.
            VerifierError: its gold is not an expression, or comparing took too long or too much memory.
        """
        _check_gold(task)
        request = {"completion": completion, "gold": str(task.gold)}
        found = _workers(self.memory_mb).ask(request, self.timeout)
        if not found["readable"]:
            raise VerifierError(f"{at(task)}gold answer {shown(task.gold, 60)} is not an expression")
        if found["right"]:
            return Verdict(1.0, found["answer"])
        return Verdict(0.0 if found["answer"] is None else self.wrong, found["answer"])

    def accepted(self, task: Task) -> str:
        r"""The row's own solution, or `\boxed{gold}`.

        Raises:
            DataError: the row has no gold.
        """
        _check_gold(task)
        if task.solution is not None:
            return task.solution
        return f"\\boxed{{{task.gold}}}"

    def rejected(self, task: Task) -> str:
        """The gold plus one; another number where the gold is none."""
        _check_gold(task)
        number = str(task.gold).replace(",", "")
        try:
            float(number)
        except ValueError:
            return f"\\boxed{{{_OTHER_NUMBER}}}"
        return f"\\boxed{{{number} + 1}}"


def _check_gold(task: Task) -> None:
    if task.gold is None or not str(task.gold).strip():
        raise DataError(f"{at(task)}no gold answer", remedy="no-gold")


@cache
def _workers(memory_mb: int) -> Workers:
    """The processes that compare, shared by all verifiers with the same limit."""
    return Workers("onebase.verifiers.maths_worker", memory_mb)
