"""Finds the ratings of several annotators in the rows of a file, and says how far they agree."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import combinations
from typing import Any

import numpy

from onebase.quality.agreement import (
    Level,
    Ratings,
    agreement_sums,
    coincidences,
    confusions,
    fleiss_sums,
    kendalls_w,
    of_agreement,
    of_alpha,
    of_fleiss,
    of_kappa,
    sums_interval,
    with_interval,
)
from onebase.reporting.intervals import Interval, bootstrap_mean

_ANNOTATOR = re.compile(r"(annotator|rater|judge|labell?er)[ _-]?\d+", re.IGNORECASE)

_GIVEN = ("scores", "ratings", "rewards", "ranks", "rankings", "rank", "ranking")

_VOTES = {1.0: 1.0, 0.0: 0.0, 2.0: -1.0}
"""Votes on two answers (the first, a tie, the second) in the order of what they say."""


def ratings_in(row: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a row that may hold annotators' ratings."""
    return {key: value for key, value in row.items() if key in _GIVEN or _ANNOTATOR.fullmatch(key)}


def ratings_of(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], Ratings] | None:
    """The annotators' names and their ratings `[rows, annotators]`, from keys such as `annotator1`, `annotator2`.

    Texts (`A`, `tie`) are numbered in the order of the alphabet. Missing and null values are NaN. None if there are
    fewer than two annotators, or if they gave lists.
    """
    names = sorted({key for row in rows for key in row if _ANNOTATOR.fullmatch(key)}, key=_by_number)
    if len(names) < 2:
        return None
    given = [[row.get(name) for name in names] for row in rows]
    values = [value for line in given for value in line if value is not None]
    if not values or not all(isinstance(value, str | int | float) for value in values):
        return None
    if any(isinstance(value, str) for value in values):
        codes = {value: float(n) for n, value in enumerate(sorted(set(values), key=str))}
    else:
        codes = {value: float(value) for value in values}
    nan = float("nan")
    return names, numpy.array([[nan if v is None else codes[v] for v in line] for line in given])


def rankings_of(rows: Sequence[Mapping[str, Any]]) -> list[Ratings]:
    """For each row whose annotators graded or ranked a list of answers, a table `[answers, annotators]`.

    They stand in a key for each annotator, or in one key such as `scores` or `ranks`, as a list of lists.
    """
    found = []
    for row in rows:
        lists = [row[key] for key in sorted(row, key=_by_number) if _ANNOTATOR.fullmatch(key)]
        lists = lists or next((row[key] for key in _GIVEN if isinstance(row.get(key), list)), [])
        numbers = all(isinstance(given, list) and all(type(v) in (int, float) for v in given) for given in lists)
        if len(lists) > 1 and numbers and len({len(given) for given in lists}) == 1 and len(lists[0]) > 1:
            found.append(numpy.array(lists, dtype=float).T)
    return found


def agreement(rows: Sequence[Mapping[str, Any]], *, seed: int = 0) -> dict[str, Interval]:
    """Each coefficient of agreement with its 95 % interval over rows; empty if the rows have no two annotators.

    Votes on pairs (0 a tie, 1 the first, 2 the second) are ordered first > tie > second for the ordinal coefficients.
    """
    rankings = rankings_of(rows)
    if rankings:
        each = [value for value in map(kendalls_w, rankings) if not numpy.isnan(value)]
        return {"kendalls_w (mean over rows)": bootstrap_mean(each, seed=seed)} if each else {}
    found = ratings_of(rows)
    if found is None:
        return {}
    names, ratings = found
    values = set(ratings[~numpy.isnan(ratings)].tolist())
    ordered = ratings
    if values <= set(_VOTES) and 2.0 in values:
        ordered = numpy.vectorize(lambda vote: _VOTES.get(vote, vote), otypes=[float])(ratings)

    def alpha(level: Level) -> Interval:
        rated = ratings if level == "nominal" else ordered
        scale = numpy.unique(rated[~numpy.isnan(rated)])
        return sums_interval(partial(of_alpha, values=scale, level=level), coincidences(rated, scale), seed=seed)

    scale = numpy.array(sorted(values))
    figures = {
        "pairwise_agreement": sums_interval(of_agreement, agreement_sums(ratings), seed=seed),
        "krippendorff_alpha_nominal": alpha("nominal"),
        "krippendorff_alpha_ordinal": alpha("ordinal"),
        "krippendorff_alpha_interval": alpha("interval"),
        "fleiss_kappa": sums_interval(of_fleiss, fleiss_sums(ratings), seed=seed),
        "kendalls_w": with_interval(kendalls_w, ordered, seed=seed),
    }
    for a, b in combinations(range(len(names)), 2):
        seen = confusions(ratings[:, [a, b]], scale)
        figures[f"cohens_kappa {names[a]}, {names[b]}"] = sums_interval(of_kappa, seen, seed=seed)
    return figures


def _by_number(name: str) -> tuple[str, int]:
    digits = re.search(r"\d+", name)
    return re.sub(r"\d+", "", name), int(digits[0]) if digits else 0
