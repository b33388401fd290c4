"""The demo's world: the gold score of every kind of answer, and the rows made from it."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import combinations
from random import Random
from statistics import mean

import pytest

from onebase.demo.grammar import (
    CLOSINGS,
    FACTS,
    OPENINGS,
    QUESTIONS,
    RUDE_REMARKS,
    THINGS,
    VALUES,
    Question,
    best_answer,
    gold_reward,
    gold_score,
    preference_rows,
    pretraining_texts,
    prompt_rows,
    sft_rows,
)
from onebase.errors import DataError
from onebase.records import Row

QUESTION = "What does the cat eat?"


def parts(asked: Question) -> tuple[str, str, str]:
    """Returns the best answer's opening, fact and closing, spaces included."""
    best, opening, closing = best_answer(asked.text), OPENINGS[asked.language][0], CLOSINGS[asked.language][0]
    return opening, best.removeprefix(opening).removesuffix(closing), closing


def in_other_language(asked: Question) -> str:
    twin = next(
        question.text
        for question in QUESTIONS.values()
        if question.language != asked.language
        and (question.thing, question.attribute, question.phrasing) == (asked.thing, asked.attribute, asked.phrasing)
    )
    return best_answer(twin)


def with_wrong_value(asked: Question) -> str:
    value = FACTS[asked.thing, asked.attribute]
    wrong = next(name for name in VALUES[asked.attribute] if name != value)
    if asked.language == "zh":
        value, wrong = VALUES[asked.attribute][value], VALUES[asked.attribute][wrong]
    return best_answer(asked.text).replace(value, wrong)


def about_another_thing(asked: Question) -> str:
    thing, other = asked.thing, next(name for name in THINGS if name != asked.thing)
    if asked.language == "zh":
        thing, other = THINGS[thing], THINGS[other]
    return best_answer(asked.text).replace(thing, other)


# How an answer can be worse than the best one, and the most it may then score.
WORSE: dict[str, tuple[Callable[[Question], str], float]] = {
    "without opening": (lambda asked: "".join(parts(asked)[1:]), 0.9),
    "without closing": (lambda asked: "".join(parts(asked)[:2]), 0.9),
    "bare fact": (lambda asked: parts(asked)[1], 0.8),
    "other language": (in_other_language, 0.8),
    "wrong value": (with_wrong_value, 0.5),
    "another thing": (about_another_thing, 0.4),
    "rude": (lambda asked: "".join(parts(asked)[:2]) + RUDE_REMARKS[asked.language][0] + parts(asked)[2], 0.7),
    "rude in the other language": (lambda asked: best_answer(asked.text) + RUDE_REMARKS["zh"][1], 0.7),
    "fact twice": (lambda asked: parts(asked)[0] + parts(asked)[1] * 2 + parts(asked)[2], 0.7),
    "said twice": (lambda asked: best_answer(asked.text) * 2, 0.7),
    "closing twice": (lambda asked: best_answer(asked.text) + CLOSINGS[asked.language][1], 0.7),
    "said in both languages": (lambda asked: best_answer(asked.text) + in_other_language(asked), 0.6),
    "right and wrong": (lambda asked: best_answer(asked.text) + with_wrong_value(asked), 0.5),
    "goes on": (lambda asked: best_answer(asked.text) + "\n\nHuman: " + asked.text, 0.9),
    "junk behind": (lambda asked: best_answer(asked.text) + " ...", 0.9),
    "junk between": (lambda asked: "%@,1 ".join(parts(asked)), 0.5),
    "no end mark": (lambda asked: best_answer(asked.text)[:-1], 0.9),
    "opening and closing alone": (lambda asked: parts(asked)[0] + parts(asked)[2], 0.2),
    "looping": (lambda asked: best_answer(asked.text) + "day day day day", 0.7),
    "the question": (lambda asked: asked.text, 0.0),
    "bare value": (lambda asked: FACTS[asked.thing, asked.attribute], 0.0),
    "every value": (lambda asked: " ".join(VALUES[asked.attribute]), 0.0),
}


@pytest.mark.parametrize("text", QUESTIONS)
def test_the_best_answer_scores_one_and_each_of_its_beginnings_less(text: str) -> None:
    best = best_answer(text)
    assert gold_score(text, best) == 1.0
    assert gold_score(text, f"\n {best}\n") == 1.0
    assert all(gold_score(text, best[:length]) < 1 for length in range(len(best)))


@pytest.mark.parametrize("how", WORSE)
def test_a_worse_answer_scores_less_for_every_question(how: str) -> None:
    make, most = WORSE[how]
    for asked in QUESTIONS.values():
        assert gold_score(asked.text, make(asked)) <= most, (asked.text, make(asked))


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("Sure! The cat eats fish. Hope that helps!", 1.0),
        ("The food of the cat is fish.", 0.8),
        ("the cat eats fish", 0.7),
        ("The cat eats meat.", 0.3),
        ("The cat eats fish. The cat eats meat.", 0.0),
        ("The cat eats fish. The cat eats fish.", 0.5),
        ("The cat eats fish. The cat lives in the house.", 0.7),
        ("The cat eats fish. The cat lives in the cave.", 0.2),
        ("The cat eats fish. You know nothing.", 0.5),
        ("The cat eats fish. The cat eats fish. You know nothing.", 0.3),
        ("The dog lives in the house.", 0.2),
        ("猫吃鱼。", 0.6),
        ("好的！猫吃鱼。祝你开心！", 0.8),
        ("Sure! 猫吃肉。", 0.2),
        ("Sure!", 0.1),
    ],
)
def test_the_gold_score_adds_up_by_hand(answer: str, score: float) -> None:
    assert gold_score(QUESTION, answer) == score


@pytest.mark.parametrize("junk", ["", " \n", "...", "!!!!", "\ufffd\x00", "cat" * 4000, "fish fish fish", "好" * 50])
def test_junk_scores_nothing(junk: str) -> None:
    assert gold_score(QUESTION, junk) == 0


def test_random_text_of_the_world_is_scored_within_bounds_and_almost_never_well() -> None:
    rng = Random(0)
    words = sorted({word for text in pretraining_texts(seed=0, count=200) for word in re.findall(r"\w+|\W", text)})
    scores = [gold_score(QUESTION, "".join(rng.choices(words, k=rng.randint(1, 40)))) for _ in range(500)]
    assert all(0 <= score <= 1 for score in scores)
    assert mean(scores) < 0.05


@pytest.mark.parametrize("repeats", range(2, 8))
def test_saying_more_never_pays(repeats: int) -> None:
    fact = "The cat eats fish. "
    assert gold_score(QUESTION, fact * repeats) < gold_score(QUESTION, fact)


def test_no_name_or_value_hides_in_another_or_in_a_template() -> None:
    chinese = [*THINGS.values(), *(word for words in VALUES.values() for word in words.values())]
    assert not [(a, b) for a in chinese for b in chinese if a != b and a in b]
    english = [*THINGS, *(word for words in VALUES.values() for word in words)]
    assert len(set(english)) == len(english)
    remarks = [text for kind in (OPENINGS, CLOSINGS, RUDE_REMARKS) for texts in kind.values() for text in texts]
    assert not [word for word in chinese for text in remarks if word in text]
    assert not [word for word in english for text in remarks if re.search(rf"\b{word}\b", text)]
    for asked in QUESTIONS.values():
        assert not [word for words in VALUES.values() for word in words.values() if word in asked.text]


def test_questions_are_two_phrasings_a_language_of_each_fact() -> None:
    assert len(QUESTIONS) == len(FACTS) * 4 == 256
    assert all(value in VALUES[attribute] for (_, attribute), value in FACTS.items())


def test_a_question_outside_the_world_is_refused() -> None:
    for ask in (best_answer, lambda question: gold_score(question, "Sure!")):
        with pytest.raises(DataError, match=r"the question 'Why\?' is not one of the demo's; give one of"):
            ask("Why?")


def test_the_reward_finds_the_question_inside_a_rendered_prompt() -> None:
    rendered = ["\n\nHuman: {}\n\nAssistant:", "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"]
    for text in QUESTIONS:
        prompts = [template.format(text) for template in rendered]
        assert gold_reward(prompts, [best_answer(text), ""]) == [1.0, 0.0]


def test_the_reward_takes_the_longest_question_and_of_equals_the_last() -> None:
    asked = ["What does the lion know how to do?", "狗吃什么？"]
    prompts = ["What can the cat do? What does the lion know how to do?", "猫吃什么？\n狗吃什么？\n"]
    assert gold_reward(prompts, [best_answer(text) for text in asked]) == [1.0, 1.0]


def test_the_reward_takes_the_column_question_where_it_is_given() -> None:
    columns = {"question": [QUESTION], "language": ["en"]}
    assert gold_reward(["cut off"], [best_answer(QUESTION)], **columns) == [1.0]


def test_the_reward_refuses_a_prompt_without_a_known_question() -> None:
    with pytest.raises(DataError, match=r"the prompt 'Hello' contains no question of the demo; use the demo's"):
        gold_reward(["Hello"], ["Sure!"])


def test_the_splits_share_no_question_and_a_fifth_is_held_out() -> None:
    train, held_out = (
        {row.columns["question"] for row in prompt_rows(seed=0, count=600, split=split)}
        for split in ("train", "held_out")
    )
    assert not train & held_out
    assert train | held_out == set(QUESTIONS)
    assert 0.15 < len(held_out) / 256 < 0.25
    for language in ("en", "zh"):
        kept = {(q.thing, q.attribute) for q in QUESTIONS.values() if q.language == language and q.text in train}
        assert kept == set(FACTS)


def test_held_out_questions_are_never_trained_on_but_every_fact_is_stated() -> None:
    texts = pretraining_texts(seed=0, count=3000)
    held_out = [asked.text for asked in QUESTIONS.values() if asked.split == "held_out"]
    assert not [text for text in texts if any(question in text for question in held_out)]
    trained = {row.columns["question"] for row in [*sft_rows(seed=0, count=600), *preference_rows(seed=0, count=600)]}
    assert not trained & set(held_out)
    everything = "\n".join(texts)
    for asked in QUESTIONS.values():
        assert parts(asked)[1].strip() in everything


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_preferences_stay_in_their_split(split: str) -> None:
    rows = preference_rows(seed=0, count=100, split=split)  # type: ignore[arg-type]
    assert {QUESTIONS[row.columns["question"]].split for row in rows} == {split}


@pytest.mark.parametrize(
    "make",
    [
        lambda seed: pretraining_texts(seed=seed, count=50),
        lambda seed: sft_rows(seed=seed, count=50),
        lambda seed: prompt_rows(seed=seed, count=50, split="train"),
        lambda seed: preference_rows(seed=seed, count=50),
    ],
)
def test_what_is_made_depends_on_the_seed_alone(make: Callable[[int], list[object]]) -> None:
    assert make(3) == make(3)
    assert make(3) != make(4)
    assert len(make(3)) == 50


def test_pretraining_texts_are_many_short_and_half_in_each_language() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    texts = pretraining_texts(seed=0, count=3000)
    assert len(set(texts)) >= 2000
    chinese = [text for text in texts if re.search(r"[\u3400-\u9fff]", text)]
    assert 0.45 < len(chinese) / len(texts) < 0.65, "a dialogue may answer in the other language"
    facts = [text for text in texts if "Human:" not in text]
    assert 0.4 < len(facts) / len(texts) < 0.6
    assert not [text for text in facts if re.search(r"[\u3400-\u9fff]", text) and re.search("[A-Za-z]", text)]

    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    byte_level = tokenizers.pre_tokenizers.ByteLevel
    tokenizer.pre_tokenizer = byte_level(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=512, initial_alphabet=byte_level.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    assert max(len(tokenizer.encode(text).ids) for text in texts) <= 64


def test_pretraining_is_mostly_true() -> None:
    texts = pretraining_texts(seed=1, count=2000)
    dialogues = [re.fullmatch(r"\n\nHuman: (.*)\n\nAssistant: (.*)", text) for text in texts]
    stated = [(found[1], found[2]) for found in dialogues if found]
    assert len(stated) > 800 and all(question in QUESTIONS for question, _ in stated)
    # A quarter of the answers are evasive; nine in ten of the rest are right.
    assert 0.5 < mean(gold_score(question, answer) >= 0.3 for question, answer in stated) < 0.8


def test_annotators_are_of_mixed_quality() -> None:
    rows = sft_rows(seed=0, count=2000)
    scores = [gold_score(row.columns["question"], row.answers[0]) for row in rows]
    assert 0.3 < mean(scores) < 0.6
    assert min(scores) == 0 and max(scores) == 1
    assert 0.4 < mean(row.columns["language"] == "zh" for row in rows) < 0.6


def test_rows_say_what_was_asked_and_where_they_stand() -> None:
    rows = sft_rows(seed=0, count=20) + prompt_rows(seed=0, count=20, split="held_out")
    for index, row in enumerate(rows):
        asked = QUESTIONS[row.columns["question"]]
        assert [(message.role, message.content) for message in row.messages] == [("user", asked.text)]
        assert dict(row.columns) == {
            "question": asked.text,
            "language": asked.language,
            "thing": asked.thing,
            "attribute": asked.attribute,
        }
        assert row.place == f"demo:{index % 20}"
        assert row.grades is None and len(row.answers) == (1 if index < 20 else 0)


def graded_pairs(rows: list[Row]) -> list[tuple[float, float]]:
    """Returns (difference in gold score, difference in grade) for all pairs of answers."""
    pairs = []
    for row in rows:
        gold = [gold_score(row.columns["question"], answer) for answer in row.answers]
        for i, j in combinations(range(len(gold)), 2):
            assert row.grades is not None
            pairs.append((gold[i] - gold[j], row.grades[i] - row.grades[j]))
    return pairs


@pytest.mark.parametrize("num_answers", [2, 4])
def test_preferences_disagree_with_gold_at_a_known_rate_and_tie_only_equals(num_answers: int) -> None:
    rows = [row for row in preference_rows(seed=0, count=3000) if len(row.answers) == num_answers]
    assert len(rows) == 1500
    pairs = graded_pairs(rows)
    assert all((gold == 0) == (grade == 0) for gold, grade in pairs)
    assert 0.06 < mean(gold * grade < 0 for gold, grade in pairs if gold) < 0.15
    assert all(grade >= 0 for _, grade in pairs), "answers stand best first"


def test_a_larger_difference_in_gold_is_labelled_against_less_often() -> None:
    pairs = graded_pairs(preference_rows(seed=0, count=2000))
    close = mean(gold * grade < 0 for gold, grade in pairs if 0 < abs(gold) < 0.25)
    far = mean(gold * grade < 0 for gold, grade in pairs if abs(gold) > 0.5)
    assert far < 0.1 < close
