"""Reads files into `Row`s: the keys of a file's first row tell its layout, and every other row must have the same.

    transcript    {chosen, rejected}: hh-rlhf transcripts, or two lists of messages, that share their beginning
    pair          {prompt | query | question, chosen, rejected}, or instruction in place of prompt
    votes         {prompt | query | question, "prediction 1", "prediction 2", .., preference}, or instruction
    instruction   {instruction, output}, optional input, history; output is one text, or a list, best first
    sharegpt      {conversations: [{from, value}]}; the same with chosen, rejected
    messages      {messages: [{role, content}]}; the same with chosen, rejected
    text          {text}, optional label 0 or 1; each paragraph of a .txt file
    squad         {data: [{paragraphs: [{context, qas: [{question, answers}]}]}]}
    prompt        {prompt | query | question}, optional completion or answer
    math          {problem, solution | answer}: MATH
    word_problem  {Body, Question, Answer} or {question_concat, Answer} in any case: SVAMP; a prompt (or problem) with
                  golden, answer_number or a number as answer: CMATH, MGSM
    choice        {prompt | query | question, options | choices, correct | answerKey | answer | label}: AQuA, MMLU, ARC
    tested_code   {text | prompt, code, test_list}: MBPP, also sanitized
    function      {prompt, canonical_solution, test, entry_point}: HumanEval

`ended: false` beside an answer (`chosen_ended`, `rejected_ended` beside a pair; a list beside a list) says that the
answer stops mid-sentence, like a sample cut at its length limit: it gets no end token.

A `system` text may accompany every prompt except a transcript's; `margin` (a number) and `tie` (true or false) may
accompany two compared answers, and `label` one answer. A message is `{role, content}` or `{from, value}`; a function
call is an assistant turn and its result a user turn, contents unchanged. Keys not named here become columns, and so do
`label` and `answer`, which verifiers read.

Where a file gives the final answer alone, or ends its solutions in `#### 42` (GSM8K), the column `gold` holds it; code
has the columns `tests` and `setup` (`data/tasks.py`).

`initial_reason_steps` may accompany every prompt: it is the beginning of the assistant's answer, and the answers are
the steps that may follow it (Step-DPO, Lai et al. 2024).

`preference` holds a vote on each pair (1, 2), (1, 3) .. (2, 3) .. of the predictions: 1 if the first is better, 2 if
the second is, 0 for a tie. An answer's grade is its wins minus its losses (its Copeland score). This order contradicts
none of the 2,616 preferences in the development set of Fine-Grained RLHF (Wu et al. 2023; 500 questions, 4 answers
each), and breaks 54 of its 384 ties.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from onebase.data import layouts, tasks
from onebase.data.fields import Fields
from onebase.data.files import check_file, file_id, json_lines, json_list, paragraphs, read_text, suffix_of
from onebase.data.json_text import listed
from onebase.errors import DataError
from onebase.records import Row
from onebase.shown import shown


@dataclass(frozen=True, slots=True)
class _Layout:
    keys: str
    """As messages show them."""
    fits: Callable[[Mapping[str, Any]], bool]
    """Whether a row has these keys; `read` checks their values."""
    read: Callable[[Fields], Row]


def _compares(row: Mapping[str, Any]) -> bool:
    # One of the two is enough to tell the layout; reading the row then says that the other is missing.
    return "chosen" in row or "rejected" in row


def _has_prompt(row: Mapping[str, Any]) -> bool:
    return "instruction" in row or layouts.prompt_key(row) is not None


# Tried in this order, so that a row gets the layout that uses most of its keys.
_LAYOUTS = {
    "conversation_pair": _Layout(
        "{conversations | messages, chosen, rejected}",
        lambda row: _compares(row) and ("conversations" in row or ("messages" in row and not _has_prompt(row))),
        layouts.read_conversation_pair,
    ),
    "sharegpt": _Layout("{conversations}", lambda row: "conversations" in row, layouts.read_sharegpt),
    "messages": _Layout("{messages}", lambda row: "messages" in row and not _compares(row), layouts.read_messages),
    "pair": _Layout(
        "{prompt | query | question | instruction, chosen, rejected}",
        lambda row: _compares(row) and _has_prompt(row),
        layouts.read_pair,
    ),
    "votes": _Layout(
        '{prompt | query | question | instruction, "prediction 1", "prediction 2", .., preference}',
        lambda row: _has_prompt(row) and "preference" in row and any(map(layouts.PREDICTION.fullmatch, row)),
        layouts.read_votes,
    ),
    "transcript": _Layout("{chosen, rejected}", _compares, layouts.read_transcripts),
    "instruction": _Layout(
        "{instruction, output}",
        lambda row: "instruction" in row and "output" in row,
        layouts.read_instruction,
    ),
    "tested_code": _Layout(
        "{text | prompt, code, test_list}",
        lambda row: ("text" in row or "prompt" in row) and "code" in row and "test_list" in row,
        tasks.read_tested_code,
    ),
    "function": _Layout(
        "{prompt, canonical_solution, test, entry_point}",
        lambda row: all(key in row for key in ("prompt", "canonical_solution", "test", "entry_point")),
        tasks.read_function,
    ),
    "choice": _Layout(
        "{prompt | query | question, options | choices, correct | answerKey | answer | label}",
        tasks.is_choice,
        tasks.read_choice,
    ),
    "math": _Layout(
        "{problem, solution | answer}",
        lambda row: "problem" in row and layouts.prompt_key(row) is None and ("solution" in row or "answer" in row),
        tasks.read_math,
    ),
    "word_problem": _Layout(
        "{prompt | query | question, golden | answer_number} or {Body, Question, Answer}",
        lambda row: tasks.word_problem_keys(row) is not None,
        tasks.read_word_problem,
    ),
    "prompt": _Layout(
        "{prompt | query | question}", lambda row: layouts.prompt_key(row) is not None, layouts.read_prompt
    ),
    "text": _Layout("{text}", lambda row: "text" in row, layouts.read_text),
}


def read_files(paths: Sequence[str | Path], *, limit: int | None = None) -> list[Row]:
    """The rows of several files, in order; each file may have its own layout. `limit` counts rows of all files.

    Raises:
        DataError: a file is missing, even one beyond the limit, or is named twice.
    """
    seen: dict[tuple[int, int], str | Path] = {}
    for path in paths:
        check_file(Path(path))
        first = seen.setdefault(file_id(path), path)
        if first is not path:
            raise DataError(f"{shown(path)} and {shown(first)} are the same file", remedy="file-named-twice")
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
        return list(islice(layouts.squad_rows(found, path), limit))
    name = detect(found[0][1], place=f"{path}:{found[0][0]}")
    layout = _LAYOUTS[name]
    rows = []
    for number, values in found[:limit]:
        fields = Fields(values, f"{path}:{number}")
        if _layout_of(values) != name:
            raise DataError(
                f"{fields.place}: the keys {listed(values)} do not match the layout of the file's first row, "
                f"{layout.keys}; complete this row, or move rows of another layout to their own file"
            )
        rows.append(layout.read(fields))
    return rows


def detect(first_row: Mapping[str, Any], *, place: str = "the first row") -> str:
    """The name of the layout with these keys. Raises DataError, listing keys and known layouts, if there is none."""
    name = _layout_of(first_row)
    if name is None:
        known = "; ".join(layout.keys for layout in _LAYOUTS.values())
        raise DataError(f"{place}: no known layout has the keys {listed(first_row)}; rename them to one of: {known}")
    return name


def _layout_of(row: Mapping[str, Any]) -> str | None:
    return next((name for name, layout in _LAYOUTS.items() if layout.fits(row)), None)
