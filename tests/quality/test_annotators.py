"""Annotators found in rows, and their agreement."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy
import pytest

from onebase.quality.agreement import krippendorff_alpha
from onebase.quality.annotators import agreement, rankings_of, ratings_of


def test_ratings_are_read_from_the_annotators_keys_in_the_order_of_their_numbers() -> None:
    rows = [{"prompt": "?", "annotator10": 1, "annotator2": 2, "annotator1": None}, {"annotator1": 0, "annotator2": 1}]
    found = ratings_of(rows)
    assert found is not None
    names, ratings = found
    assert names == ["annotator1", "annotator2", "annotator10"]
    numpy.testing.assert_equal(ratings, [[float("nan"), 2, 1], [0, 1, float("nan")]])


def test_texts_are_numbered_and_other_rows_have_no_annotators() -> None:
    found = ratings_of([{"rater_1": "tie", "rater_2": "A"}, {"rater_1": "A", "rater_2": "A"}])
    assert found is not None and found[1].tolist() == [[1, 0], [0, 0]]
    for rows in ([{"annotator1": 1}], [{"rating": 1, "annotators": 2}], [{"annotator1": {}, "annotator2": {}}], []):
        assert ratings_of(rows) is None and agreement(rows) == {}


def test_a_tie_lies_between_the_two_answers() -> None:
    rows = [{"annotator1": a, "annotator2": b} for a, b in [(1, 1), (2, 2), (0, 0), (1, 0), (2, 0), (1, 0), (2, 2)]]
    ordered = numpy.array([[1, 1], [-1, -1], [0, 0], [1, 0], [-1, 0], [1, 0], [-1, -1]], dtype=float)
    found = agreement(rows)
    assert found["krippendorff_alpha_ordinal"].mean == krippendorff_alpha(ordered, "ordinal")
    assert found["krippendorff_alpha_ordinal"].mean != krippendorff_alpha(ordered % 3, "ordinal")
    grades = [{"annotator1": a + 1, "annotator2": b + 1} for a, b in [(1, 1), (2, 2), (0, 0), (3, 0)]]
    levels = agreement(grades)
    assert levels["krippendorff_alpha_ordinal"].mean == pytest.approx(
        krippendorff_alpha(numpy.array([[2, 2], [3, 3], [1, 1], [4, 1]], dtype=float), "ordinal")
    )


def test_lists_of_grades_or_ranks_have_a_mean_w() -> None:
    rows = [
        {"annotator_1": [3, 2, 1], "annotator_2": [3, 2, 1]},
        {"annotator_1": [3, 2, 1], "annotator_2": [1, 2, 3]},
    ]
    assert [table.shape for table in rankings_of(rows)] == [(3, 2), (3, 2)]
    assert agreement(rows)["kendalls_w (mean over rows)"].mean == 0.5
    together = [{"ranks": [[1, 2, 3], [1, 2, 3]]}, {"ranks": [[1, 2, 3], [3, 2, 1]]}]
    assert agreement(together) == agreement(rows)
    assert not rankings_of([{"scores": [1, 2]}, {"scores": [[1], [2]]}, {"ranks": [[1, 2], [1, 2, 3]]}])


def test_the_annotators_of_pandalm_agree_as_their_paper_says(shared: Path) -> None:
    rows = json.loads(gzip.decompress((shared / "data" / "pandalm" / "testset-v1.json.gz").read_bytes()))
    found = agreement(rows)
    assert len(rows) == 999 and len(found) == 9
    # Wang et al. 2024, PandaLM: Cohen's kappas of 0.85, 0.86 and 0.88.
    kappas = sorted(round(interval.mean, 2) for name, interval in found.items() if name.startswith("cohens"))
    assert kappas == [0.85, 0.86, 0.88]
    assert all(interval.low <= interval.mean <= interval.high for interval in found.values())
