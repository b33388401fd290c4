"""One example on one HTML page, in one file without scripts or network access."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

import onebase.reporting.page
from onebase.data.view import Piece, View
from onebase.files import write_atomically
from onebase.shown import number_of, shown

LEGEND = (
    '<span><span class="t said">text</span> the row\'s own</span>'
    "<span><span class=t>text</span> written by the chat template</span>"
    '<span><span class="t learned ends">end</span> the end token</span>'
    "<span class=soft>A token's id shows when you point at it.</span></p>"
)
LEARNED = '<span><span class="t said learned">learned</span> counts in the loss</span>'


def write_page(path: Path, view: View, facts: Sequence[tuple[str, str]], notes: Sequence[str]) -> None:
    """Writes the page; what was there is replaced as a whole."""
    css = [
        Path(onebase.reporting.page.__file__).with_name("page.css").read_text(encoding="utf-8"),
        Path(__file__).with_name("example.css").read_text(encoding="utf-8"),
    ]
    title = escape(shown(Path(view.row.place).name))
    told = "".join(f"<dt>{escape(name)}<dd>{escape(fact)}" for name, fact in facts)
    sections = [
        f"<h1>{title}</h1>",
        f"<p class=result>{escape(view.summary[0].upper() + view.summary[1:])}</p>",
        f"<dl class=facts>{told}</dl>",
        *(f"<p class=out>{escape(shown(note))}</p>" for note in notes),
        f"<p class=legend>{LEARNED * (view.scored is None)}{LEGEND}",
        f"<h2>Prompt <small>{number_of(view.num_prompt_tokens, 'token')}, shared by all answers</small></h2>",
        _tokens(view.prompt),
        "<div class=tree>" * bool(view.branches),
    ]
    for k, branch in enumerate(view.branches, start=1):
        verb = "scored" if branch.scored else "learned"
        end = f"its end token is {verb}" if branch.ends else "it has no end token"
        sections += [f"<h2>Answer {k} <small>{branch.told}, {end}</small></h2>", _tokens(branch.pieces)]
    sections.append("</div>" * bool(view.branches))
    page = (
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>\n{''.join(css)}</style></head><body>\n"
    )
    write_atomically(path, page + "\n".join(filter(None, sections)) + "\n</body></html>\n")


def _tokens(pieces: Sequence[Piece]) -> str:
    return f"<div class=tokens dir=auto>{''.join(map(_token, pieces))}</div>"


def _token(piece: Piece) -> str:
    flags = {"said": piece.said, "learned": piece.learned, "ends": piece.ends}
    kinds = " ".join(["t", *(name for name, is_so in flags.items() if is_so)])
    text = escape(shown(piece.text, lines=True)).replace("\n", "<span class=nl>↵</span>\n")
    ids = ", ".join(map(str, piece.ids))
    return f'<span class="{kinds}" title="{ids}">{text}</span>'
