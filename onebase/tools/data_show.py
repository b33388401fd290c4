"""`onebase data show`: a row of a data file as the model sees it, in the terminal and as a page."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.rule import Rule
from rich.text import Text

from onebase.data.chat import ChatFormat, TrainOn, chat_format
from onebase.data.fit import Cuts, Limits, Truncation, fit_row
from onebase.data.prepare import with_system
from onebase.data.selection import drop_unusable
from onebase.data.view import CLOSED, OPENED, Piece, Scored, View, view_of, visible
from onebase.errors import ConfigError, DataError
from onebase.models.base_config import UNLIMITED, context_length, read_config
from onebase.models.loading import load_tokenizer
from onebase.models.role_card import CARD_FILE, TEMPLATE_FILE, check_model_name, read_card
from onebase.reading.databases import name_of
from onebase.reading.formats import read_rows
from onebase.records import Example, Prompt, Row
from onebase.shown import number_of, shown
from onebase.tools.example_page import write_page

NO_LIMIT = 2**31
"""Positions of a tokenizer without a model."""
ASCII = str.maketrans({OPENED: "[[", CLOSED: "]]", "↵": "\\n", "─": "-"})
"""What stands for the marks on a terminal that cannot show them."""
UNLEARNED = "bold: the row's own text  |  dim: written by the chat template"
LEGEND = f"{OPENED}learned{CLOSED}  |  {UNLEARNED}"


def run(
    *,
    file: Path,
    model: str,
    row: int = 1,
    columns: Mapping[str, str] | None = None,
    chat_template: str | None = None,
    train_on: TrainOn | Literal["score"] | None = None,
    system_prompt: str | None = None,
    max_prompt_tokens: int | None = None,
    max_completion_tokens: int | None = None,
    truncate_prompt: Truncation = "left",
    html: Path | None = None,
) -> None:
    """Prints a row as training would see it, or writes it as an HTML page.

    Args:
        train_on: `score` shows the row as a reward role reads it; None is `score` where `model` is one, and otherwise
            `completion`.

    Raises:
        ConfigError: the file has fewer rows.
        DataError: the file or the row cannot be read, or the template refuses the row.
        ModelError: there is no tokenizer, or no such template.
    """
    rows = read_rows(file, columns=columns, limit=row)
    if len(rows) < row:
        raise ConfigError(f"--row is {row}, and {shown(name_of(file))} has {number_of(len(rows), 'row')}")
    if not Path(model).is_dir():
        check_model_name(model, key="--model")
    tokenizer = load_tokenizer(model)
    chat = chat_format(tokenizer, chat_template or _saved_template(model))
    context = _context(model, tokenizer.model_max_length)
    limits = Limits(context, max_prompt_tokens, max_completion_tokens, truncate_prompt)
    (chosen,) = with_system([rows[row - 1]], system_prompt)
    scored = _pooling(model, train_on)
    learned: TrainOn = "completion" if train_on is None or train_on == "score" else train_on
    example, notes = _fitted(chosen, chat, Cuts(limits), learned)
    facts = _facts(chosen, chat, model, "score" if scored else learned, context)
    if example is None:
        raise DataError(f"{chosen.place}: {'; '.join(notes)}")
    view = view_of(example, chat, scored=scored)
    if html is not None:
        write_page(html, view, facts, notes)
        print(html)
        return
    show(view, facts, notes)


def _fitted(row: Row, chat: ChatFormat, cuts: Cuts, train_on: TrainOn) -> tuple[Example | Prompt | None, list[str]]:
    """The row's example as training makes it, or its prompt if it has no answer; and what happened to it on the way."""
    notes = [f"training leaves this row out: {reason}" for reason in drop_unusable([row], max_share=1.0)[1]]
    if not row.answers:
        notes.append("the row has no answer: it can be sampled from, and is nothing to learn from")
        return Prompt(chat.encode_prompt(row.messages, tools=row.tools, prefix=row.prefix, place=row.place), row), notes
    whole = chat.encode_example(row, train_on=train_on)
    example = fit_row(row, chat, cuts, train_on=train_on)
    happened = {
        f"the prompt is cut, its oldest turns are left out: {cuts.reason}": cuts.turns,
        f"the prompt is cut, the beginning of its last user turn is left out: {cuts.reason}": cuts.tokens,
        f"the prompt has {number_of(len(whole.prompt_ids), 'token')}, so training leaves this row out: "
        f"{cuts.reason}": cuts.dropped,
        "answers are cut at the end, before their end token": cuts.completions,
        "the chat template leaves out parts of earlier answers (thinking, say)": cuts.rewritten,
    }
    notes += [note for note, places in happened.items() if places]
    if example is not None and example.num_tokens < whole.num_tokens:
        notes.append(f"{whole.num_tokens - example.num_tokens} of the row's {whole.num_tokens} tokens are cut")
    return example, notes


def _pooling(model: str, train_on: str | None) -> Scored | None:
    """Where the score of an answer is read, if the row is shown as a reward role reads it."""
    card = read_card(model) if (Path(model) / CARD_FILE).is_file() else None
    role = card is not None and card.kind == "reward"
    if train_on == "score" or (train_on is None and role):
        return card.pooling if card is not None and role else "last"
    return None


def _saved_template(model: str) -> str | None:
    """The template that a role was trained with, if the folder is a role's."""
    path = Path(model) / TEMPLATE_FILE
    return str(path) if (Path(model) / CARD_FILE).is_file() and path.is_file() else None


def _context(model: str, of_tokenizer: int) -> int:
    """The model's positions; those its tokenizer names if the folder has no model, or no limit."""
    if (Path(model) / CARD_FILE).is_file():
        model = read_card(model).base
    if (Path(model) / "config.json").is_file() or not Path(model).is_dir():
        return context_length(read_config(model))
    return int(of_tokenizer) if of_tokenizer < UNLIMITED else NO_LIMIT


def _facts(row: Row, chat: ChatFormat, model: str, train_on: str, context: int) -> list[tuple[str, str]]:
    kinds = [f"{len(row.messages)} turn{'s' * (len(row.messages) != 1)}" if row.messages else "plain text"]
    kinds += [f"{number_of(len(row.tools), 'tool')}"] * bool(row.tools)
    kinds += [f"{len(row.answers)} answer{'s' * (len(row.answers) != 1)}"]
    template = "none: plain text" if not row.messages else chat.name or "the tokenizer's own"
    return [
        ("row", f"{shown(row.place)}, read as {row.layout}: {', '.join(kinds)}"),
        ("model", f"{shown(model)}{f', {context} positions' if context < NO_LIMIT else ''}"),
        ("template", shown(template)),
        ("train on", train_on),
    ]


def show(view: View, facts: Sequence[tuple[str, str]], notes: Sequence[str]) -> None:
    """Prints the example. What is learned stands in brackets, so it can be told without colours."""
    console = Console(file=sys.stdout, highlight=False, soft_wrap=not sys.stdout.isatty())
    for name, fact in facts:
        console.print(Text.assemble((f"{name:<10}", "dim"), fact))
    console.print(Text(f"{view.summary}"))
    for note in notes:
        console.print(Text(f"note: {shown(note)}", style="yellow"))
    console.print(Text(_marks(console, LEGEND if not view.scored else UNLEARNED), style="dim"))
    _section(console, f"prompt, {number_of(view.num_prompt_tokens, 'token')}", view.prompt)
    for k, branch in enumerate(view.branches, start=1):
        end = "ends" if branch.ends else "does not end"
        _section(console, f"answer {k} of {len(view.branches)}, {branch.told}, {end}", branch.pieces)


def _section(console: Console, title: str, pieces: Sequence[Piece]) -> None:
    console.print(Rule(title, align="left", characters=_marks(console, "─"), style="dim"))
    text, inside = Text(), False
    for number, piece in enumerate(pieces):
        if piece.learned != inside:
            text.append(_marks(console, CLOSED if inside else OPENED), style="bold green")
            inside = piece.learned
        text.append(_marks(console, visible(piece.text)), style=_style(piece, number))
    text.append(_marks(console, CLOSED if inside else ""), style="bold green")
    console.print(text)


def _marks(console: Console, text: str) -> str:
    return text if console.encoding.startswith("utf") else text.translate(ASCII)


def _style(piece: Piece, number: int) -> str:
    if piece.ends:
        return "bold reverse green"
    weight = "bold" if piece.said else "dim"
    if not piece.learned:
        return weight if piece.said else "dim"
    # Neighbouring tokens alternate, so that each can be told.
    return f"{weight} {('green', 'bright_green')[number % 2]}"
