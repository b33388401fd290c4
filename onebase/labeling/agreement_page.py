"""The report on agreement as part of a page: the template `pages/agreement.html`, no script."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from onebase.labeling.agreement import Figure, Report
from onebase.labeling.agreement_words import say, shown_figure
from onebase.labeling.words import Language

PEOPLE_FIGURES = ("others", "bradley_terry", "dawid_skene", "gold", "skipped", "all_bad")
MOST_PROMPT = 300
"""Characters of a prompt beside a dispute."""

_ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).with_name("pages")), autoescape=True, undefined=StrictUndefined
)


def fragment(report: Report, language: Language) -> Markup:
    """The report as HTML to stand below a page's first heading; names, notes and prompts are escaped."""

    def figure(found: Figure) -> str:
        text = shown_figure(found, language)
        # A line may break before an interval's bracket, not inside.
        return text if found.interval is None else text.replace(", ", ",\N{NO-BREAK SPACE}")

    empty = ((name, getattr(one, name)) for name in PEOPLE_FIGURES for one in report.people)
    reasons = dict.fromkeys(
        f"{say(name, language)}: {figure(found)}" for name, found in empty if found.interval is None
    )
    html = _ENVIRONMENT.get_template("agreement.html").render(
        report=report,
        say=partial(say, language=language),
        figure=figure,
        people_figures=PEOPLE_FIGURES,
        reasons=reasons,
        most_prompt=MOST_PROMPT,
    )
    return Markup(html)
