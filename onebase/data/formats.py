"""From the objects of a file to `Row`s: the keys of the first row tell the layout, and every other row must have it.

    transcript    {chosen, rejected}: hh-rlhf transcripts, or two lists of messages, that share their beginning
    pair          {prompt | query | question, chosen, rejected}, or instruction in place of prompt
    votes         {prompt | query | question, "prediction 1", "prediction 2", .., preference}, or instruction
    instruction   {instruction, output}, optional input, history; output is one text, or a list, best first
    sharegpt      {conversations: [{from, value}]}; the same with chosen, rejected
    messages      {messages: [{role, content}]}; the same with chosen, rejected
    text          {text}, optional label 0 or 1; each paragraph of a .txt file
    squad         {data: [{paragraphs: [{context, qas: [{question, answers}]}]}]}
    prompt        {prompt | query | question}, optional completion or answer

`ended: false` beside an answer (`chosen_ended`, `rejected_ended` beside a pair; a list beside a list) says that the
answer stops in mid-sentence, as a sample does at its length limit: it gets no end token.

A `system` text may stand beside every prompt but a transcript's; `margin` (a number) and `tie` (true or false) beside
two answers that are compared; `label` beside one answer. A message is `{role, content}` or `{from, value}`; a turn that
calls a function is an assistant turn and what the function returned a user turn, contents unchanged. Keys not named
here become columns, and so do `label` and `answer`, which verifiers read.

`initial_reason_steps` may stand beside every prompt: it is the beginning of the assistant's answer, and the answers are
the steps that may follow it (Step-DPO, Lai et al. 2024).

`preference` holds a vote for each of the pairs (1, 2), (1, 3) .. (2, 3) .. of the predictions: 1 where the first is
better, 2 where the second is, 0 for a tie. The grade of an answer is its wins less its losses (its Copeland score). Of
the 2,616 preferences stated in the development set of Fine-Grained RLHF (Wu et al. 2023; 500 questions, 4 answers each)
this order contradicts none, and it puts 54 of the 384 ties in an order.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, islice
from pathlib import Path
from typing import Any

from onebase.data.fields import Fields, is_grade
from onebase.data.files import check_file, file_id, json_lines, json_list, paragraphs, read_text, suffix_of
from onebase.data.json_text import described, listed
from onebase.errors import DataError
from onebase.records import Message, Row
from onebase.shown import shown

PROMPT_KEYS = ("prompt", "query", "question")

_ANSWER_KEYS = ("answer", "code", "completion", "output", "reply", "response", "solution", "summary", "target")
"""Beside `text`, what may answer it."""

_PREDICTION = re.compile(r"prediction ([1-9]\d*)")

_TURN = re.compile(r"\n\n(Human|Assistant):")


def read_files(paths: Sequence[str | Path], *, limit: int | None = None) -> list[Row]:
    """The rows of several files, in order; each file may have its own layout. `limit` counts over all of them.

    Raises:
        DataError: a file is not there, even one that the limit never comes to, or is named twice.
    """
    seen: dict[tuple[int, int], str | Path] = {}
    for path in paths:
        check_file(Path(path))
        first = seen.setdefault(file_id(path), path)
        if first is not path:
            raise DataError(
                f"{shown(path)} and {shown(first)} are the same file; name it once (for more visits raise "
                "optimizer.num_epochs)"
            )
    rows: list[Row] = []
    for path in paths:
        if limit is not None and len(rows) >= limit:
            break
        rows += read_rows(path, limit=None if limit is None else limit - len(rows))
    return rows


def read_rows(path: str | Path, *, limit: int | None = None) -> list[Row]:
    """The first `limit` rows of a file, or all of them. Raises DataError naming the file, the row and the key."""
    assert limit is None or limit >= 1, f"limit is {limit}, it counts rows from 1"
    path = Path(path)
    text = read_text(path)
    suffix = suffix_of(path)
    if suffix == ".txt":
        parts = enumerate(paragraphs(text)[:limit], start=1)
        return [Row(messages=(), answers=(part,), place=f"{path}:{number}") for number, part in parts]
    found = json_lines(path, text, limit) if suffix == ".jsonl" else json_list(path, text)
    if isinstance(found, dict):
        return list(islice(_squad_rows(found, path), limit))
    name = detect(found[0][1], place=f"{path}:{found[0][0]}")
    layout = _LAYOUTS[name]
    rows = []
    for number, values in found[:limit]:
        fields = Fields(values, f"{path}:{number}")
        if _layout_of(values) != name:
            raise DataError(
                f"{fields.place}: the keys {listed(values)} do not have the layout of the file's first row, which is "
                f"{layout.keys}; complete this row, or move rows of another layout to their own file"
            )
        rows.append(layout.read(fields))
    return rows


def detect(first_row: Mapping[str, Any], *, place: str = "the first row") -> str:
    """The name of the layout that has these keys. Raises DataError listing the keys found and the layouts known."""
    name = _layout_of(first_row)
    if name is None:
        known = "; ".join(layout.keys for layout in _LAYOUTS.values())
        raise DataError(f"{place}: no known layout has the keys {listed(first_row)}; rename them to one of: {known}")
    return name


def split_by_prompt(rows: Sequence[Row], fraction: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Splits into (train, held_out): about `fraction` of the rows are held out, rows with one prompt stay together.

    Prompts are sorted by a hash of their text and the seed and cut, so that the order of the rows does not matter. Both
    sides hold at least one prompt where `fraction` is above 0. A plain text is its own prompt.

    Raises:
        DataError: if all rows have one prompt.
    """
    assert 0 <= fraction < 1, f"fraction is {fraction}, a share of the rows in [0, 1) is needed"
    if fraction == 0:
        return list(rows), []
    sizes: dict[str, int] = {}
    keys = [_prompt_key(row, seed) for row in rows]
    for key in keys:
        sizes[key] = sizes.get(key, 0) + 1
    if len(sizes) < 2:
        raise DataError(
            f"{rows[0].place if rows else 'no rows'}: nothing can be held out, the {len(rows)} rows have {len(sizes)} "
            "different prompts (texts of a .txt file are separated by blank lines); give more data, or data.eval"
        )
    held_out: set[str] = set()
    count, wanted = 0, fraction * len(rows)
    for key in sorted(sizes)[:-1]:
        # The cut nearest to the fraction: a prompt comes in where at least half of its rows are still wanted.
        if held_out and count + sizes[key] / 2 > wanted:
            break
        held_out.add(key)
        count += sizes[key]
    train = [row for row, key in zip(rows, keys, strict=True) if key not in held_out]
    return train, [row for row, key in zip(rows, keys, strict=True) if key in held_out]


def drop_unusable(
    rows: Sequence[Row], *, max_share: float = 0.05, answers: bool = True
) -> tuple[list[Row], dict[str, list[str]]]:
    """Leaves out rows nothing can be learned from; returns the others, and the places of those left out by reason.

    Reasons: `empty prompt` (messages without a character); and where `answers` are looked at, `empty answer` (any of
    them), `equal answers` (a compared or ranked row whose answers all have one text).

    Raises:
        DataError: if more than `max_share` of the rows would go.
    """
    kept: list[Row] = []
    dropped: dict[str, list[str]] = {}
    for row in rows:
        reason = unusable_prompt(row) or (_unusable_answers(row) if answers or not row.messages else None)
        if reason is None:
            kept.append(row)
        else:
            dropped.setdefault(reason, []).append(row.place)
    gone = len(rows) - len(kept)
    if gone > max_share * len(rows):
        counts = ", ".join(f"{reason}: {len(at)} (first {', '.join(at[:3])})" for reason, at in dropped.items())
        raise DataError(
            f"{gone} of {len(rows)} rows cannot be used, more than the share {max_share:g} allowed: {counts}; "
            "correct these rows, or allow a larger share (data.max_dropped_share)"
        )
    return kept, dropped


def unusable_prompt(row: Row) -> str | None:
    """What is wrong with the prompt of a row, None where nothing is."""
    if row.messages and not any(message.content.strip() for message in row.messages):
        return "empty prompt"
    return None


def _unusable_answers(row: Row) -> str | None:
    if not all(answer.strip() for answer in row.answers):
        return "empty answer"
    if len(row.answers) > 1 and len({answer.strip() for answer in row.answers}) == 1:
        return "equal answers"
    return None


def _prompt_key(row: Row, seed: int) -> str:
    turns = [(message.role, message.content) for message in row.messages]
    return hashlib.sha256(f"{seed}\n{json.dumps(turns or row.answers)}".encode()).hexdigest()


def _read_transcripts(fields: Fields) -> Row:
    """Two conversations with a shared beginning, of which the prompt is what ends in a user turn.

    Where they part before the last reply, an answer is all that follows, written as a transcript.
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
    # Between prompt and answers stands "\n\nAssistant:"; an answer that opens with another role has to say so.
    first = turns[0].content if turns[0].role == "assistant" else f"{who[turns[0].role]}: {turns[0].content}"
    return (first + "".join(f"\n\n{who[turn.role]}: {turn.content}" for turn in turns[1:])).strip()


def _prompt(fields: Fields) -> tuple[Message, ...]:
    key = _first_key(fields.values)
    return fields.prompt(key) if key else _instruction(fields)


def _read_pair(fields: Fields) -> Row:
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


def _read_votes(fields: Fields) -> Row:
    """Answers that were compared two by two; their grades are wins less losses."""
    prompt = _prompt(fields)
    numbers = [int(found[1]) for found in map(_PREDICTION.fullmatch, fields.values) if found]
    answers = [fields.text(f"prediction {number}") for number in range(1, max(2, *numbers) + 1)]
    pairs = list(combinations(range(len(answers)), 2))
    votes = fields.items("preference", "a list of votes")
    if len(votes) != len(pairs):
        raise DataError(
            f"{fields.place}: 'preference' holds {len(votes)} votes, and {len(answers)} predictions make {len(pairs)} "
            "pairs, (1, 2), (1, 3) and so on; give one vote for each"
        )
    grades = [0.0] * len(answers)
    for index, ((first, second), vote) in enumerate(zip(pairs, votes, strict=True)):
        if type(vote) is not int or vote not in (0, 1, 2):
            raise fields.wrong(f"preference[{index}]", vote, "1 (the first is better), 2 (the second) or 0 (a tie)")
        won = (0, 1, -1)[vote]
        grades[first] += won
        grades[second] -= won
    return fields.row(prompt, answers, grades=tuple(grades))


def _read_instruction(fields: Fields) -> Row:
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


def _read_sharegpt(fields: Fields) -> Row:
    return fields.last_answer(fields.messages("conversations"), "conversations")


def _read_conversation_pair(fields: Fields) -> Row:
    prompt = fields.prompt("conversations" if "conversations" in fields.values else "messages")
    return fields.compared(prompt, fields.answer("chosen", prompt), fields.answer("rejected", prompt))


def _read_messages(fields: Fields) -> Row:
    return fields.last_answer(fields.messages("messages"), "messages")


def _read_text(fields: Fields) -> Row:
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


def _read_prompt(fields: Fields) -> Row:
    fields.check_label()
    prompt = fields.prompt(str(_first_key(fields.values)))
    if fields.values.get("completion") is not None:
        return fields.row(prompt, (fields.answer("completion", prompt),))
    if fields.values.get("answer") is None:
        return fields.row(prompt)
    row = fields.row(prompt, (fields.answer("answer", prompt),))
    # A verifier compares what the policy writes with the answer of the data, so it stays a column as well.
    return replace(row, columns={**row.columns, "answer": row.answers[0]})


def _squad_rows(whole: Mapping[str, Any], path: Path) -> Iterator[Row]:
    """One prompt per question, numbered through the file; its columns are `context`, `question`, `gold` (texts)."""
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
        raise DataError(f"{place}: {at} is {described(value)}; an object is needed")
    return Fields(value, f"{place}: {at}")


def _squad_row(fields: Fields, context: str) -> Row:
    question, answers = fields.text("question"), fields.take("answers")
    if not isinstance(answers, list) or not all(isinstance(answer, dict) and "text" in answer for answer in answers):
        raise fields.wrong("answers", answers, "a list of objects with the key 'text'")
    gold = [fields.checked("answers", answer["text"]) for answer in answers]
    row = fields.row((Message("user", f"{context}\n\n{question}"),))
    return replace(row, columns={**row.columns, "context": context, "question": question, "gold": gold})


@dataclass(frozen=True, slots=True)
class _Layout:
    keys: str
    """For messages."""
    fits: Callable[[Mapping[str, Any]], bool]
    """Whether a row has the keys; their values are checked by `read`."""
    read: Callable[[Fields], Row]


def _layout_of(row: Mapping[str, Any]) -> str | None:
    return next((name for name, layout in _LAYOUTS.items() if layout.fits(row)), None)


def _first_key(row: Mapping[str, Any]) -> str | None:
    return next((key for key in PROMPT_KEYS if key in row), None)


def _compares(row: Mapping[str, Any]) -> bool:
    # One of the two will do to tell the layout: the message about the other one then names it.
    return "chosen" in row or "rejected" in row


def _has_prompt(row: Mapping[str, Any]) -> bool:
    return "instruction" in row or _first_key(row) is not None


# In the order they are tried: a row is taken by the layout that uses most of its keys.
_LAYOUTS = {
    "conversation_pair": _Layout(
        "{conversations | messages, chosen, rejected}",
        lambda row: _compares(row) and ("conversations" in row or ("messages" in row and not _has_prompt(row))),
        _read_conversation_pair,
    ),
    "sharegpt": _Layout("{conversations}", lambda row: "conversations" in row, _read_sharegpt),
    "messages": _Layout("{messages}", lambda row: "messages" in row and not _compares(row), _read_messages),
    "pair": _Layout(
        "{prompt | query | question | instruction, chosen, rejected}",
        lambda row: _compares(row) and _has_prompt(row),
        _read_pair,
    ),
    "votes": _Layout(
        '{prompt | query | question | instruction, "prediction 1", "prediction 2", .., preference}',
        lambda row: _has_prompt(row) and "preference" in row and any(map(_PREDICTION.fullmatch, row)),
        _read_votes,
    ),
    "transcript": _Layout("{chosen, rejected}", _compares, _read_transcripts),
    "instruction": _Layout(
        "{instruction, output}",
        lambda row: "instruction" in row and "output" in row,
        _read_instruction,
    ),
    "prompt": _Layout("{prompt | query | question}", lambda row: _first_key(row) is not None, _read_prompt),
    "text": _Layout("{text}", lambda row: "text" in row, _read_text),
}
