"""One reader for each layout: from an object's keys to a `Row`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

from onebase.data.fields import Fields, is_grade
from onebase.data.json_text import described
from onebase.errors import DataError
from onebase.records import Message, Row

PROMPT_KEYS = ("prompt", "query", "question")

_ANSWER_KEYS = ("answer", "code", "completion", "output", "reply", "response", "solution", "summary", "target")
"""Keys that may hold an answer to the `text` beside them."""

PREDICTION = re.compile(r"prediction ([1-9]\d*)")

_FINAL = re.compile(r"^####[ \t]*(\S[^\n]*?)\s*\Z", re.MULTILINE)

_TURN = re.compile(r"\n\n(Human|Assistant):")


def prompt_key(row: Mapping[str, Any]) -> str | None:
    return next((key for key in PROMPT_KEYS if key in row), None)


def read_transcripts(fields: Fields) -> Row:
    """Two conversations with a shared beginning; the prompt is its part up to the last user turn.

    If they part before the last reply, everything that follows is the answer, written as a transcript.
    """
    chosen, rejected = _turns(fields, "chosen"), _turns(fields, "rejected")
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    while shared and chosen[shared - 1].role != "user":
        shared -= 1
    if not shared:
        raise DataError(f"{fields.place}: 'chosen' and 'rejected' share no user turn; give two answers to one prompt")
    return fields.compared(chosen[:shared], *(_transcript(turns[shared:]) for turns in (chosen, rejected)))


def _turns(fields: Fields, key: str) -> tuple[Message, ...]:
    value = fields.take(key)
    if isinstance(value, list):
        turns = fields.messages(key)
    else:
        text = fields.checked(key, value, "a transcript or a list of messages")
        before, *parts = _TURN.split(text)
        if before.strip() or not parts:
            raise DataError(
                f"{fields.place}: '{key}' starts with {text[:20]!r}; a transcript starts with '\\n\\nHuman:' "
                "(or add the key 'prompt', and leave the answers in 'chosen' and 'rejected')"
            )
        names = {"Human": "user", "Assistant": "assistant"}
        turns = tuple(Message(names[who], said.strip()) for who, said in zip(parts[::2], parts[1::2], strict=True))
    if turns[-1].role != "assistant":
        raise DataError(f"{fields.place}: '{key}' ends in a {turns[-1].role} turn; end it in an assistant turn")
    return turns


def _transcript(turns: tuple[Message, ...]) -> str:
    who = {"user": "Human", "assistant": "Assistant", "system": "System"}
    # The prompt ends in "\n\nAssistant:", so an answer that opens with another role has to say so.
    first = turns[0].content if turns[0].role == "assistant" else f"{who[turns[0].role]}: {turns[0].content}"
    return (first + "".join(f"\n\n{who[turn.role]}: {turn.content}" for turn in turns[1:])).strip()


def _prompt(fields: Fields) -> tuple[Message, ...]:
    key = prompt_key(fields.values)
    return fields.prompt(key) if key else _instruction(fields)


def read_pair(fields: Fields) -> Row:
    prompt = _prompt(fields)
    return fields.compared(prompt, fields.answer("chosen", prompt), fields.answer("rejected", prompt))


def _instruction(fields: Fields) -> tuple[Message, ...]:
    messages = list(fields.system())
    history = fields.take("history", [])
    if not isinstance(history, list):
        raise fields.wrong("history", history, "a list of [user, assistant] pairs")
    for index, turn in enumerate(history):
        if not isinstance(turn, list) or len(turn) != 2:
            raise fields.wrong(f"history[{index}]", turn, "a pair [user, assistant]")
        messages.append(Message("user", fields.checked(f"history[{index}][0]", turn[0])))
        messages.append(Message("assistant", fields.checked(f"history[{index}][1]", turn[1])))
    instruction, more = fields.text("instruction"), fields.text("input", "")
    return *messages, Message("user", f"{instruction}\n{more}" if more else instruction)


def read_votes(fields: Fields) -> Row:
    """Answers that were compared two by two, graded by wins minus losses."""
    prompt = _prompt(fields)
    numbers = [int(found[1]) for found in map(PREDICTION.fullmatch, fields.values) if found]
    answers = [fields.text(f"prediction {number}") for number in range(1, max(2, *numbers) + 1)]
    pairs = list(combinations(range(len(answers)), 2))
    votes = fields.items("preference", "a list of votes")
    if len(votes) != len(pairs):
        raise DataError(
            f"{fields.place}: 'preference' holds {len(votes)} votes, and {len(answers)} predictions make {len(pairs)} "
            "pairs, (1, 2), (1, 3) and so on; give one vote per pair"
        )
    grades = [0.0] * len(answers)
    for index, ((first, second), vote) in enumerate(zip(pairs, votes, strict=True)):
        if type(vote) is not int or vote not in (0, 1, 2):
            raise fields.wrong(f"preference[{index}]", vote, "1 (the first is better), 2 (the second) or 0 (a tie)")
        won = (0, 1, -1)[vote]
        grades[first] += won
        grades[second] -= won
    return fields.row(prompt, answers, grades=tuple(grades))


def read_instruction(fields: Fields) -> Row:
    prompt = _instruction(fields)
    if isinstance(fields.values["output"], str):
        return fields.row(prompt, (fields.text("output"),))
    ranked = fields.items("output", "a string or a list of strings, best first")
    answers = [fields.checked(f"output[{index}]", answer) for index, answer in enumerate(ranked)]
    grades = fields.take("grades", [float(grade) for grade in range(len(answers) - 1, -1, -1)])
    numbers = isinstance(grades, list) and all(map(is_grade, grades))
    if not numbers or len(grades) != len(answers):
        raise fields.wrong("grades", grades, f"a list of {len(answers)} numbers, one per answer, higher is better")
    return fields.row(prompt, answers, grades=tuple(map(float, grades)))


def read_sharegpt(fields: Fields) -> Row:
    return fields.last_answer(fields.messages("conversations"), "conversations")


def read_conversation_pair(fields: Fields) -> Row:
    prompt = fields.prompt("conversations" if "conversations" in fields.values else "messages")
    return fields.compared(prompt, fields.answer("chosen", prompt), fields.answer("rejected", prompt))


def read_messages(fields: Fields) -> Row:
    return fields.last_answer(fields.messages("messages"), "messages")


def read_text(fields: Fields) -> Row:
    label = fields.check_label()
    text = fields.text("text")
    for key, value in fields.values.items():
        long = isinstance(value, str) and value.strip() and ("\n" in value or len(value) > 200 or key in _ANSWER_KEYS)
        if long and key != "text":
            raise DataError(
                f"{fields.place}: 'text' is read as a whole text, but could be a prompt that '{key}' answers; rename "
                f"'text' to 'prompt' and '{key}' to 'completion', or remove '{key}' if the text alone is to be learned"
            )
    return fields.row((), (text,), grades=None if label is None else (label,))


def read_prompt(fields: Fields) -> Row:
    fields.check_label()
    prompt = fields.prompt(str(prompt_key(fields.values)))
    if fields.values.get("completion") is not None:
        return fields.row(prompt, (fields.answer("completion", prompt),))
    if fields.values.get("answer") is None:
        return fields.row(prompt)
    row = fields.row(prompt, (fields.answer("answer", prompt),))
    # Stays a column too, because verifiers compare the policy's answer with it.
    columns = {**row.columns, "answer": row.answers[0]}
    if (final := final_answer(row.answers[0])) is not None:
        columns.setdefault("gold", final)
    return replace(row, columns=columns)


def final_answer(solution: str) -> str | None:
    """What follows `####` on the last line, as GSM8K writes its final answers; None if there is no such line."""
    found = _FINAL.search(solution)
    return found[1] if found else None


def squad_rows(whole: Mapping[str, Any], path: Path) -> Iterator[Row]:
    """One prompt per question, numbered through the file, with the columns `context`, `question` and `gold` (texts)."""
    number = 0
    for a, article in enumerate(Fields(whole, str(path)).items("data", "a list of articles")):
        outer = _nested(article, path, f"data[{a}]")
        for p, paragraph in enumerate(outer.items("paragraphs", "a list of paragraphs")):
            inner = _nested(paragraph, path, f"data[{a}].paragraphs[{p}]")
            for q, question in enumerate(inner.items("qas", "a list of questions")):
                number += 1
                at = f"data[{a}].paragraphs[{p}].qas[{q}]"
                row = _squad_row(_nested(question, f"{path}:{number}", at), inner.text("context"))
                yield replace(row, place=f"{path}:{number}")


def _nested(value: Any, place: Path | str, at: str) -> Fields:
    if not isinstance(value, dict):
        raise DataError(f"{place}: {at} is {described(value)}; expected an object")
    return Fields(value, f"{place}: {at}")


def _squad_row(fields: Fields, context: str) -> Row:
    question, answers = fields.text("question"), fields.take("answers")
    if not isinstance(answers, list) or not all(isinstance(answer, dict) and "text" in answer for answer in answers):
        raise fields.wrong("answers", answers, "a list of objects with the key 'text'")
    gold = [fields.checked("answers", answer["text"]) for answer in answers]
    row = fields.row((Message("user", f"{context}\n\n{question}"),))
    return replace(row, columns={**row.columns, "context": context, "question": question, "gold": gold})
