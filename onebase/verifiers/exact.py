"""The answer is the gold text."""

from __future__ import annotations

from dataclasses import dataclass

from onebase.verifiers.extract import answer_span, check_how, find_answer, gold_text, plain, wrapped
from onebase.verifiers.verifier import Task, Verdict

OUTER = " .,;:!?'\"`*_$()[]{}<>“”‘’«»。、「」『』《》【】"
"""Not part of an answer at its ends. Signs stay: -5 is not 5, and C# is not C."""


def same_text(text: str, *, ignore_case: bool = True) -> str:
    """The text in a form in which equal answers are equal: NFKC, single spaces, no punctuation around it."""
    words = " ".join(plain(text).split())
    bare = words.strip(OUTER) or words
    return bare.casefold() if ignore_case else bare


@dataclass(frozen=True)
class Exact:
    """Scores 1 if the answer is the gold text, or any of several gold texts; `wrong` if it is another; 0 if none."""

    wrong: float = 0.1
    ignore_case: bool = True
    extract: str = "auto"

    name = "exact"
    decides = True

    def __post_init__(self) -> None:
        check_how(self.extract)

    def verify(self, completion: str, task: Task) -> Verdict:
        golds = {self._same(gold) for gold in self._golds(task)}
        found = find_answer(completion, self.extract)
        if found is None:
            return Verdict(0.0)
        answer = self._same(found)
        return Verdict(1.0 if answer in golds else self.wrong, answer)

    def accepted(self, task: Task) -> str:
        gold = self._golds(task)[0]
        if task.solution is None:
            return wrapped(gold, self.extract)
        solution = plain(task.solution)
        if answer_span(solution, self.extract):
            return task.solution
        return f"{task.solution}\n{wrapped(find_answer(solution) or gold, self.extract)}"

    def rejected(self, task: Task) -> str:
        right = plain(self.accepted(task))
        golds = {self._same(gold) for gold in self._golds(task)}
        other = f"not {self._golds(task)[0]}"
        while self._same(other) in golds:
            other = f"not {other}"
        start, end = answer_span(right, self.extract) or (0, len(right))
        return right[:start] + other + right[end:]

    def _golds(self, task: Task) -> list[str]:
        several = task.gold if isinstance(task.gold, list | tuple) and task.gold else [task.gold]
        return [gold_text(gold, task) for gold in several]

    def _same(self, text: str) -> str:
        return same_text(text, ignore_case=self.ignore_case)
