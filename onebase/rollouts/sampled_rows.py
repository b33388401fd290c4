"""Samples as rows of a data file: the best answer, pairs of answers, and each answer in words.

A sample that stopped at its length limit is written with `ended: false` (`chosen_ended`, `rejected_ended`), so that
nobody learns an end token that was not sampled. Reading the rows back gives the sampled tokens, if the tokenizer splits
their text as the policy wrote it.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from onebase.data.chat import ChatFormat
from onebase.data.prepare import best_answer
from onebase.errors import DataError
from onebase.reading.tools import for_file
from onebase.reading.unread import DECIDING
from onebase.records import Prompt
from onebase.sampling.sampler import Sample


@dataclass(frozen=True, slots=True)
class Answer:
    """A sample in words."""

    text: str
    ended: bool
    """Whether it closes with an end token; False at the length limit and after a stop string, which is text."""


def best_row(
    prompt: Prompt, asked: Mapping[str, Any], answers: Sequence[Answer], scores: Sequence[float]
) -> list[dict[str, Any]]:
    """The best answer's row, with all scores; no row if every answer is empty."""
    ranked = ranked_answers(answers, scores)
    if not ranked:
        return []
    first = answers[ranked[0]]
    answered = {"text": asked["prompt"] + first.text} if is_text(prompt) else {"completion": first.text}
    rounded = [round(score, 6) for score in scores]
    return [
        {
            **columns_of(prompt),
            **({} if is_text(prompt) else asked),
            **answered,
            "score": rounded[ranked[0]],
            "scores": rounded,
            "ended": first.ended,
        }
    ]


def best_and_worst(
    prompt: Prompt, asked: Mapping[str, Any], answers: Sequence[Answer], scores: Sequence[float]
) -> list[dict[str, Any]]:
    """The best answer paired with the worst, if they differ in score and text."""
    ranked = ranked_answers(answers, scores)
    if not ranked or scores[ranked[0]] <= scores[ranked[-1]] or answers[ranked[0]].text == answers[ranked[-1]].text:
        return []
    first, last = ranked[0], ranked[-1]
    return [
        {
            **columns_of(prompt),
            **paired(asked, answers[first], answers[last]),
            "chosen_score": round(scores[first], 6),
            "rejected_score": round(scores[last], 6),
        }
    ]


def pairs_with_data(prompt: Prompt, asked: Mapping[str, Any], answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """The data's answer paired with each of the policy's answers that differs from it.

    Raises:
        DataError: the data has no answer.
    """
    row = prompt.row
    if row is None or not row.messages or not row.answers or row.prefix is not None:
        raise DataError(
            f"{row.place if row else 'a row'}: chosen: data pairs the data's answer with the policy's own, and this "
            "row has no prompt with a whole answer; add 'completion', or set chosen: best"
        )
    best = best_answer(row)
    chosen = Answer(best.answers[0], best.ended is None or best.ended[0])
    own = {answer.text: answer for answer in reversed(answers)}  # the first answer with each text
    differing = [
        own[text]
        for text in dict.fromkeys(answer.text for answer in answers)
        if text.strip() and text.strip() != chosen.text.strip()
    ]
    calls = {"chosen": for_file(best.answer(0))} if best.calls and best.calls[0] else {}
    return [{**columns_of(prompt), **paired(asked, chosen, answer), **calls} for answer in differing]


def paired(asked: Mapping[str, Any], chosen: Answer, rejected: Answer) -> dict[str, Any]:
    return {
        **asked,
        "chosen": chosen.text,
        "rejected": rejected.text,
        "chosen_ended": chosen.ended,
        "rejected_ended": rejected.ended,
    }


def ranked_answers(answers: Sequence[Answer], scores: Sequence[float]) -> list[int]:
    """Indices of the answers that have text, best first."""
    return sorted((k for k in range(len(answers)) if answers[k].text.strip()), key=lambda k: -scores[k])


def own_answer(chat: ChatFormat, prompt: Prompt, sample: Sample, stops: Collection[int]) -> Answer:
    """A sample in words: the whole answer, with its prefix.

    The template writes its own blanks around an answer to messages. So the text keeps as many of the sampled blanks as
    make it encode to the sampled tokens again, or none if no choice does.
    """
    text = chat.decode(sample.ids)
    ended = sample.ended and sample.ids[-1] not in stops
    row = prompt.row
    if row is None or not row.messages:
        return Answer(text, ended)
    text = (row.prefix or "") + text
    whole = slice(None, -1 if ended else None)  # without the end token: the text does not say which of several it was
    sampled = [*chat.encode_prompt(row.messages, tools=row.tools, prefix=row.prefix), *sample.ids][whole]
    for wording in dict.fromkeys((text.strip(), text.removeprefix(" "), text, text.rstrip(), text.lstrip())):
        again = replace(row, answers=(wording,), grades=None, prefix=None, ended=(ended,), calls=None)
        if wording.strip() and chat.encode_example(again).tokens(0)[whole] == sampled:
            return Answer(wording, ended)
    return Answer(text.strip(), ended)


def asked_of(chat: ChatFormat, prompt: Prompt) -> dict[str, Any]:
    """The prompt as a data file holds it: one question as a string, a conversation as messages."""
    row = prompt.row
    if row is None or not row.messages:
        return {"prompt": chat.decode(prompt.ids)}
    if len(row.messages) == 1 and row.messages[0].role == "user" and not row.tools:
        return {"prompt": row.messages[0].content}
    asked: dict[str, Any] = {"prompt": [for_file(message) for message in row.messages]}
    if row.tools:
        asked["tools"] = [json.loads(tool) for tool in row.tools]
    return asked


def columns_of(prompt: Prompt) -> Mapping[str, Any]:
    """The row's columns, but for those by whose names the row that is written would be read another way."""
    columns = {} if prompt.row is None else prompt.row.columns
    return {key: value for key, value in columns.items() if key not in DECIDING}


def is_text(prompt: Prompt) -> bool:
    """Whether the prompt is the beginning of a plain text."""
    return prompt.row is None or not prompt.row.messages
