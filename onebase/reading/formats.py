"""Reads files into `Row`s: the keys of a file's first row tell its layout, and every other row must have the same.

    transcript    {chosen, rejected}: hh-rlhf transcripts, or two lists of messages, that share their beginning
    pair          {prompt | query | question, chosen, rejected}, or instruction in place of prompt
    stack_pair    {question, response_j, response_k}: stack-exchange-paired
    openai_pair   {input: {messages}, preferred_output, non_preferred_output}
    votes         {prompt | query | question, "prediction 1", "prediction 2", .., preference}, or instruction
    annotated     {prompt | .., response1, response2, annotator1, ..}: PandaLM
    scored        {prompt | .., completions: [{response, overall_score}]}: UltraFeedback, answers with votes; or
                  {prompt | .., responses: [..], scores | ranks: [..]}, also a list of scores or ranks per annotator
    label_studio  {data: {.., items: [{id, body}]}, annotations: [{result: [{type: ranker, ..}]}]}, or {.., items, rank:
                  [{ranker}]}
    argilla       {prompt | .., .., a question with responses that hold [{value, rank}]}, version 1 or 2
    instruction   {instruction, output}, optional input, history; output is one text, a list, best first, or
                  {chosen, rejected}
    input_output  {input, output}, read the same way
    conversation  {messages | conversations: [{role, content} | {from, value}]}; the same with chosen, rejected
    turns         {data | dialogue | turns: [..]}: texts said in turn; utterances: [{speaker, text}]: Taskmaster
    rated_turn    {context, generation, reward}: Taskmaster's rewards
    text          {text}, optional label 0 or 1; each paragraph of a .txt file; {title, paragraphs}: poems
    squad         {data: [{paragraphs: [{context, qas: [{question, answers}]}]}]}, or {context, question, answers}
    prompt        {prompt | query | question}, optional completion, response, output, reply or answer
    math          {problem, solution | answer}: MATH
    word_problem  {Body, Question, Answer} or {question_concat, Answer} in any case: SVAMP; a prompt (or problem) with
                  golden, answer_number or a number as answer: CMATH, MGSM
    choice        {prompt | query | question, options | choices | A, B, ..., correct | answerKey | answer | label}
    tested_code   {text | prompt, code, test_list}: MBPP, also sanitized
    function      {prompt, canonical_solution, test, entry_point}: HumanEval

`ended: false` beside an answer (`chosen_ended`, `rejected_ended` beside a pair; a list beside a list) says that the
answer stops mid-sentence, like a sample cut at its length limit: it gets no end token.

A `system` text may accompany every prompt except a transcript's; `margin` (a number) and `tie` (true or false) may
accompany two compared answers, `label` (or `kto_tag`) and a score one answer. A message is `{role, content}` or
`{from, value}`, its content a text or a list of text parts; a function call is an assistant turn and its result a user
turn, contents unchanged. Keys not named here become columns, and so do `label` and `answer`, which verifiers read. A
column that belongs in the prompt, or that could be read instead, is an error (`unread.py`); a mapping of columns
(`columns.py`) decides.

Where a file gives the final answer alone, or ends its solutions in `#### 42` (GSM8K), the column `gold` holds it; code
has the columns `tests` and `setup` (`reading/tasks.py`).

`initial_reason_steps` may accompany every prompt: it is the beginning of the assistant's answer, and the answers are
the steps that may follow it (Step-DPO, Lai et al. 2024).

`preference` holds a vote on each pair (1, 2), (1, 3) .. (2, 3) .. of the predictions: 1 if the first is better, 2 if
the second is, 0 for a tie. An answer's grade is its wins minus its losses (its Copeland score). This order contradicts
none of the 2,616 preferences in the development set of Fine-Grained RLHF (Wu et al. 2023; 500 questions, 4 answers
each), and breaks 54 of its 384 ties.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from onebase.errors import DataError
from onebase.reading import columns as mappings
from onebase.reading import dialogues, exports, layouts, ranked, tasks
from onebase.reading.containers import read_content
from onebase.reading.fields import Fields
from onebase.reading.files import check_file, expand, file_id
from onebase.reading.json_text import listed
from onebase.records import Row
from onebase.shown import shown


class Original(NamedTuple):
    """A row and the object it was read from."""

    row: Row
    values: Mapping[str, Any]
    """As it stands in the file. A text of a .txt file is `{"text": ..}`, a question of a SQuAD file an object with its
    prompt and columns: both are read back as the same row."""


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


def _has(*keys: str) -> Callable[[Mapping[str, Any]], bool]:
    return lambda row: all(key in row for key in keys)


def _has_prompt(row: Mapping[str, Any]) -> bool:
    return "instruction" in row or layouts.prompt_key(row) is not None


def _converses(row: Mapping[str, Any]) -> bool:
    return "messages" in row or "conversations" in row or isinstance(row.get("conversation"), list)


def _is_instruction(row: Mapping[str, Any]) -> bool:
    return "instruction" in row and (layouts.answer_key(row) is not None or "output" in row)


_PROMPT = "{prompt | query | question | instruction"

# Tried in this order, so that a row gets the layout that uses most of its keys.
_LAYOUTS = {
    "label_studio": _Layout("{data, annotations}", exports.is_label_studio, exports.read_label_studio),
    "argilla": _Layout(
        "{prompt, .., responses or a question with ranks}",
        lambda row: exports.rankings_of(row) is not None,
        exports.read_argilla,
    ),
    "openai_pair": _Layout(
        "{input: {messages}, preferred_output, non_preferred_output}",
        _has("input", "preferred_output", "non_preferred_output"),
        layouts.read_openai_pair,
    ),
    "conversation_pair": _Layout(
        "{messages | conversations, chosen, rejected}",
        lambda row: _compares(row) and ("conversations" in row or ("messages" in row and not _has_prompt(row))),
        layouts.read_pair,
    ),
    "pair": _Layout(
        _PROMPT + ", chosen, rejected}", lambda row: _compares(row) and _has_prompt(row), layouts.read_pair
    ),
    "stack_pair": _Layout(
        "{question, response_j, response_k}", _has("question", "response_j", "response_k"), layouts.read_stack_pair
    ),
    "votes": _Layout(
        _PROMPT + ', "prediction 1", "prediction 2", .., preference}',
        lambda row: _has_prompt(row) and "preference" in row and any(map(ranked.PREDICTION.fullmatch, row)),
        ranked.read_votes,
    ),
    "annotated": _Layout(
        _PROMPT + ", response1, response2, annotator1, ..}",
        lambda row: _has_prompt(row) and ranked.is_annotated(row),
        ranked.read_annotated,
    ),
    "scored": _Layout(
        _PROMPT + ", completions: [{response, overall_score}]} or {.., responses: [..], scores | ranks: [..]}",
        lambda row: _has_prompt(row) and ranked.scored_list(row) is not None,
        ranked.read_scored,
    ),
    "messages": _Layout(
        "{messages | conversations}", lambda row: _converses(row) and not _compares(row), layouts.read_conversation
    ),
    "transcript": _Layout("{chosen, rejected}", _compares, dialogues.read_transcripts),
    "instruction": _Layout("{instruction, output}", _is_instruction, layouts.read_instruction),
    "input_output": _Layout(
        "{input, output}",
        lambda row: "input" in row and "output" in row and layouts.prompt_key(row) is None and "instruction" not in row,
        layouts.read_instruction,
    ),
    "tested_code": _Layout(
        "{text | prompt, code, test_list}",
        lambda row: ("text" in row or "prompt" in row) and "code" in row and "test_list" in row,
        tasks.read_tested_code,
    ),
    "function": _Layout(
        "{prompt, canonical_solution, test, entry_point}",
        _has("prompt", "canonical_solution", "test", "entry_point"),
        tasks.read_function,
    ),
    "rated_turn": _Layout(
        "{context, generation, reward}", _has("context", "generation", "reward"), dialogues.read_rated_turn
    ),
    "utterances": _Layout("{utterances}", _has("utterances"), dialogues.read_utterances),
    "squad": _Layout("{context, question, answers}", layouts.is_squad_row, layouts.read_squad_row),
    "choice": _Layout(
        "{prompt | query | question, options | choices | A, B, .., correct | answerKey | answer | label}",
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
    "poem": _Layout("{title, paragraphs}", _has("paragraphs"), layouts.read_poem),
    "text": _Layout("{text}", _has("text"), layouts.read_text),
    "turns": _Layout(
        "{data | dialogue | turns}", lambda row: dialogues.turns_key(row) is not None, dialogues.read_turns
    ),
}


def read_files(
    names: Sequence[str | Path], *, columns: Mapping[str, str] | None = None, limit: int | None = None
) -> list[Row]:
    """The rows of several files, in order; each file may have its own layout. `limit` counts rows of all files.

    Args:
        names: files, folders, patterns or Hub datasets (`files.expand`).
        columns: reads every row by this mapping (`columns.apply`) instead of by its own keys.

    Raises:
        DataError: a file is missing, even one beyond the limit, or is named twice.
    """
    seen: dict[tuple[int, int], Path] = {}
    for name in names:
        check_file(name)
        for path in expand(name):
            first = seen.setdefault(file_id(path), path)
            if first is not path:
                raise DataError(f"{shown(path)} and {shown(first)} are the same file", remedy="file-named-twice")
    rows: list[Row] = []
    for path in seen.values():
        if limit is not None and len(rows) >= limit:
            break
        rows += read_rows(path, columns=columns, limit=None if limit is None else limit - len(rows))
    return rows


def read_rows(name: str | Path, *, columns: Mapping[str, str] | None = None, limit: int | None = None) -> list[Row]:
    """The rows of `iter_rows` as a list."""
    return list(iter_rows(name, columns=columns, limit=limit))


def iter_rows(name: str | Path, *, columns: Mapping[str, str] | None = None, limit: int | None = None) -> Iterator[Row]:
    """The first `limit` rows of a file (or of every file a name stands for), or all of them, one at a time.

    JSON lines, CSV, Parquet, Arrow and text files are never held whole.

    Args:
        columns: reads every row by this mapping (`columns.apply`) instead of by its own keys.

    Raises:
        DataError: as it is reached, naming the file, the row and the key.
        MissingExtraError: a file needs a package that is not installed.
    """
    assert limit is None or limit >= 1, f"limit is {limit}, it counts rows from 1"
    return islice((original.row for original in iter_originals(name, columns=columns)), limit)


def iter_originals(name: str | Path, *, columns: Mapping[str, str] | None = None) -> Iterator[Original]:
    """The rows of `iter_rows`, each with the object it was read from; arguments and errors as there."""
    check_file(name)
    return (original for path in expand(name) for original in _rows_of(path, columns))


def _rows_of(path: Path, columns: Mapping[str, str] | None) -> Iterator[Original]:
    content = read_content(path)
    if content.squad is not None:
        for row in layouts.squad_rows(content.squad, path):
            row = replace(row, notes=(*content.notes, *row.notes), layout="squad")
            yield Original(row, {"prompt": row.messages[-1].content, **row.columns})
        return
    reader = RowReader(columns, typed=content.typed, notes=content.notes)
    for number, values in content.rows:
        yield Original(reader.read(values, f"{content.place or f'{path}:'}{number}"), values)


class RowReader:
    """Reads the objects of one file, all in the layout of the first.

    Args:
        columns: reads every row by this mapping (`columns.apply`) instead of by its own keys.
        typed: False where every value is a text (CSV).
        notes: what every row notes.
    """

    def __init__(
        self, columns: Mapping[str, str] | None = None, *, typed: bool = True, notes: Sequence[str] = ()
    ) -> None:
        self._columns, self._typed, self._name = columns, typed, ""
        self._notes = notes  # some are found as rows are read
        self._known: dict[Any, str | None] = {}

    def read(self, values: Mapping[str, Any], place: str) -> Row:
        """One row. Raises DataError naming `place` and the key."""
        mapped = None if self._columns is None else mappings.apply(self._columns, values, place)
        read = values if mapped is None else mapped.values
        self._name = self._name or detect(read, place=place)
        if _layout_again(read, self._known) != self._name:
            raise DataError(
                f"{place}: the keys {listed(read)} do not match the layout of the file's first row, "
                f"{_LAYOUTS[self._name].keys}; complete this row, or move rows of another layout to their own file"
            )
        fields = Fields(read, place, typed=self._typed, mapped=mapped is not None)
        fields.notes += self._notes
        row = replace(_LAYOUTS[self._name].read(fields), layout=self._name)
        return row if mapped is None else replace(row, columns={**mapped.columns, **row.columns})


def read_record(values: Mapping[str, Any], *, place: str) -> Row:
    """One row from an object in memory, by its own keys. Raises DataError naming `place` and the key."""
    return RowReader().read(values, place)


def detect(first_row: Mapping[str, Any], *, place: str = "the first row") -> str:
    """The name of the layout with these keys. Raises DataError, listing keys and usual layouts, if there is none."""
    name = _layout_of(first_row)
    if name is None:
        raise DataError(
            f"{place}: no known layout has the keys {listed(first_row)}; usual ones are {{prompt, completion}}, "
            "{prompt, chosen, rejected}, {messages} and {text} (docs/data.md lists all)",
            remedy="unknown-layout",
            mapping=mappings.suggested(first_row),
        )
    return name


def _layout_of(row: Mapping[str, Any]) -> str | None:
    return next((name for name, layout in _LAYOUTS.items() if layout.fits(row)), None)


def _layout_again(row: Mapping[str, Any], known: dict[Any, str | None]) -> str | None:
    """`_layout_of`, which a row without lists and objects shares with all rows of the same keys and types."""
    kinds = tuple(map(type, row.values()))
    if list in kinds or dict in kinds:
        return _layout_of(row)
    shape = (tuple(row), kinds)
    if shape not in known:
        known[shape] = _layout_of(row)
    return known[shape]
