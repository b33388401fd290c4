"""A tiny bilingual world in which the best answer to every question is known.

The world has sixteen animals with four attributes each, in English and simplified Chinese. Every sentence comes from a
small grammar, so an answer can be parsed and its gold score computed: the result of training is measured, not judged.
All rows and texts depend on the seed alone.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Literal

from onebase.demo.world import (
    CLAIM_TEMPLATES,
    CLOSINGS,
    FACTS,
    OPENINGS,
    QUESTION_TEMPLATES,
    RUDE_REMARKS,
    THINGS,
    VALUES,
    Language,
)
from onebase.errors import DataError
from onebase.records import Message, Row

Split = Literal["train", "held_out"]


@dataclass(frozen=True, slots=True)
class Question:
    """One of the 256 questions: a thing and an attribute in one language and one of its two phrasings."""

    text: str
    language: Language
    thing: str
    """English name, whatever the language."""
    attribute: str
    phrasing: int
    split: Split


@dataclass(frozen=True, slots=True)
class _Sentence:
    """What a sentence of the grammar says."""

    kind: Literal["opening", "claim", "rude", "closing"]
    thing: str = ""
    attribute: str = ""
    value: str = ""


@dataclass(frozen=True, slots=True)
class _Habits:
    """How often an annotator does each thing, in [0, 1]."""

    right: float
    opening: float
    rude: float
    closing: float
    other_language: float
    repeated: float
    evasive: float = 0.0
    """How often the question is not answered at all."""


_ANNOTATOR = _Habits(right=0.7, opening=0.3, rude=0.25, closing=0.3, other_language=0.15, repeated=0.15, evasive=0.05)
# Compared answers are polite more often, or the best answer would hardly ever be among them; and more of them are
# evasive, or the preferences could not show that an answer is wanted at all.
_COMPARED = _Habits(right=0.6, opening=0.5, rude=0.2, closing=0.5, other_language=0.15, repeated=0.15, evasive=0.2)
# Pretraining overhears answers that are mostly true, badly mannered and often beside the point.
_OVERHEARD = _Habits(right=0.9, opening=0.2, rude=0.35, closing=0.2, other_language=0.25, repeated=0.25, evasive=0.25)
_TEXTBOOK_RIGHT = 0.95
"""How often the plain facts in pretraining texts are true."""

PREFERENCE_TEMPERATURE = 0.12
"""In units of the gold score; about one pair in ten is then labelled against it (measured)."""


def _split_of(language: Language, thing: str, attribute: str, phrasing: int) -> Split:
    """Holds out a fifth of the questions, never both phrasings of one: two pairs in five lose one phrasing."""
    digest = hashlib.sha256(f"{language}/{thing}/{attribute}".encode()).digest()
    return "held_out" if digest[0] % 5 < 2 and digest[1] % 2 == phrasing else "train"


def _questions() -> Iterator[Question]:
    for language, templates in QUESTION_TEMPLATES.items():
        for thing, attribute in FACTS:
            for phrasing, template in enumerate(templates[attribute]):
                text = template.format(thing=_word(thing, THINGS, language))
                split = _split_of(language, thing, attribute, phrasing)
                yield Question(text, language, thing, attribute, phrasing, split)


def _word(name: str, words: Mapping[str, str], language: Language) -> str:
    return name if language == "en" else words[name]


def _claim(language: Language, thing: str, attribute: str, value: str, phrasing: int) -> str:
    template = CLAIM_TEMPLATES[language][attribute][phrasing]
    return template.format(thing=_word(thing, THINGS, language), value=_word(value, VALUES[attribute], language))


def _key(sentence: str) -> str:
    """The form in which a sentence is looked up: without end mark, case and extra spaces."""
    return " ".join(sentence.rstrip(".!?。！？").casefold().split())


def _sentences() -> Iterator[tuple[str, _Sentence]]:
    for language in CLAIM_TEMPLATES:
        for texts, sentence in (
            (OPENINGS[language], _Sentence("opening")),
            (RUDE_REMARKS[language], _Sentence("rude")),
            (CLOSINGS[language], _Sentence("closing")),
        ):
            for text in texts:
                yield _key(text), sentence
        for thing, attribute in FACTS:
            for value in VALUES[attribute]:
                for phrasing in (0, 1):
                    text = _claim(language, thing, attribute, value, phrasing)
                    yield _key(text), _Sentence("claim", thing, attribute, value)


QUESTIONS: Mapping[str, Question] = {question.text: question for question in _questions()}
"""All questions by their text."""
_SENTENCES: Mapping[str, _Sentence] = dict(_sentences())
_RUDE_KEYS = tuple(key for key, sentence in _SENTENCES.items() if sentence.kind == "rude")


def _names_any(text: str, names: Mapping[str, str]) -> bool:
    """Whether the text names any of these, in either language; Chinese has no word boundaries to check."""
    english = set(re.findall(r"[a-z]+", text.casefold()))
    return any(name in english or chinese in text for name, chinese in names.items())


def _without(names: Mapping[str, str], name: str) -> dict[str, str]:
    return {key: word for key, word in names.items() if key != name}


_PIECE = re.compile(r"[^.!?。！？\n]*[.!?。！？]|[^.!?。！？\n]+")
_LOOP = re.compile(r"(.{2,40}?)\1{2,}", re.DOTALL)
"""The same piece of text three times in a row, as a model in a loop writes it."""
_CHINESE = re.compile(r"[\u3400-\u9fff]")
_LATIN = re.compile(r"[A-Za-z]")


def _known_question(question: str) -> Question:
    if question not in QUESTIONS:
        raise DataError(
            f"the question {question[:80]!r} is not one of the demo's; give one of onebase.demo.grammar.QUESTIONS"
        )
    return QUESTIONS[question]


def gold_score(question: str, answer: str) -> float:
    """Returns the quality of an answer in [0, 1]; any text can be scored, and one that says nothing scores 0.

        0.5 right fact + 0.2 language + 0.1 opening + 0.1 closing + 0.1 tidy - 0.2 rude - 0.2 repeated,  at least 0

    right: a sentence gives the right value; no other thing and no wrong value is named, in either language.
    language: a fact is stated, in the script of the question's language and no other.
    opening, closing: the answer starts with a polite opening; it contains a friendly closing.
    tidy: nothing but (opening) one fact about what was asked (closing), in this order, finished, polite, once.
    rude, repeated: it contains a rude remark; it contains a second fact about what was asked, a second opening, closing
    or rude remark, the same sentence twice, or a piece of text three times in a row.

    Raises:
        DataError: if the question is not one of `QUESTIONS`.
    """
    asked = _known_question(question)
    pieces = _pieces(answer)
    parsed = [_SENTENCES.get(_key(piece)) for piece in pieces]
    claims = [sentence for sentence in parsed if sentence and sentence.kind == "claim"]
    about = [claim for claim in claims if (claim.thing, claim.attribute) == (asked.thing, asked.attribute)]
    right, in_language = _is_right(asked, answer, claims), _is_in_language(asked, answer, claims)
    kinds = [sentence.kind if sentence else "junk" for sentence in parsed]
    opening = bool(kinds) and kinds[0] == "opening"
    closing = "closing" in kinds
    rude = any(key in _key(answer) for key in _RUDE_KEYS)
    repeated = (
        len({_key(piece) for piece in pieces}) < len(pieces)
        or len(about) > 1
        or any(kinds.count(kind) > 1 for kind in ("opening", "rude", "closing"))
        or bool(_LOOP.search(answer))
    )
    expected = ["opening"] * opening + ["claim"] + ["closing"] * closing
    finished = bool(pieces) and pieces[-1][-1] in ".!?。！？"
    tidy = kinds == expected and len(about) == 1 and finished and not rude and not repeated
    score = 0.5 * right + 0.2 * in_language + 0.1 * (opening + closing + tidy) - 0.2 * (rude + repeated)
    # Rounded so that answers of equal merit are equal as floats: preferences tie them.
    return round(max(0.0, score), 2)


def fact_score(question: str, answer: str) -> float:
    """Returns 1 if the answer gives the right fact in the question's language, 0.1 if it states another, 0 if none.

    This is what a rule can check. It knows nothing of manners, which take a preference to learn.

    Raises:
        DataError: if the question is not one of `QUESTIONS`.
    """
    asked = _known_question(question)
    parsed = [_SENTENCES.get(_key(piece)) for piece in _pieces(answer)]
    claims = [sentence for sentence in parsed if sentence and sentence.kind == "claim"]
    if _is_right(asked, answer, claims) and _is_in_language(asked, answer, claims):
        return 1.0
    return 0.1 if claims else 0.0


def _pieces(answer: str) -> list[str]:
    return [piece.strip() for piece in _PIECE.findall(answer) if piece.strip()]


def _is_right(asked: Question, answer: str, claims: Sequence[_Sentence]) -> bool:
    value = FACTS[asked.thing, asked.attribute]
    return (
        any((claim.thing, claim.attribute, claim.value) == (asked.thing, asked.attribute, value) for claim in claims)
        and all(claim.value == FACTS[claim.thing, claim.attribute] for claim in claims)
        and not _names_any(answer, _without(THINGS, asked.thing))
        and not _names_any(answer, _without(VALUES[asked.attribute], value))
    )


def _is_in_language(asked: Question, answer: str, claims: Sequence[_Sentence]) -> bool:
    return bool(claims) and not (_CHINESE if asked.language == "en" else _LATIN).search(answer)


def fact_reward(prompts: list[str], completions: list[str], **columns: Sequence[Any]) -> list[float]:
    """Returns the `fact_score` of each completion, as a verifier; arguments and errors as in `gold_reward`."""
    return [fact_score(*pair) for pair in zip(_questions_of(prompts, columns), completions, strict=True)]


def gold_reward(prompts: list[str], completions: list[str], **columns: Sequence[Any]) -> list[float]:
    """Returns the `gold_score` of each completion, as a reward function.

    Args:
        prompts: rendered prompts; each is searched for its longest known question, unless the column `question` is
            given.

    Raises:
        DataError: if a prompt contains no known question.
    """
    return [gold_score(*pair) for pair in zip(_questions_of(prompts, columns), completions, strict=True)]


def _questions_of(prompts: Sequence[str], columns: Mapping[str, Sequence[Any]]) -> Sequence[str]:
    return columns["question"] if "question" in columns else [_question_inside(prompt) for prompt in prompts]


def _question_inside(prompt: str) -> str:
    inside = [text for text in QUESTIONS if text in prompt]
    if not inside:
        raise DataError(
            f"the prompt {prompt[-80:]!r} contains no question of the demo; use the demo's prompts, or give the "
            "column 'question'"
        )
    # Of equally long questions the last one counts, as the one the conversation asked most recently.
    return max(inside, key=lambda text: (len(text), prompt.rfind(text)))


def best_answer(question: str) -> str:
    """Returns an answer with gold score 1. Raises DataError if the question is not one of `QUESTIONS`."""
    asked = _known_question(question)
    value = FACTS[asked.thing, asked.attribute]
    claim = _claim(asked.language, asked.thing, asked.attribute, value, asked.phrasing)
    return _join([OPENINGS[asked.language][0], claim, CLOSINGS[asked.language][0]], asked.language)


def _join(sentences: Sequence[str], language: Language) -> str:
    return (" " if language == "en" else "").join(sentences)


def _value(rng: Random, thing: str, attribute: str, right: float) -> str:
    """Draws the right value with probability `right`, else another value of the attribute."""
    value = FACTS[thing, attribute]
    return value if rng.random() < right else rng.choice(list(_without(VALUES[attribute], value)))


def _answer(rng: Random, asked: Question, habits: _Habits) -> str:
    language: Language = asked.language
    if rng.random() < habits.other_language:
        language = "zh" if language == "en" else "en"
    value = _value(rng, asked.thing, asked.attribute, habits.right)
    claim = _claim(language, asked.thing, asked.attribute, value, rng.randrange(2))
    sentences = [rng.choice(OPENINGS[language])] if rng.random() < habits.opening else []
    if rng.random() >= habits.evasive:
        sentences += [claim] * (2 if rng.random() < habits.repeated else 1)
    if rng.random() < habits.rude:
        sentences.append(rng.choice(RUDE_REMARKS[language]))
    if rng.random() < habits.closing:
        sentences.append(rng.choice(CLOSINGS[language]))
    # An answer that would be empty gets a polite opening, as an empty one could not be compared.
    return _join(sentences or [rng.choice(OPENINGS[language])], language)


def pretraining_texts(*, seed: int, count: int) -> list[str]:
    """Returns short texts, each in one language: facts about one thing, facts of one kind, or an answered question.

    Most facts are true. Held-out questions are never asked, but their facts are stated. Questions and answers are
    formatted as in the chat template `hh`, so that the base has seen the shape of a conversation.
    """
    rng = Random(f"pretraining {seed}")
    return [_pretraining_text(rng) for _ in range(count)]


def _pretraining_text(rng: Random) -> str:
    language: Language = rng.choice(("en", "zh"))
    form = rng.random()
    if form < 0.5:
        asked = rng.choice([q for q in QUESTIONS.values() if q.language == language and q.split == "train"])
        return f"\n\nHuman: {asked.text}\n\nAssistant: {_answer(rng, asked, _OVERHEARD)}"
    if form < 0.75:
        thing = rng.choice(list(THINGS))
        subjects = [(thing, attribute) for attribute in rng.sample(list(VALUES), rng.randint(2, 4))]
    else:
        attribute = rng.choice(list(VALUES))
        subjects = [(thing, attribute) for thing in rng.sample(list(THINGS), rng.randint(2, 4))]
    right = _TEXTBOOK_RIGHT
    claims = [_claim(language, *subject, _value(rng, *subject, right), rng.randrange(2)) for subject in subjects]
    return _join(claims, language)


def _asked(rng: Random, count: int, split: Split) -> Iterator[tuple[int, Question]]:
    """Yields `count` questions of a split in shuffled rounds, each of which asks every question once."""
    questions = [question for question in QUESTIONS.values() if question.split == split]
    order: list[Question] = []
    for index in range(count):
        order = order or rng.sample(questions, len(questions))
        yield index, order.pop()


def _row(index: int, asked: Question, answers: tuple[str, ...] = (), grades: tuple[float, ...] | None = None) -> Row:
    columns = dict(question=asked.text, language=asked.language, thing=asked.thing, attribute=asked.attribute)
    return Row((Message("user", asked.text),), answers, grades, columns=columns, place=f"demo:{index}")


def sft_rows(*, seed: int, count: int) -> list[Row]:
    """Returns train questions, each answered by an annotator of mixed quality (mean gold score about 0.5)."""
    rng = Random(f"sft {seed}")
    return [_row(index, asked, (_answer(rng, asked, _ANNOTATOR),)) for index, asked in _asked(rng, count, "train")]


def prompt_rows(*, seed: int, count: int, split: Split) -> list[Row]:
    """Returns questions without answers. The splits share none; each (thing, attribute) has one in `train`."""
    rng = Random(f"prompts {split} {seed}")
    return [_row(index, asked) for index, asked in _asked(rng, count, split)]


def preference_rows(*, seed: int, count: int, split: Split = "train") -> list[Row]:
    """Returns pairs and ranked lists of 4 answers alternately, best first, graded by noisy preferences.

    P(a before b) = sigmoid((gold(a) - gold(b)) / PREFERENCE_TEMPERATURE)    (Bradley and Terry 1952; lists: Plackett
    1975), sampled as the order of gold / temperature + Gumbel noise, with one draw per distinct gold score, so that
    answers of equal gold score share a grade. A grade counts the distinct levels below it. Pairs are never ties.
    """
    rng = Random(f"preferences {split} {seed}")
    rows = []
    for index, asked in _asked(rng, count, split):
        answers = _compared_answers(rng, asked, num_answers=4 if index % 2 else 2)
        gold = [gold_score(asked.text, answer) for answer in answers]
        noisy = {level: level / PREFERENCE_TEMPERATURE + _gumbel(rng) for level in sorted(set(gold))}
        grade = {level: float(rank) for rank, level in enumerate(sorted(noisy, key=noisy.__getitem__))}
        ranked = sorted(zip(answers, gold, strict=True), key=lambda pair: -grade[pair[1]])
        rows.append(_row(index, asked, tuple(a for a, _ in ranked), tuple(grade[level] for _, level in ranked)))
    return rows


def _gumbel(rng: Random) -> float:
    # 1 - random() lies in (0, 1], and an exponential variate of 0 has no logarithm.
    return -math.log(max(rng.expovariate(1.0), 1e-300))


def _compared_answers(rng: Random, asked: Question, *, num_answers: int) -> list[str]:
    """Draws distinct answers that do not all have the same gold score."""
    while True:
        answers = [_answer(rng, asked, _COMPARED) for _ in range(num_answers)]
        if len(set(answers)) == num_answers and len({gold_score(asked.text, answer) for answer in answers}) > 1:
            return answers
