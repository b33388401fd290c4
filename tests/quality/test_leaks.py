"""Leaks: test prompts found in training rows, as they are, edited, or inside other text."""

from __future__ import annotations

import random

import pytest

from onebase.quality.leaks import TestPrompts
from onebase.quality.options import Leaks
from onebase.records import Message, Row

WORDS = "stone river small tree house under over the cat dog sees likes old red many paper cloud seven minute".split()


def prompt(text: str, *answers: str, place: str = "") -> Row:
    return Row((Message("user", text),), answers, place=place)


def text(seed: int, count: int = 40) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=count))


@pytest.fixture(scope="module")
def tested() -> TestPrompts:
    rows = [prompt(text(n), place=f"test:{n}") for n in range(20)]
    return TestPrompts(
        [*rows, prompt("2 + 2?", place="test:short"), prompt("天地玄黄" * 3 + "宇宙洪荒日月盈昃", place="test:zh")],
        Leaks(),
    )


def test_a_test_prompt_is_found_whatever_its_case_and_white_space(tested: TestPrompts) -> None:
    assert tested.leaked(prompt(text(3).upper() + " \n")) == ("the prompt of a test row", {"of": "test:3"})
    assert tested.leaked(prompt("2 +  2?")) == ("the prompt of a test row", {"of": "test:short"})


def test_an_edited_test_prompt_is_found(tested: TestPrompts) -> None:
    found = tested.leaked(prompt(text(3).replace("stone", "stones", 1)))
    assert found is not None and found[0] == "nearly the prompt of a test row"
    assert isinstance(found[1], dict) and found[1]["of"] == "test:3" and 0.8 <= found[1]["similarity"] < 1


@pytest.mark.parametrize("inside", ["prompt", "answer"])
def test_a_test_prompt_inside_another_text_is_found(tested: TestPrompts, inside: str) -> None:
    long = f"{text(100, 80)} {text(7)} {text(101, 80)}"
    found = tested.leaked(prompt(long, "yes") if inside == "prompt" else prompt("Go on", long))
    assert found == ("long runs of a test row's prompt (50 characters)", {"of": "test:7", "share": 1.0})


def test_a_chinese_test_prompt_inside_another_text_is_found(tested: TestPrompts) -> None:
    found = tested.leaked(
        prompt("请看下面的句子：" + "天地玄黄" * 3 + "宇宙洪荒日月盈昃" + "。它说的是什么？请详细说明。")
    )
    assert found is not None and isinstance(found[1], dict) and found[1]["of"] == "test:zh"


def test_less_than_half_of_a_prompt_is_no_leak(tested: TestPrompts) -> None:
    words = text(7).split()
    assert tested.leaked(prompt(f"{text(100)} {' '.join(words[:18])} {text(101)}")) is None
    assert tested.leaked(prompt(f"{text(100)} {' '.join(words[:34])} {text(101)}")) is not None


def test_other_prompts_are_no_leaks(tested: TestPrompts) -> None:
    assert not any(tested.leaked(prompt(text(n))) for n in range(200, 260))
    assert tested.leaked(prompt("2 + 3?")) is None


def test_an_instruction_that_many_test_prompts_share_is_no_leak() -> None:
    instruction = "Answer the question below step by step, and write the final answer alone on the last line. "
    tested = TestPrompts(
        [prompt(instruction + text(n, 6), place=f"test:{n}") for n in range(10)], Leaks(similarity=1.0)
    )
    assert tested.leaked(prompt(instruction + text(500, 6))) is None


def test_no_test_prompts_leak_nothing() -> None:
    assert TestPrompts([], Leaks()).leaked(prompt(text(0))) is None
