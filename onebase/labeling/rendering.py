"""Prompts and answers as HTML: Markdown and code, and nothing that runs, loads or pretends to be the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from html import escape
from typing import Any

import nh3
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markupsafe import Markup

LONGEST_MARKDOWN = 50_000
"""Characters read as Markdown; a longer text is shown as it is written."""
LONGEST_SHOWN = 100_000
"""Characters shown on the page; all of a longer text is a link away."""
TAGS = {"p", "br", "hr", "strong", "em", "s", "code", "pre", "blockquote", "ul", "ol", "li", "a"}
TAGS |= {"h4", "h5", "h6", "table", "thead", "tbody", "tr", "th", "td", "span"}
ATTRIBUTES = {"a": {"href", "title"}, "ol": {"start"}, "span": {"class"}, "pre": {"tabindex"}}


@dataclass(frozen=True, slots=True)
class Shown:
    """A text as a page shows it."""

    html: Markup
    length: int
    """Characters of the whole text."""
    cut: bool
    """Whether only its beginning is shown."""


@lru_cache(maxsize=256)
def shown_text(text: str) -> Shown:
    """The text as HTML that is safe in a page: Markdown up to 50,000 characters, plain up to 100,000, then cut."""
    text = encodable(text)
    if len(text) <= LONGEST_MARKDOWN:
        return Shown(Markup(_clean(_MARKDOWN.render(text))), len(text), cut=False)
    begin = text[:LONGEST_SHOWN]
    return Shown(Markup(f'<p class="as-written">{escape(begin)}</p>'), len(text), cut=len(begin) < len(text))


def encodable(text: str) -> str:
    """The text without what no page can hold: halves of surrogate pairs."""
    return text.encode("utf-8", "replace").decode()


def _clean(html: str) -> str:
    return nh3.clean(
        html,
        tags=TAGS,
        attributes=ATTRIBUTES,
        url_schemes={"http", "https", "mailto"},
        link_rel="noopener noreferrer nofollow",
        set_tag_attribute_values={"a": {"target": "_blank"}, "pre": {"tabindex": "0"}},
        generic_attribute_prefixes=set(),
    )


def _heading(tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    """A heading below those of the page, of which an answer's are no part."""
    token = tokens[index]
    return f"<{'/' if token.nesting < 0 else ''}h{min(6, 3 + int(token.tag[1:]))}>"


def _image(tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    """The words for an image, with its address: loading it would tell a stranger who reads what."""
    token = tokens[index]
    words = "".join(child.content for child in token.children or ()) or "?"
    return f'<span class="image">[{escape(words)}: {escape(str(token.attrs.get("src", "")))}]</span>'


def _markdown() -> MarkdownIt:
    made = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
    assert isinstance(made.renderer, RendererHTML)
    rules: dict[str, Any] = made.renderer.rules
    rules |= {"heading_open": _heading, "heading_close": _heading, "image": _image}
    return made


_MARKDOWN = _markdown()
