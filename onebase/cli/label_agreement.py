"""`onebase label agreement`: how far people agree, and how reliable each of them is."""

from __future__ import annotations

from onebase.cli.label_project import load, named


def agreement(project: str, /, *, json: bool = False) -> None:
    """Show how far people agree, how reliable each of them is, and what they disagree on most.

    Args:
        project: A PROJECT.yaml, or the database: a URL or a path that ends in .db.
        json: Print one JSON object.
    """
    load("onebase.labeling.agreement_tables").run(url=named(project).url, as_json=json)
