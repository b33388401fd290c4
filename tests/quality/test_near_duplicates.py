"""Near-duplicates: what is found equals what comparing all pairs finds."""

from __future__ import annotations

import random

import numpy
import pytest

from onebase.quality import near_duplicates as module
from onebase.quality.near_duplicates import (
    NUM_HASHES,
    Index,
    bands_for,
    near_duplicates,
    runs_in,
    signature,
    signature_of,
    similar_pairs,
)
from onebase.quality.texts import jaccard

ENGLISH = "the a cat dog sees likes old red house under over with many small trees and rivers of stone".split()
CHINESE = "天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏闰余成岁律吕调阳"


def texts(seed: int, *, chinese: bool = False) -> list[str]:
    """Forty texts, and three edited copies of each of the first ten, from hardly changed to hardly alike."""
    generator = random.Random(seed)
    words, glue = (list(CHINESE), "") if chinese else (ENGLISH, " ")
    found = [[generator.choice(words) for _ in range(60)] for _ in range(40)]
    for text in found[:10]:
        for share in (0.01, 0.05, 0.2):
            found.append([generator.choice(words) if generator.random() < share else word for word in text])
    return [glue.join(text) for text in found]


def brute_force(parts: list[list[str]], threshold: float) -> set[int]:
    """Each entry like an earlier one that was kept, comparing every pair."""
    sets = [[runs_in(part) for part in own] for own in parts]
    kept: list[int] = []
    for i, own in enumerate(sets):
        alike = (len(own) == len(sets[j]) and min(map(jaccard, own, sets[j])) >= threshold for j in kept)
        if not any(alike):
            kept.append(i)
    return set(range(len(parts))) - set(kept)


@pytest.mark.parametrize("chinese", [False, True])
@pytest.mark.parametrize("threshold", [0.5, 0.8, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_what_is_found_is_what_comparing_all_pairs_finds(seed: int, threshold: float, chinese: bool) -> None:
    every = [[text] for text in texts(seed, chinese=chinese)]
    signatures = numpy.stack([signature_of(parts) for parts in every])
    found = near_duplicates(every, signatures, threshold)
    assert set(found) == brute_force(every, threshold)
    for i, twin in found.items():
        assert twin.index < i and twin.index not in found
        assert twin.similarity == jaccard(runs_in(every[i][0]), runs_in(every[twin.index][0])) >= threshold


def test_a_signature_estimates_the_similarity_of_the_sets() -> None:
    every = texts(0)
    errors = []
    for a, b in zip(every[:10], every[40::3], strict=False):
        estimate = float((signature_of([a]) == signature_of([b])).mean())
        errors.append(estimate - jaccard(runs_in(a), runs_in(b)))
    assert abs(float(numpy.mean(errors))) < 0.03 and float(numpy.std(errors)) < 0.06


def test_a_signature_depends_on_the_set_alone() -> None:
    runs = runs_in(" ".join(ENGLISH * 200))  # more than are hashed at once
    assert len(runs) < 1024 and (signature(numpy.tile(runs, 30)) == signature(runs[::-1])).all()
    assert (signature(numpy.zeros(0, numpy.uint64)) == 0xFFFFFFFF).all()


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8, 0.9, 1.0])
def test_bands_find_a_pair_at_the_threshold_99_times_in_100(threshold: float) -> None:
    bands, rows = bands_for(threshold)
    assert bands * rows <= NUM_HASHES
    assert 1 - (1 - threshold**rows) ** bands >= 0.99
    assert rows == 16 or 1 - (1 - threshold ** (rows + 1)) ** (NUM_HASHES // (rows + 1)) < 0.99


def test_answers_to_one_long_prompt_are_not_duplicates() -> None:
    prompt = " ".join(texts(0)[:5])
    parts = [
        [prompt, "The first answer is no."],
        [prompt, "Another one says yes!"],
        [prompt, "The first answer is no!"],
    ]
    signatures = numpy.stack([signature_of(own) for own in parts])
    assert set(near_duplicates(parts, signatures, 0.8)) == {2}


def test_rows_with_other_verdicts_or_another_number_of_answers_are_not_duplicates() -> None:
    text = texts(0)[0]
    parts = [[text, text], [text, text], [text, text, text]]
    signatures = numpy.stack([signature_of(own) for own in parts])
    assert set(near_duplicates(parts, signatures, 0.8)) == {1}
    assert not near_duplicates(parts, signatures, 0.8, verdicts=["4", "5", "4"])


def test_pairs_join_all_that_are_alike() -> None:
    every = texts(3)
    signatures = numpy.stack([signature_of([text]) for text in every])
    found = set(similar_pairs(every, signatures, 0.8))
    expected = {
        (i, k)
        for k in range(len(every))
        for i in range(k)
        if jaccard(runs_in(every[i]), runs_in(every[k])) >= 0.8
    }  # fmt: skip
    assert found == expected and expected


def test_an_index_finds_the_most_similar_text() -> None:
    every = texts(4)
    index = Index(every[:40], 0.8)
    for text in every:
        similar = [jaccard(runs_in(text), runs_in(other)) for other in every[:40]]
        found = index.nearest(text)
        if max(similar) >= 0.8:
            assert found is not None and found.index == int(numpy.argmax(similar)) and found.similarity == max(similar)
        else:
            assert found is None


def shared_instruction(count: int) -> list[list[str]]:
    """Texts that share two thirds, as prompts with one instruction do, and one that repeats the first."""
    generator = random.Random(0)
    instruction = " ".join(generator.choices(ENGLISH, k=300))
    words = ["".join(generator.choices("abcdefghijklmnop", k=7)) for _ in range(400)]
    found = [f"{instruction} {' '.join(generator.choices(words, k=25))}" for _ in range(count)]
    return [[text] for text in [*found, found[0] + "!"]]


def test_a_shared_instruction_takes_no_quadratic_time(monkeypatch: pytest.MonkeyPatch) -> None:
    every = shared_instruction(400)
    signatures = numpy.stack([signature_of(parts) for parts in every])
    assert min(jaccard(runs_in(every[0][0]), runs_in(other[0])) for other in every[1:30]) > 0.5
    compared: list[tuple[int, int]] = []
    real = module._Sets.similarity

    def counted(self: module._Sets, i: int, j: int, threshold: float) -> float:
        compared.append((i, j))
        return real(self, i, j, threshold)

    monkeypatch.setattr(module._Sets, "similarity", counted)
    monkeypatch.setattr(module, "MOST_COMPARED", 5)
    found = near_duplicates(every, signatures, 0.8)
    assert list(found) == [400] and found[400].index == 0  # the twin comes first, as its signature agrees most
    assert len(every) < len(compared) <= 5 * len(every)


def test_candidates_come_from_the_rarest_bands_and_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_NEAR", 4)
    assert module._from_rarest([[1, 2, 3, 4, 5, 6], [0], [2, 7]]) == [0, 2, 6, 7]
    assert module._from_rarest([[1], [1, 2], [1, 2, 3]]) == [1, 2, 3] and module._from_rarest([]) == []


def test_every_pair_is_given_once() -> None:
    every = [text for (text,) in shared_instruction(20)]
    every = [*every, *(text + "?" for text in every)]
    signatures = numpy.stack([signature_of([text]) for text in every])
    pairs = list(similar_pairs(every, signatures, 0.8))
    assert len(pairs) == len(set(pairs)) and all(j < i for j, i in pairs)
    assert {(n, n + 21) for n in range(21)} <= set(pairs)
