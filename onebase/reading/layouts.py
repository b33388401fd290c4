"""One reader for each layout of prompts, answers and conversations: from an object's keys to a `Row`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from onebase.errors import DataError
from onebase.reading.fields import Fields, is_grade
from onebase.reading.json_text import described
from onebase.records import Message, Row

PROMPT_KEYS = ("prompt", "query", "question")
ANSWER_KEYS = ("completion", "response", "output", "reply", "answer")
"""Keys of the answer to a prompt; the first one there is read."""
MORE_KEYS = ("input", "context")
"""Keys of what an instruction is about."""

_TEXT_ANSWERS = ("answer", "code", "completion", "output", "reply", "response", "solution", "summary", "target")
"""Keys that may hold an answer to the `text` beside them."""
_TITLES = ("title", "rhythmic")

_FINAL = re.compile(r"^####[ \t]*(\S[^\n]*?)\s*\Z", re.MULTILINE)


def prompt_key(row: Mapping[str, Any]) -> str | None:
    return next((key for key in PROMPT_KEYS if key in row), None)


def answer_key(row: Mapping[str, Any]) -> str | None:
    return next((key for key in ANSWER_KEYS if row.get(key) is not None), None)


def prompt_of(fields: Fields) -> tuple[Message, ...]:
    """The prompt, whichever of the usual keys holds it."""
    row = fields.values
    key = prompt_key(row)
    if key is not None:
        return fields.prompt(key)
    if "instruction" in row:
        return _instruction(fields)
    conversation = next((key for key in ("messages", "conversations", "conversation") if key in row), None)
    return fields.prompt(conversation or PROMPT_KEYS[0])


def read_pair(fields: Fields) -> Row:
    """A prompt and two answers, the better one first."""
    prompt = prompt_of(fields)
    return fields.compared(prompt, fields.answer("chosen", prompt), fields.answer("rejected", prompt))


def read_stack_pair(fields: Fields) -> Row:
    """A question and two responses, of which `response_j` has more votes (stack-exchange-paired)."""
    prompt = prompt_of(fields)
    return fields.compared(prompt, fields.text("response_j"), fields.text("response_k"))


def read_openai_pair(fields: Fields) -> Row:
    """OpenAI's preference format: `{input: {messages, tools}, preferred_output, non_preferred_output}`."""
    outer = fields.take("input")
    if not isinstance(outer, dict):
        raise fields.wrong("input", outer, "an object with the key 'messages'")
    read = ["messages"]
    if outer.get("tools") and "tools" not in fields.values:
        fields.values = {**fields.values, "tools": outer["tools"]}
        read.append("tools")
    inner = Fields(outer, f"{fields.place}: input")
    prompt = inner.prompt("messages")
    pair = fields.answer("preferred_output", prompt), fields.answer("non_preferred_output", prompt)
    fields.notes += inner.notes
    fields.note_left_out("input", outer, read)
    return fields.compared(prompt, *pair)


def _instruction(fields: Fields, key: str = "instruction") -> tuple[Message, ...]:
    messages = list(fields.system())
    history = fields.value("history", [])
    if not isinstance(history, list):
        raise fields.wrong("history", history, "a list of [user, assistant] pairs")
    for index, turn in enumerate(history):
        if not isinstance(turn, list) or len(turn) != 2:
            raise fields.wrong(f"history[{index}]", turn, "a pair [user, assistant]")
        messages.append(Message("user", fields.checked(f"history[{index}][0]", turn[0])))
        messages.append(Message("assistant", fields.checked(f"history[{index}][1]", turn[1])))
    instruction = fields.text(key)
    keys = [more for more in MORE_KEYS if more != key]
    about = fields.text(next((more for more in keys if isinstance(fields.values.get(more), str)), keys[0]), "")
    return *messages, Message("user", f"{instruction}\n{about}" if about else instruction)


def read_instruction(fields: Fields) -> Row:
    """An instruction and its output: a text, a list of texts ranked best first, or `{chosen, rejected}`."""
    prompt = _instruction(fields, "instruction" if "instruction" in fields.values else "input")
    key = answer_key(fields.values) or "output"
    value = fields.value(key)
    if isinstance(value, dict):
        pair = Fields(value, f"{fields.place}: {key}")
        answers = pair.answer("chosen", prompt), pair.answer("rejected", prompt)
        fields.note_left_out(key, value, ("chosen", "rejected"))
        return fields.compared(prompt, *answers)
    if not isinstance(value, list):
        if "kto_tag" in fields.values:
            check_kto_tag(fields)
        return fields.row(prompt, (fields.text(key),), grades=fields.rating())
    ranked = fields.items(key, "a string or a list of strings, best first")
    listed = tuple(fields.checked(f"{key}[{index}]", answer) for index, answer in enumerate(ranked))
    grades = fields.value("grades", [float(grade) for grade in range(len(listed) - 1, -1, -1)])
    numbers = isinstance(grades, list) and all(map(is_grade, grades))
    if not numbers or len(grades) != len(listed):
        raise fields.wrong("grades", grades, f"a list of {len(listed)} numbers, one per answer, higher is better")
    return fields.row(prompt, listed, grades=tuple(map(float, grades)))


def check_kto_tag(fields: Fields) -> None:
    """Takes `kto_tag`, the name other tools have for `label`, for it."""
    if "kto_tag" in fields.values and "label" not in fields.values:
        fields.values = {**fields.values, "label": fields.value("kto_tag")}
    fields.check_label()


def read_conversation(fields: Fields) -> Row:
    """A list of messages, whose last assistant turn is the answer."""
    key = next(key for key in ("messages", "conversations", "conversation") if key in fields.values)
    check_kto_tag(fields)
    return fields.last_answer(fields.messages(key), key)


def read_text(fields: Fields) -> Row:
    """A plain text, with `label` 0 or 1 for reward roles."""
    label = fields.check_label()
    text = fields.text("text")
    for key, value in fields.values.items():
        long = isinstance(value, str) and value.strip() and ("\n" in value or len(value) > 200 or key in _TEXT_ANSWERS)
        if long and key != "text" and not fields.mapped:
            raise DataError(
                f"{fields.place}: 'text' is read as a whole text, but could be a prompt that '{key}' answers; rename "
                f"'text' to 'prompt' and '{key}' to 'completion', or remove '{key}' if the text alone is to be learned",
                remedy="two-readings",
                mapping=f"{{prompt: text, completion: {key}}}",
            )
    return fields.row((), (text,), grades=None if label is None else (label,))


def read_poem(fields: Fields) -> Row:
    """A titled list of lines as one text: title, author and the lines, which follow after a blank line."""
    lines = [
        fields.checked(f"paragraphs[{index}]", line)
        for index, line in enumerate(fields.items("paragraphs", "a list of lines"))
    ]
    above = [fields.text(key) for key in (*_TITLES, "author") if fields.values.get(key) is not None]
    text = "\n".join([*above, "", *lines] if above else lines)
    return fields.row((), (text,))


def read_prompt(fields: Fields) -> Row:
    """A prompt, alone or with one answer; `answer` stays a column, as verifiers compare with it."""
    check_kto_tag(fields)
    prompt = _question_about(fields) or prompt_of(fields)
    key = answer_key(fields.values)
    if key is None:
        return fields.row(prompt)
    answer = fields.answer(key, prompt)
    text = answer if isinstance(answer, str) else answer.text
    if key != "answer":
        # With `completion` beside it, `answer` is what verifiers compare with; another answer may be meant instead.
        other = fields.values.get("answer")
        if key != "completion" and not fields.mapped and isinstance(other, str) and other.strip() not in text:
            raise DataError(
                f"{fields.place}: '{key}' and 'answer' could both be the answer",
                remedy="two-readings",
                mapping=f"{{prompt: {prompt_key(fields.values)}, completion: {key}}}",
            )
        return fields.row(prompt, (answer,), grades=fields.rating())
    row = fields.row(prompt, (answer,), grades=fields.rating())
    columns = {**row.columns, "answer": text}
    if (final := final_answer(text)) is not None:
        columns.setdefault("gold", final)
    return replace(row, columns=columns)


def _question_about(fields: Fields) -> tuple[Message, ...] | None:
    """The prompt of a question with a `context` (or `passage`) beside it that it is about."""
    key = next((key for key in ("context", "passage") if isinstance(fields.values.get(key), str)), None)
    question = fields.values.get("question")
    if key is None or not isinstance(question, str) or fields.values[key].strip() in question:
        return None
    if any(other in fields.values for other in ("prompt", "query")):
        return None
    fields.notes.append(f"prompt joined from '{key}' and 'question'")
    return *fields.system(), Message("user", f"{fields.text(key)}\n\n{fields.text('question')}")


def final_answer(solution: str) -> str | None:
    """What follows `####` on the last line, as GSM8K writes its final answers; None if there is no such line."""
    found = _FINAL.search(solution)
    return found[1] if found else None


def squad_rows(whole: Mapping[str, Any], path: Path) -> Iterator[Row]:
    """One prompt per question, numbered through the file, with the columns `context`, `question` and `gold` (texts)."""
    number = 0
    for a, article in enumerate(Fields(whole, str(path)).items("data", "a list of articles")):
        outer = _nested(article, path, f"data[{a}]")
        title = outer.values.get("title")
        for p, paragraph in enumerate(outer.items("paragraphs", "a list of paragraphs")):
            inner = _nested(paragraph, path, f"data[{a}].paragraphs[{p}]")
            for q, question in enumerate(inner.items("qas", "a list of questions")):
                number += 1
                at = f"data[{a}].paragraphs[{p}].qas[{q}]"
                asked = _nested(question, f"{path}:{number}", at)
                inner.note_left_out("data[].paragraphs[]", inner.values, ("context", "qas"))
                asked.notes += inner.notes
                row = _squad_row(asked, inner.text("context"))
                columns = row.columns if title is None else {"title": title, **row.columns}
                yield replace(row, place=f"{path}:{number}", columns=columns)


def _nested(value: Any, place: Path | str, at: str) -> Fields:
    if not isinstance(value, dict):
        raise DataError(f"{place}: {at} is {described(value)}; expected an object")
    return Fields(value, f"{place}: {at}")


def is_squad_row(row: Mapping[str, Any]) -> bool:
    """Whether a row is a question of a SQuAD file laid flat, as `datasets` has them."""
    answers = row.get("answers")
    listed = isinstance(answers, dict) and isinstance(answers.get("text"), list)
    return listed and "context" in row and "question" in row


def read_squad_row(fields: Fields) -> Row:
    """A question with its context and answers `{text: [..]}`."""
    answers = fields.take("answers")
    gold = [fields.checked(f"answers.text[{index}]", text) for index, text in enumerate(answers["text"])]
    return _squad(fields, fields.text("context"), gold)


def _squad_row(fields: Fields, context: str) -> Row:
    answers = fields.take("answers")
    if not isinstance(answers, list) or not all(isinstance(answer, dict) and "text" in answer for answer in answers):
        raise fields.wrong("answers", answers, "a list of objects with the key 'text'")
    return _squad(fields, context, [fields.checked("answers", answer["text"]) for answer in answers])


def _squad(fields: Fields, context: str, gold: list[str]) -> Row:
    question = fields.text("question")
    row = fields.row((Message("user", f"{context}\n\n{question}"),))
    return replace(row, columns={**row.columns, "context": context, "question": question, "gold": gold})
