"""Labelled texts as pairs, and which of several equal completions are compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from onebase.data.chat import ChatFormat, chat_format
from onebase.data.compared import drop_equal_completions, pair_labelled, rank_scored, unranked_line
from onebase.data.fit import Limits
from onebase.data.prepare import dropped_line, encode_rows
from onebase.errors import DataError
from onebase.reading.formats import read_rows
from onebase.records import Example, Message, Row
from tests.tiny_models import EOS, tiny_tokenizer


@pytest.fixture
def chat() -> ChatFormat:
    """One id per byte; a prompt is the beginning token and the message as it is."""
    return chat_format(tiny_tokenizer(), "plain")


def ids(text: str) -> list[int]:
    return tiny_tokenizer().encode(text, add_special_tokens=False)


def ranked(number: int, *answers: str, **fields: Any) -> Row:
    grades = tuple(float(len(answers) - k) for k in range(len(answers)))
    return Row((Message("user", "q"),), answers, **{"grades": grades, "place": f"lists:{number}", **fields})


def labelled(text: str, label: float, number: int = 1) -> Row:
    return Row((), (text,), grades=(label,), place=f"labels.jsonl:{number}")


CUT = "answers cut to the same tokens"
REPEATED = "the tokens of a better answer to the same prompt"


# ------------------------------------------------------------------------------------------------- equal completions


def test_examples_whose_answers_were_cut_to_the_same_tokens_are_left_out(chat: ChatFormat) -> None:
    rows = [
        ranked(1, "xyzA", "xyzB"),
        ranked(2, "xyzA", "aaa"),
        ranked(3, "xyzA", "xyzB", "xyzC"),
        Row((Message("user", "q"),), ("xyz",)),
    ]
    whole = encode_rows(rows, chat, Limits(context=64))
    assert drop_equal_completions(whole, max_share=0) == (whole, {})
    cut = encode_rows(rows, chat, Limits(context=64, max_completion=3))
    assert drop_equal_completions(cut, max_share=0.5) == ([cut[1], cut[3]], {CUT: ["lists:1", "lists:3"]})


def test_of_equal_answers_in_a_list_the_best_is_kept(chat: ChatFormat) -> None:
    """Equal as texts, or equal where they are cut; the order of the others stays, and places say what went."""
    rows = [
        ranked(1, "a", "b", "a", "c"),
        ranked(2, "worse", "b", "worse", grades=(0.0, 1.0, 2.0)),
        ranked(3, "x", "x", "y", grades=(1.0, 1.0, 0.0)),
        ranked(4, "same1", "other", "same2", "same3"),
    ]
    kept, dropped = drop_equal_completions(encode_rows(rows, chat, Limits(context=64, max_completion=4)), max_share=0)
    assert [[chat.decode(ids) for ids in example.completions] for example in kept] == [
        ["a", "b", "c"],
        ["b", "wors"],
        ["x", "y"],
        ["same", "othe"],
    ]
    assert [example.grades for example in kept] == [(4.0, 3.0, 1.0), (1.0, 2.0), (1.0, 0.0), (4.0, 3.0)]
    # What is known of an answer goes with it.
    assert [example.row and example.row.answers for example in kept] == [
        ("a", "b", "c"),
        ("b", "worse"),
        ("x", "y"),
        ("same1", "other"),
    ]
    assert dropped == {REPEATED: [f"lists:{number}" for number in (1, 2, 3, 4, 4)]}
    assert dropped_line(dropped) == (
        "left out: 5 with the tokens of a better answer to the same prompt (lists:1, lists:2, lists:3)"
    )


def test_masks_stay_beside_their_completions() -> None:
    example = Example([1], [[2, 3], [4], [2, 3]], [[True, False], [True], [False, True]], grades=[0.0, 1.0, 2.0])
    (kept,), dropped = drop_equal_completions([example], max_share=0)
    assert kept == Example([1], [[4], [2, 3]], [[True], [False, True]], grades=(1.0, 2.0))
    assert dropped == {REPEATED: [""]}


def test_the_end_token_tells_a_whole_answer_from_one_that_goes_on(chat: ChatFormat) -> None:
    examples = encode_rows([ranked(1, "ab", "abc")], chat, Limits(context=64))
    assert [list(completion) for completion in examples[0].completions] == [[*ids("ab"), EOS], [*ids("abc"), EOS]]
    assert drop_equal_completions(examples, max_share=0) == (examples, {})


def test_too_many_cut_to_the_same_tokens_are_an_error(chat: ChatFormat) -> None:
    rows = [
        *(ranked(number, f"a{number}xxA", f"a{number}xxB") for number in range(4)),
        *(ranked(9, "b", "a", "b") for _ in range(6)),
    ]
    examples = encode_rows(rows, chat, Limits(context=64, max_completion=4))
    assert len(drop_equal_completions(examples, max_share=0.4)[0]) == 6
    with pytest.raises(DataError) as caught:
        drop_equal_completions(examples, max_share=0.39)
    assert str(caught.value) == (
        "the answers of 4 of 10 rows were cut to the same tokens, more than the allowed share of 0.39 "
        "(first lists:0, lists:1, lists:2)"
    )
    assert caught.value.remedy == "answers-cut-to-equal"
    # A list that loses some of its answers is no lost row.
    assert len(drop_equal_completions(examples[4:], max_share=0)[0]) == 6
    assert drop_equal_completions([], max_share=0) == ([], {})


# ------------------------------------------------------------------------------------------------- labels


def test_labelled_texts_are_paired_better_against_worse_and_used_once() -> None:
    rows = [labelled(f"text {i}", float(i % 3 == 0), i) for i in range(30)]
    pairs = pair_labelled(rows, seed=0)
    assert len(pairs) == 10
    good, bad = {row.answers[0] for row in rows[::3]}, {row.answers[0] for row in rows if row.grades == (0.0,)}
    assert {pair.answers[0] for pair in pairs} == good  # the smaller side whole
    losers = [pair.answers[1] for pair in pairs]
    assert len(set(losers)) == 10 and set(losers) <= bad
    assert set(losers) != {pair.answers[1] for pair in pair_labelled(rows, seed=1)}  # the surplus is drawn, not cut
    by_text = {row.answers[0]: row.place for row in rows}
    for pair in pairs:
        assert pair.messages == () and pair.grades == (1.0, 0.0)
        assert pair.place == " and ".join(by_text[answer] for answer in pair.answers)


def test_the_pairing_depends_on_the_seed_alone() -> None:
    rows = [labelled(f"text {i}", float(i % 2), i) for i in range(20)]
    assert pair_labelled(rows, seed=3) == pair_labelled(list(rows), seed=3) != pair_labelled(rows, seed=4)


def test_the_higher_label_is_better_whatever_the_labels() -> None:
    (pair,) = pair_labelled([labelled("better", 5.0), labelled("worse", -2.5)], seed=0)
    assert pair.answers == ("better", "worse")


@pytest.mark.parametrize(("labels", "found"), [([1.0, 1.0], "1"), ([0.0], "0"), ([0.0, 1.0, 2.5], "0, 1, 2.5")])
def test_other_than_two_labels_cannot_be_paired(labels: list[float], found: str) -> None:
    with pytest.raises(DataError) as caught:
        pair_labelled([labelled(f"t{i}", label, i + 1) for i, label in enumerate(labels)], seed=0)
    message = str(caught.value)
    assert message.startswith("labels.jsonl:1: labelled texts are paired") and message.endswith(f"found {found}")


def test_rows_that_are_no_labelled_texts_come_back_as_they_are() -> None:
    pairs = [ranked(1, "good", "bad"), ranked(2, "good", "bad")]
    assert pair_labelled(pairs, seed=0) == pairs
    plain = [Row((), ("text",)), labelled("other", 1.0)]
    assert pair_labelled(plain, seed=0) == plain
    assert pair_labelled([], seed=0) == []


# ---------------------------------------------------------------------------------------------------- scored answers


def scored(prompt: str, answer: str, score: float, number: int, **fields: Any) -> Row:
    return Row((Message("user", prompt),), (answer,), grades=(score,), place=f"s:{number}", **fields)


def test_answers_scored_one_by_one_are_ranked_by_prompt() -> None:
    pair = ranked(9, "x", "y")
    rows = [
        scored("q", "a", 0.0, 1),
        scored("alone", "b", 1.0, 2),
        pair,
        scored("q", "c", 2.0, 3, ended=(False,)),
        scored("equal", "d", 1.0, 4),
        scored("equal", "e", 1.0, 5),
        scored("q", "f", 1.0, 6),
    ]
    found, left = rank_scored(rows)
    assert found[1:] == [pair] and left == 3
    assert found[0].messages == (Message("user", "q"),) and found[0].place == "s:1 and s:3 and s:6"
    assert found[0].answers == ("a", "c", "f") and found[0].grades == (0.0, 2.0, 1.0)
    assert found[0].ended == (True, False, True)
    assert rank_scored(found) == (found, 0)
    assert unranked_line(left) == "answers scored one by one are ranked by prompt; 3 have none to be compared with"
    assert unranked_line(0) == ""


def test_labelled_texts_are_no_scored_answers() -> None:
    texts = [labelled("a", 1.0), labelled("b", 0.0)]
    assert rank_scored(texts) == (texts, 0)


def test_the_real_rewards_rank_the_contexts_that_have_both(shared: Path) -> None:
    ranked_lists, left = rank_scored(read_rows(shared / "data/taskmaster_reward"))
    both = [row for row in ranked_lists if {0.0, 1.0} <= set(row.grades or ())]
    assert len(both) == len(ranked_lists) and sum(len(row.answers) for row in ranked_lists) + left == 3228
    assert len(both) == 220
