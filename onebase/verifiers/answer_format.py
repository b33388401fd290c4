"""The completion is a thought in tags, then an answer in tags."""

from __future__ import annotations

from dataclasses import dataclass

from onebase.verifiers.extract import answer_span, plain
from onebase.verifiers.verifier import Task, Verdict

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
ANSWER_ONLY = 0.1


@dataclass(frozen=True)
class AnswerFormat:
    """Scores 1 for `<think>...</think><answer>...</answer>`, each tag once and only white space around both parts.

    A completion of another form scores 0.1 if it has an answer in tags, else 0 (DeepSeek-R1's format reward, graded).
    """

    name = "answer_format"
    decides = False

    def verify(self, completion: str, task: Task) -> Verdict:
        places = [completion.find(tag) for tag in TAGS]
        whole = all(completion.count(tag) == 1 for tag in TAGS) and places == sorted(places)
        if whole:
            before, rest = completion.split(TAGS[0])
            _, rest = rest.split(TAGS[1])
            between, rest = rest.split(TAGS[2])
            answer, after = rest.split(TAGS[3])
            whole = not (before + between + after).strip() and bool(answer.strip())
        if whole:
            return Verdict(1.0)
        return Verdict(ANSWER_ONLY if answer_span(plain(completion), "tag") else 0.0)

    def accepted(self, task: Task) -> None:
        return None

    def rejected(self, task: Task) -> None:
        return None
