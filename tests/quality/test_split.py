"""Splits by prompt: deterministic by content, near the share asked for, and without a prompt on both sides."""

from __future__ import annotations

import random

import pytest

from onebase.errors import DataError
from onebase.quality.near_duplicates import runs_in
from onebase.quality.split import Split, Splitter
from onebase.quality.texts import jaccard, normalised, prompt_of
from onebase.records import Message, Row

WORDS = "stone river small tree house under over the cat dog sees likes old red many paper cloud seven minute".split()


def row(*turns: str, answer: str = "yes") -> Row:
    roles = ("user", "assistant")
    return Row(tuple(Message(roles[n % 2], turn) for n, turn in enumerate(turns)), (answer,))


def rows(seed: int, count: int = 200) -> list[Row]:
    """Rows of which many share a prompt, or one that is edited a little."""
    generator = random.Random(seed)
    prompts = [" ".join(generator.choices(WORDS, k=30)) for _ in range(count // 4)]
    found = []
    for n in range(count):
        prompt = generator.choice(prompts)
        edit = generator.choice([prompt, prompt.upper(), prompt + " ", prompt.replace("cat", "cats", 1)])
        found.append(row(edit, answer=str(n)))
    return found


def split(given: list[Row], fraction: float = 0.2, seed: int = 0) -> Split:
    splitter = Splitter()
    for own in given:
        splitter.add(own)
    return splitter.split(fraction, seed=seed)


@pytest.mark.parametrize("seed", range(3))
def test_no_prompt_is_on_both_sides_nor_one_like_it(seed: int) -> None:
    given = rows(seed)
    found = split(given)
    sides = [
        {normalised(prompt_of(own)) for own, tested in zip(given, found.test, strict=True) if tested is side}
        for side in (False, True)
    ]
    assert not sides[0] & sides[1] and tuple(map(len, sides)) == found.prompts
    train, test = ([runs_in(text) for text in side] for side in sides)
    assert max(jaccard(a, b) for a in train for b in test) < 0.8
    assert abs(sum(found.test) / len(given) - 0.2) < 0.05


def test_the_same_rows_are_tested_on_whatever_their_order() -> None:
    given = rows(5)
    order = list(range(len(given)))
    random.Random(1).shuffle(order)
    found, shuffled = split(given), split([given[n] for n in order])
    assert {n for n, tested in zip(order, shuffled.test, strict=True) if tested} == {
        n for n, tested in enumerate(found.test) if tested
    }


def test_another_seed_chooses_other_prompts() -> None:
    given = rows(5)
    assert split(given, seed=1).test != split(given, seed=2).test


def test_a_conversation_and_its_continuation_stay_together() -> None:
    first, second = "How do I plant a tree by the river?", "And which tree likes the shade of a house?"
    given = [row(first), row(first, "Dig a hole.", second), *(row(f"{word} {n}?") for n, word in enumerate(WORDS))]
    sides = {tuple(split(given, seed=seed).test[:2]) for seed in range(30)}
    assert sides == {(True, True), (False, False)}


def test_each_side_has_a_prompt_and_one_prompt_cannot_be_split() -> None:
    two = [row("What is a tree?"), row("Who likes the old red house?")]
    for fraction in (0.01, 0.99):
        assert sorted(split(two, fraction).test) == [False, True]
    with pytest.raises(
        DataError, match="the 3 rows have 2 different prompts, which are all alike: there is nothing to"
    ):
        split([row("The same old question?"), row("The same old  question?"), row("The same old question!")])


def test_texts_are_split_by_themselves() -> None:
    texts = [Row((), (" ".join(random.Random(n).choices(WORDS, k=20)),)) for n in range(20)]
    found = split([*texts, texts[0]], 0.3)
    assert found.test[0] == found.test[-1] and found.groups == 20 and found.largest == 2
